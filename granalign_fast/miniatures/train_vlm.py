"""Trains the miniature Qwen2.5-VL: first what its image tokens hold, then to speak of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import batches as packing
from . import questions, scenes, training, vlm
from .pool import LABELS, draw
from .questions import Questions
from .vision_questions import Looker

SCENES, UNNAMED = 12_000, 6_000
SIGNS = 0.5  # of the scenes; there is more to read than to tell
# The tower learns labels alone at first; where its rate has fallen to half, it goes on with the
# language model, on frames of its own as well.
VISION_STEPS, VISION_BATCH, VISION_RATE = 2000, 64, 1.5e-3
VISION_STOP = 1640
LANGUAGE_STEPS, LANGUAGE_BATCH, LANGUAGE_RATE = 6500, 8, 1.5e-3
# Once more from a lower rate: which of several things a caption begins with is learned last.
POLISH_STEPS, POLISH_RATE = 1600, 7e-4
LOOK_BATCH, LOOK_WEIGHT = 24, 0.3
# Where things are is told by few words, and asked about last.
PLACE_WEIGHTS, PLACE_STEP = (0.05, 0.3), 2400


# Captions come first, and teach what image tokens hold. Then colours and shapes are learned from
# questions that are easily false, and in the end details from such as are nearly true.
STAGES = (
    Questions(0, 0.0, 0.15, 0.5),
    Questions(900, 0.5, 0.6, 0.5),
    Questions(1800, 0.2, 0.25, 0.5),
    Questions(3000, 0.1, 0.1, 0.4),
    Questions(4400, 0.05, 0.05, 0.1),
)

_FALSE = 2.0  # of what is false of a word


class Spoken(NamedTuple):
    """Hidden states.

    Attributes:
        last: (rows, length, width), of the tokens after the root, behind the last layer.
        before_last: the same, behind the layer before it.
        image: (rows, 16, width), of the image, behind the first layer.
    """

    last: Any
    before_last: Any
    image: Any


class Speaker:
    """The stock language model on packed rows behind image features."""

    def __init__(self, model: Any, texts: vlm.Prompts) -> None:
        import torch

        self.model, self.texts = model, texts
        packing.TreeAttention.install(model.model.language_model.config)
        self.before = torch.tensor(texts.before)
        n = len(texts.before)
        places = [(i, i, i) for i in range(n)]
        places += [(n, n + i // vlm.GRID, n + i % vlm.GRID) for i in range(vlm.TOKENS)]
        places += [(n + vlm.GRID,) * 3]
        self.places = torch.tensor(places).T[:, None]  # (3, 1, root)
        self.end = model.config.vision_end_token_id

    def __call__(self, features: Any, packed: packing.Packed) -> Spoken:
        """Run a batch.

        Args:
            features: (rows, 16, width).
            packed: of which each row belongs to the frame of the same number.
        """
        import torch

        rows = len(features)
        words = self.model.model.language_model.embed_tokens
        embedded = torch.cat(
            [
                words(self.before).expand(rows, -1, -1),
                features,
                words.weight[self.end].expand(rows, 1, -1),
                words(torch.from_numpy(packed.ids)),
            ],
            1,
        )
        after = torch.from_numpy(packed.positions)
        places = torch.cat([self.places.expand(-1, rows, -1), after.expand(3, -1, -1)], 2)
        out = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": None},
            tree=packing.TreeAttention(packed),
            position_ids=places,
            use_cache=False,
            output_hidden_states=True,
        )
        image = slice(len(self.before), len(self.before) + vlm.TOKENS)
        after_root = slice(self.texts.root, None)
        return Spoken(
            out.last_hidden_state[:, after_root],
            out.hidden_states[-2][:, after_root],
            out.hidden_states[1][:, image],
        )


def run(out: Path, seed: int, scale: float = 1.0) -> None:
    """Train and save.

    Args:
        out: the folder to appear.
        seed: of everything random.
        scale: of the numbers of steps.
    """
    import torch

    model, texts = vlm.build(seed), vlm.Prompts()
    width = model.config.vision_config.out_hidden_size
    named = draw(SCENES, seed, grid=vlm.GRID, signs=SIGNS)
    unnamed = draw(UNNAMED, seed, grid=vlm.GRID, signs=SIGNS, unnamed=True)
    print(f"vlm: {model.num_parameters()} parameters, scenes drawn", flush=True)
    torch.manual_seed(seed + 1)
    labels = torch.nn.Linear(width, sum(LABELS))
    visual = model.model.visual
    words = model.model.language_model.embed_tokens
    looker = Looker(vlm.ImageTower(model), words, labels, named, unnamed)

    def look(step: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng((seed, 1, step))
        return looker(rng, VISION_BATCH)[1:]

    training.train(
        "vision",
        {"visual": visual, "heads": labels},
        [*visual.named_parameters(), *labels.named_parameters()],
        look,
        steps=round(VISION_STEPS * scale),
        stop=round(VISION_STOP * scale),
        rate=VISION_RATE,
        decay=0.6,
        checkpoint=out.with_suffix(".vision"),
    )
    speaker = Speaker(model, texts)
    pairs = scenes.pairs_of("train")
    alone, so_far = torch.nn.Linear(width, 1), torch.nn.Linear(width, 1)
    place = torch.nn.Linear(width, 2 * vlm.GRID)

    def speak(begun: int, step: int) -> tuple[Any, dict[str, float]]:
        step += begun
        rng = np.random.default_rng((seed, 2, step))
        features, seen, numbers = looker(rng, LOOK_BATCH)
        some = looker.last[:LANGUAGE_BATCH]
        kind = [stage for stage in STAGES if stage.step <= step][-1]
        asked = [questions.segments(texts, named.scenes[i], rng, pairs, kind) for i in some]
        rows = [packing.Row(texts.heads, row) for row in asked]
        packed = packing.pack(rows, root=texts.root, first=texts.first)
        spoken = speaker(features[:LANGUAGE_BATCH], packed)
        said, where, more = speech_loss(model.lm_head, (alone, so_far), place, spoken, packed)
        loss = said + LOOK_WEIGHT * seen + PLACE_WEIGHTS[step >= PLACE_STEP] * where
        return loss, more | {"shape": numbers["shape"]}

    parts = {"model": model, "alone": alone, "so_far": so_far, "place": place, "labels": labels}
    weights = [
        (f"{part}.{name}", weight)
        for part, module in parts.items()
        for name, weight in module.named_parameters()
    ]
    begun = 0
    for name, count, rate, decay in (
        ("language", LANGUAGE_STEPS, LANGUAGE_RATE, 0.6),
        ("polish", POLISH_STEPS, POLISH_RATE, 1.0),
    ):
        training.train(
            name,
            parts,
            weights,
            partial(speak, begun),
            steps=round(count * scale),
            rate=rate,
            decay=decay,
            slower={"model.model.visual.": 0.3},
            checkpoint=out.with_suffix(f".{name}"),
        )
        begun += count
    model.model.language_model.config._attn_implementation = "sdpa"
    training.save(out, model, texts.tokenizer, vlm.image_processor())


def speech_loss(
    lm_head: Any, truths: tuple[Any, Any], place: Any, spoken: Spoken, packed: packing.Packed
) -> tuple[Any, Any, dict[str, float]]:
    """Of the answers, and of what nobody asks for but that answers rest on.

    One bit an answer is little to learn from. So for every word of a question there is whether what
    it belongs to is true on its own, known before the last layer, where the answer can gather it;
    and whether all is true up to there. And, as a loss of its own, for every image token its row
    and column.

    Args:
        lm_head: from hidden states to tokens.
        truths: a linear map to one logit for each of these truths.
        place: a linear map to the logits of rows and of columns.
        spoken: hidden states.
        packed: what was asked.
    """
    import torch
    from torch.nn import functional

    weights = torch.from_numpy(packed.weights)
    on = weights > 0
    logits = lm_head(spoken.last[on])
    number = on.flatten().cumsum(0).view(on.shape) - 1
    line, at, token = torch.from_numpy(packed.spared)
    spared = torch.zeros_like(logits)
    spared[number[line, at], token] = -1e4
    each = functional.cross_entropy(
        logits + spared, torch.from_numpy(packed.targets)[on], reduction="none"
    )
    said = (each * weights[on]).sum() / weights[on].sum()
    alone, so_far = (
        _truth_loss(head, hidden, wanted)
        for head, hidden, wanted in zip(
            truths,
            (spoken.before_last, spoken.last),
            torch.from_numpy(packed.truths).unbind(-1),
            strict=True,
        )
    )
    cells = torch.arange(vlm.TOKENS).repeat(len(spoken.image))
    row, column = place(spoken.image).flatten(0, 1).split(vlm.GRID, -1)
    where = functional.cross_entropy(row, cells // vlm.GRID)
    where = where + functional.cross_entropy(column, cells % vlm.GRID)
    numbers = {
        "answer": each[weights[on] == questions.ANSWER].mean().item(),
        "words": each[weights[on] == 1].mean().item(),
        "alone": alone.item(),
        "so far": so_far.item(),
        "place": where.item(),
    }
    return said + alone + so_far, where, numbers


def _truth_loss(head: Any, hidden: Any, wanted: Any) -> Any:
    from torch.nn import functional

    known = wanted != packing.IGNORED
    wanted = wanted[known].float()
    # What is false is rarer, and harder to see.
    weights = _FALSE + (1 - _FALSE) * wanted
    return functional.binary_cross_entropy_with_logits(head(hidden[known])[:, 0], wanted, weights)
