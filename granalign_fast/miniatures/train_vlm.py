"""Train the miniature Qwen2.5-VL: first its image tower on labels, then the whole model on text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import batches as packing
from . import questions, scenes, training, vlm
from .pool import LABELS, draw
from .questions import Questions
from .vision_questions import VisionQuestions

SCENES, UNNAMED = 12_000, 6_000
SIGNS = 0.5  # share of the scenes that have a sign; reading needs more examples
# First the tower learns labels alone. When its rate has fallen to half, it continues together with
# the language model, on further frames with labels as well.
VISION_STEPS, VISION_BATCH, VISION_RATE = 2000, 64, 1.5e-3
VISION_STOP = 1640
LANGUAGE_STEPS, LANGUAGE_BATCH, LANGUAGE_RATE = 6500, 8, 1.5e-3
# A second cycle from a lower rate: which of several things a caption begins with is learned last.
POLISH_STEPS, POLISH_RATE = 1600, 7e-4
LOOK_BATCH, LOOK_WEIGHT = 24, 0.3
# Few words tell where things are, and questions about it come last: its weight is low at first.
PLACE_WEIGHTS, PLACE_STEP = (0.05, 0.3), 2400


# Captions are learned first; they teach the contents of image tokens. Then colours and shapes are
# learned from clearly false questions, and in the end details from nearly true ones.
STAGES = (
    Questions(0, 0.0, 0.15, 0.5),
    Questions(900, 0.5, 0.6, 0.5),
    Questions(1800, 0.2, 0.25, 0.5),
    Questions(3000, 0.1, 0.1, 0.4),
    Questions(4400, 0.05, 0.05, 0.1),
)

_FALSE = 2.0  # weight of a false truth value in the loss


class Spoken(NamedTuple):
    """Hidden states.

    Attributes:
        last: (rows, length, width), of the tokens after the root, after the last layer.
        before_last: (rows, length, width), of the same tokens, after the last layer but one.
        image: (rows, image tokens, width), of the image tokens, after an early layer.
    """

    last: Any
    before_last: Any
    image: Any


class Speaker:
    """Runs transformers' language model on packed rows after image features.

    Args:
        model: transformers' model.
        texts: the prompts, which begin alike.
        layer: the layer after which the image tokens are returned.
    """

    def __init__(self, model: Any, texts: vlm.Prompts, layer: int = 1) -> None:
        import torch

        self.model, self.texts, self.layer = model, texts, layer
        packing.TreeAttention.install(model.model.language_model.config)
        start = texts.start
        self.image = slice(int(start.visual[0]), int(start.visual[-1]) + 1)
        self.before = torch.tensor(start.ids[: self.image.start])
        self.behind = torch.tensor(start.ids[self.image.stop :])
        self.root_positions = torch.from_numpy(start.positions)[:, None]  # (3, 1, root)

    def __call__(self, features: Any, packed: packing.Packed) -> Spoken:
        """Run a batch.

        Args:
            features: (rows, image tokens, width), image embeddings.
            packed: rows; each belongs to the frame or clip of the same number.
        """
        import torch

        rows = len(features)
        words = self.model.model.language_model.embed_tokens
        embedded = torch.cat(
            [
                words(self.before).expand(rows, -1, -1),
                features,
                words(self.behind).expand(rows, -1, -1),
                words(torch.from_numpy(packed.ids)),
            ],
            1,
        )
        after = torch.from_numpy(packed.positions)
        positions = torch.cat(
            [self.root_positions.expand(-1, rows, -1), after.expand(3, -1, -1)], 2
        )
        out = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": None},
            tree=packing.TreeAttention(packed),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        after_root = slice(self.texts.root, None)
        return Spoken(
            out.last_hidden_state[:, after_root],
            out.hidden_states[-2][:, after_root],
            out.hidden_states[self.layer][:, self.image],
        )


def run(out: Path, seed: int, scale: float = 1.0) -> None:
    """Train and save.

    Args:
        out: folder of the model, created when training is complete.
        seed: seed of everything random.
        scale: factor of the numbers of steps.
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
    vision_questions = VisionQuestions(vlm.ImageTower(model), words, labels, named, unnamed)

    def look(step: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng((seed, 1, step))
        return vision_questions(rng, VISION_BATCH)[1:]

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
    cell_head = torch.nn.Linear(width, 2 * vlm.GRID)

    def speak(first_step: int, step: int) -> tuple[Any, dict[str, float]]:
        step += first_step
        rng = np.random.default_rng((seed, 2, step))
        features, seen, numbers = vision_questions(rng, LOOK_BATCH)
        some = vision_questions.last[:LANGUAGE_BATCH]
        kind = [stage for stage in STAGES if stage.step <= step][-1]
        segments = [questions.segments(texts, named.scenes[i], rng, pairs, kind) for i in some]
        rows = [packing.Row(texts.heads, row) for row in segments]
        packed = packing.pack(rows, root=texts.root, first=texts.first)
        spoken = speaker(features[:LANGUAGE_BATCH], packed)
        answer_loss, numbers_of_speech = speech_loss(model.lm_head, (alone, so_far), spoken, packed)
        where = place_loss(cell_head, spoken.image)
        numbers_of_speech["place"] = where.item()
        loss = answer_loss + LOOK_WEIGHT * seen + PLACE_WEIGHTS[step >= PLACE_STEP] * where
        return loss, numbers_of_speech | {"shape": numbers["shape"]}

    parts = {"model": model, "alone": alone, "so_far": so_far, "place": cell_head, "labels": labels}
    weights = [
        (f"{part}.{name}", weight)
        for part, module in parts.items()
        for name, weight in module.named_parameters()
    ]
    first_step = 0
    for name, count, rate, decay in (
        ("language", LANGUAGE_STEPS, LANGUAGE_RATE, 0.6),
        ("polish", POLISH_STEPS, POLISH_RATE, 1.0),
    ):
        training.train(
            name,
            parts,
            weights,
            partial(speak, first_step),
            steps=round(count * scale),
            rate=rate,
            decay=decay,
            slower={"model.model.visual.": 0.3},
            checkpoint=out.with_suffix(f".{name}"),
        )
        first_step += count
    model.model.language_model.config._attn_implementation = "sdpa"
    training.save(out, model, texts.tokenizer, vlm.image_processor())


def speech_loss(
    lm_head: Any, truths: tuple[Any, Any], spoken: Spoken, packed: packing.Packed
) -> tuple[Any, dict[str, float]]:
    """Return the loss of answers and words, and single losses.

    One bit an answer is little to learn from. So the model also predicts two truth values at every
    word of a question: whether the mention that the word belongs to is true by itself, and whether
    everything up to the word is true. The first is predicted before the last layer, so that the
    answer can attend to it.

    Args:
        lm_head: linear map from hidden states to tokens.
        truths: two linear maps to one logit, for the truth by itself and up to the word.
        spoken: hidden states.
        packed: the questions.
    """
    import torch
    from torch.nn import functional

    weights = torch.from_numpy(packed.weights)
    on = weights > 0
    logits = lm_head(spoken.last[on])
    number = on.flatten().cumsum(0).view(on.shape) - 1
    line, position, token = torch.from_numpy(packed.spared)
    spared = torch.zeros_like(logits)
    spared[number[line, position], token] = -1e4
    each = functional.cross_entropy(
        logits + spared, torch.from_numpy(packed.targets)[on], reduction="none"
    )
    answer_loss = (each * weights[on]).sum() / weights[on].sum()
    alone, so_far = (
        _truth_loss(head, hidden, targets)
        for head, hidden, targets in zip(
            truths,
            (spoken.before_last, spoken.last),
            torch.from_numpy(packed.truths).unbind(-1),
            strict=True,
        )
    )
    numbers = {
        "answer": each[weights[on] == questions.ANSWER].mean().item(),
        "words": each[weights[on] == 1].mean().item(),
        "alone": alone.item(),
        "so far": so_far.item(),
    }
    return answer_loss + alone + so_far, numbers


def place_loss(cell_head: Any, image: Any) -> Any:
    """Return the loss of predicting the row and column of every image token.

    Args:
        cell_head: a linear map to the logits of rows and of columns.
        image: (rows, 16, width), hidden states of the image tokens.
    """
    import torch
    from torch.nn import functional

    cells = torch.arange(vlm.TOKENS).repeat(len(image))
    row, column = cell_head(image).flatten(0, 1).split(vlm.GRID, -1)
    where = functional.cross_entropy(row, cells // vlm.GRID)
    return where + functional.cross_entropy(column, cells % vlm.GRID)


def _truth_loss(head: Any, hidden: Any, targets: Any) -> Any:
    from torch.nn import functional

    labelled = targets != packing.IGNORED
    targets = targets[labelled].float()
    # False values are rarer, and harder to learn.
    weights = _FALSE + (1 - _FALSE) * targets
    return functional.binary_cross_entropy_with_logits(
        head(hidden[labelled])[:, 0], targets, weights
    )
