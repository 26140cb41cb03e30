"""Train the miniature CLIP on frames and the queries that are true of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.checks.transformers_calls import pooled

from . import meaning, queries, scenes, training, wordlevel
from .drawing import SIDE
from .pool import LABELS, draw, label_loss
from .scenes import Scene

STEPS, BATCH, RATE = 1600, 48, 1.5e-3
SCENES = 8_000
LENGTH = 40
"""Largest number of tokens of a text."""
PATCH = 16

_HIDDEN = -1e4
"""Logit that takes a pair out of the softmax."""


def build(seed: int) -> Any:
    """Build an untrained ``CLIPModel`` of 1.2 million parameters."""
    from transformers import CLIPConfig, CLIPModel

    training.seed_torch(seed)
    tokenizer = wordlevel.clip_tokenizer(LENGTH)
    width = 128
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        projection_dim=width,
    )
    model = CLIPModel(config)
    training.initialise(
        model,
        4,
        seed,
        inputs=("_embedding.weight",),
        outputs=("out_proj.weight", "fc2.weight"),
    )
    with_patches = model.vision_model.embeddings.patch_embedding.weight
    with_patches.data.normal_(0, with_patches[0].numel() ** -0.5)
    return model


def image_processor() -> Any:
    """Return the ``CLIPImageProcessor`` for frames of 112 pixels."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


def pixels(frames: npt.NDArray[np.uint8]) -> Any:
    """Normalise frames, (n, 112, 112, 3), as the image processor does; return (n, 3, 112, 112)."""
    import torch

    from .vlm import MEAN, STD

    scaled = (frames / np.float32(255) - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32))


def texts_of(
    rng: np.random.Generator, scene: Scene, pairs: tuple[scenes.Pair, ...]
) -> tuple[meaning.Spec, meaning.Spec, str, str]:
    """Draw the meanings of a true and of a nearly true query of a scene, and both queries."""
    spec = meaning.sample_spec(rng, scene)
    wrong = meaning.falsified(rng, spec, scene, pairs)
    while wrong is None:
        spec = meaning.sample_spec(rng, scene)
        wrong = meaning.falsified(rng, spec, scene, pairs)
    query = queries.sample_query(rng, spec, pairs).text
    return spec, wrong, query, queries.sample_query(rng, wrong, pairs).text


_ATTRIBUTES = (
    *scenes.SHAPES,
    *scenes.COLOURS,
    *scenes.BACKGROUNDS,
    *scenes.TEXTURES[1:],
    *scenes.WORDS,
    *scenes.SIZES,
    "sign",
    *scenes.pairs_of("train"),
)


def attributes(spec: meaning.Spec) -> npt.NDArray[np.float32]:
    """Return which attributes (words and pairs) a meaning contains, (attributes,), 0 or 1.

    Both towers learn to predict them through one shared linear map. That aligns their spaces in a
    few hundred steps. With the contrastive loss alone, training stays long with what a few words
    tell.
    """
    present: set[object] = {spec.background, spec.texture, spec.sign}
    for mention in spec.mentions:
        pair = (mention.shape, mention.colour)
        present |= {mention.shape, mention.colour, mention.size, pair}
    if spec.sign is not None:
        present.add("sign")
    return np.array([name in present for name in _ATTRIBUTES], np.float32)


def run(out: Path, seed: int, scale: float = 1.0) -> None:
    """Train and save.

    Args:
        out: folder of the model, created when training is complete.
        seed: seed of everything random.
        scale: factor of the number of steps.
    """
    import torch
    from torch.nn import functional

    model, tokenizer = build(seed), wordlevel.clip_tokenizer(LENGTH)
    pairs = scenes.pairs_of("train")
    pool, frames, labels = draw(SCENES, seed, grid=SIDE // PATCH)
    torch.manual_seed(seed + 1)
    heads = torch.nn.Linear(model.config.vision_config.hidden_size, sum(LABELS))
    teller = torch.nn.Linear(model.config.projection_dim, len(_ATTRIBUTES))
    targets, steps = torch.from_numpy(labels), round(STEPS * scale)
    print(f"clip: {model.num_parameters()} parameters, {SCENES} scenes drawn", flush=True)

    def contrast(step: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng((seed, 4, step))
        rows = rng.integers(len(pool), size=BATCH)
        specs, near, right, wrong = zip(*(texts_of(rng, pool[i], pairs) for i in rows), strict=True)
        encoded = tokenizer([*right, *wrong], padding=True, truncation=True, return_tensors="pt")
        texts = pooled(model.get_text_features(encoded["input_ids"], encoded["attention_mask"]))
        seen = model.vision_model(pixels(frames[rows]))
        named, numbers = label_loss(heads(seen.last_hidden_state[:, 1:]), targets[rows])
        images = model.visual_projection(seen.pooler_output)
        # The nearly true half of the texts has its own attributes.
        meant = np.stack([attributes(spec) for spec in (*specs, *near)])
        shown = np.stack([attributes(meaning.full_spec(pool[i])) for i in rows])
        attribute_losses = [
            functional.binary_cross_entropy_with_logits(teller(x), torch.from_numpy(y))
            for x, y in ((texts, meant), (images, shown))
        ]
        images, texts = (functional.normalize(x, dim=-1) for x in (images, texts))
        logits = images @ texts.T * model.logit_scale.exp().clamp(max=50.0)
        # Another scene's query may be true of this frame: leave such pairs out.
        also = np.array([[spec.holds(pool[i]) for spec in specs] for i in rows])
        also &= ~np.eye(BATCH, dtype=np.bool_)
        hidden = torch.from_numpy(also)
        to_images = logits[:, :BATCH].masked_fill(hidden, _HIDDEN)
        wrong_logits = torch.diagonal(logits[:, BATCH:])[:, None]
        to_texts = torch.cat([to_images, wrong_logits], 1)
        answer = torch.arange(BATCH)
        loss = functional.cross_entropy(to_texts, answer)
        loss = loss + functional.cross_entropy(to_images.T, answer)
        right_logits = torch.diagonal(logits[:, :BATCH])
        hard = (right_logits > wrong_logits[:, 0]).float().mean().item()
        first = (to_images.argmax(0) == answer).float().mean().item()
        numbers = {
            "contrast": loss.item(),
            "first": first,
            "hard": hard,
            "shape": numbers["shape"],
            "meant": attribute_losses[0].item(),
            "shown": attribute_losses[1].item(),
        }
        return loss + 10.0 * sum(attribute_losses) + (1 - step / steps) * named, numbers

    training.train(
        "clip",
        {"model": model, "heads": heads, "teller": teller},
        [*model.named_parameters(), *heads.named_parameters(), *teller.named_parameters()],
        contrast,
        steps=steps,
        rate=RATE,
        checkpoint=out.with_suffix(".checkpoint"),
    )
    training.save(out, model, tokenizer, image_processor())
