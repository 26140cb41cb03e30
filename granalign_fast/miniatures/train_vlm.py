"""Trains the miniature Qwen2.5-VL: first what its image tokens hold, then to speak of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast import prompts

from . import language, meaning, packing, queries, scenes, training, vlm
from .pool import LABELS, Pool, draw, label_loss
from .scenes import Scene

SCENES, UNNAMED = 12_000, 6_000
# The tower learns labels alone at first; where its rate has fallen to half, it goes on with the
# language model, on frames of its own as well.
VISION_STEPS, VISION_BATCH, VISION_RATE = 2000, 64, 1.5e-3
VISION_STOP = 1640
LANGUAGE_STEPS, LANGUAGE_BATCH, LANGUAGE_RATE = 6500, 8, 1.5e-3
LOOK_BATCH, LOOK_WEIGHT = 24, 0.3
QUESTIONS, AWARE = 8, 3  # of each frame, behind one prefix


class Questions(NamedTuple):
    """What is asked from some step on, as shares."""

    step: int
    simple: float
    """Questions that name one thing, by its shape, colour and number."""
    easy: float
    """False ones that are true of another scene; the others are nearly true of this one."""


# Captions come first, and teach what image tokens hold. Then colours and shapes are learned from
# questions that are easily false, and in the end details from such as are nearly true.
STAGES = (
    Questions(0, 0.0, 0.15),
    Questions(900, 0.5, 0.6),
    Questions(1800, 0.2, 0.25),
    Questions(3000, 0.1, 0.1),
)

_ANSWER = 3.0  # the weight of a yes or no
CAPTION, FOCUS, RECOGNISE = range(3)  # the heads of vlm.Prompts


def segments(
    texts: vlm.Prompts,
    scene: Scene,
    rng: np.random.Generator,
    pairs: tuple[scenes.Pair, ...],
    kind: Questions = STAGES[-1],
) -> list[packing.Segment]:
    """What is asked of one frame: a caption, aware captions and questions, half of them false."""
    made = [packing.Segment(CAPTION, [], texts.answer(language.agnostic_caption(scene)))]
    made += [_aware(texts, scene, rng, pairs) for _ in range(AWARE)]
    made += [question(texts, scene, rng, pairs, kind, truth=i % 2 == 0) for i in range(QUESTIONS)]
    return made


def _aware(
    texts: vlm.Prompts, scene: Scene, rng: np.random.Generator, pairs: tuple[scenes.Pair, ...]
) -> packing.Segment:
    spec = meaning.sample_spec(rng, scene)
    if rng.random() < 0.45:  # the key frames of a query show much that it is not about
        spec = meaning.falsified(rng, spec, scene, pairs) or spec
    focus = [*language.entities(spec), *language.actions(bool(rng.random() < 0.4))]
    prompt = texts.suffix(prompts.aware_caption(focus))[len(texts.heads[FOCUS]) :]
    answer = language.aware_caption(scene, language.Focus.of(spec))
    return packing.Segment(FOCUS, prompt, texts.answer(answer))


def question(
    texts: vlm.Prompts,
    scene: Scene,
    rng: np.random.Generator,
    pairs: tuple[scenes.Pair, ...],
    kind: Questions,
    *,
    truth: bool,
) -> packing.Segment:
    """A question of recognition, and for each of its words whether all is true up to there."""
    simple = rng.random() < kind.simple
    sample = meaning.simple_spec if simple else meaning.sample_spec
    spec = sample(rng, scene)
    if not truth:
        if rng.random() < kind.easy:
            spec = sample(rng, scenes.sample_scene(rng))
        else:
            spec = meaning.falsified(rng, spec, scene, pairs) or spec
    query = queries.sample_query(rng, spec, pairs)
    return ask(texts, query, spec.holds(scene), scene)


def ask(
    texts: vlm.Prompts, query: queries.Query, truth: bool, scene: Scene | None = None
) -> packing.Segment:
    """The segment of one question; without a scene no word has a truth."""
    prompt = texts.suffix(prompts.recognition(query.text))[len(texts.heads[RECOGNISE]) :]
    truths = [packing.IGNORED] * len(prompt)
    if scene:
        for i, spec in enumerate(query.so_far):  # one token a word
            if spec is not None:
                truths[i] = int(spec.holds(scene))
    answer = texts.answer("yes" if truth else "no")
    return packing.Segment(RECOGNISE, prompt, answer, _ANSWER, 0.05, truths)


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

    def __call__(self, features: Any, packed: packing.Packed) -> tuple[Any, Any]:
        """Hidden states of the tokens after the root, and of the image after the first layer.

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
        return out.last_hidden_state[:, self.texts.root :], out.hidden_states[1][:, image]


def features_of(tower: vlm.ImageTower, frames: npt.NDArray[np.uint8]) -> Any:
    """Image embeddings (frames, 16, width), without a graph."""
    import torch

    with torch.no_grad():
        parts = [
            tower(torch.from_numpy(vlm.patches(frames[i : i + 200])))
            for i in range(0, len(frames), 200)
        ]
    return torch.cat(parts)


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
    named, unnamed = (draw(n, seed, grid=vlm.GRID, unnamed=n == UNNAMED) for n in (SCENES, UNNAMED))
    print(f"vlm: {model.num_parameters()} parameters, scenes drawn", flush=True)
    torch.manual_seed(seed + 1)
    labels = torch.nn.Linear(width, sum(LABELS))
    visual = model.model.visual
    looker = Looker(vlm.ImageTower(model), labels, named, unnamed)

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
    _match_words(looker, visual.merger.mlp[2], labels)
    speaker = Speaker(model, texts)
    pairs = scenes.pairs_of("train")
    truth, place = torch.nn.Linear(width, 1), torch.nn.Linear(width, 2 * vlm.GRID)

    def speak(step: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng((seed, 2, step))
        features, seen, numbers = looker(rng, LOOK_BATCH)
        some = looker.last[:LANGUAGE_BATCH]
        kind = [stage for stage in STAGES if stage.step <= step][-1]
        asked = [segments(texts, named.scenes[i], rng, pairs, kind) for i in some]
        rows = [packing.Row(texts.heads, row) for row in asked]
        packed = packing.pack(rows, root=texts.root, first=texts.first)
        hidden, image = speaker(features[:LANGUAGE_BATCH], packed)
        said, more = speech_loss(model.lm_head, truth, place, hidden, image, packed)
        return said + LOOK_WEIGHT * seen, more | {"shape": numbers["shape"]}

    parts = {"model": model, "truth": truth, "place": place, "labels": labels}
    training.train(
        "vlm",
        parts,
        [
            (f"{part}.{name}", weight)
            for part, module in parts.items()
            for name, weight in module.named_parameters()
        ],
        speak,
        steps=round(LANGUAGE_STEPS * scale),
        rate=LANGUAGE_RATE,
        slower={"model.model.visual.": 0.3},
        checkpoint=out.with_suffix(".language"),
    )
    model.model.language_model.config._attn_implementation = "sdpa"
    training.save(out, model, texts.tokenizer, vlm.image_processor())


class Looker:
    """The image tower on random frames of both pools, half of each, and its labels' loss.

    Args:
        tower: to train.
        labels: a linear map from image tokens to labels.
        named: scenes that can be spoken of.
        unnamed: scenes whose colours have no names.
    """

    def __init__(self, tower: vlm.ImageTower, labels: Any, named: Pool, unnamed: Pool) -> None:
        self.tower, self.labels, self.named, self.unnamed = tower, labels, named, unnamed
        self.last: npt.NDArray[np.int64] = np.empty(0, np.int64)
        """The named scenes of the last call; their features stand first."""

    def __call__(self, rng: np.random.Generator, count: int) -> tuple[Any, Any, dict[str, float]]:
        """Features (count, 16, width), the loss, and each label's."""
        import torch

        self.last, others = (
            rng.integers(len(pool.frames), size=count // 2) for pool in (self.named, self.unnamed)
        )
        frames = np.concatenate([self.named.frames[self.last], self.unnamed.frames[others]])
        wanted = np.concatenate([self.named.labels[self.last], self.unnamed.labels[others]])
        features = self.tower(torch.from_numpy(vlm.patches(frames)))
        return features, *label_loss(self.labels(features), torch.from_numpy(wanted))


def _match_words(looker: Looker, last: Any, labels: Any) -> None:
    """Make image tokens as large as words, which the language model meets beside them."""
    import torch

    with torch.no_grad():
        size = features_of(looker.tower, looker.named.frames[:400]).pow(2).mean().sqrt()
        for weight in last.parameters():
            weight.div_(size)
        labels.weight.mul_(size)


def speech_loss(
    lm_head: Any, truth: Any, place: Any, hidden: Any, image: Any, packed: packing.Packed
) -> tuple[Any, dict[str, float]]:
    """Of the answers, and of two things that nobody asks for but that answers rest on.

    For every word of a question, whether all is true up to there: one bit an answer is little to
    learn from. And for every image token behind the first layer, its row and column.

    Args:
        lm_head: from hidden states to tokens.
        truth: a linear map to one logit.
        place: a linear map to the logits of rows and of columns.
        hidden: (rows, length, width), behind the last layer.
        image: (rows, 16, width), behind the first.
        packed: what was asked.
    """
    import torch
    from torch.nn import functional

    weights = torch.from_numpy(packed.weights)
    on = weights > 0
    each = functional.cross_entropy(
        lm_head(hidden[on]), torch.from_numpy(packed.targets)[on], reduction="none"
    )
    said = (each * weights[on]).sum() / weights[on].sum()
    truths = torch.from_numpy(packed.truths)
    known = truths != packing.IGNORED
    so_far = functional.binary_cross_entropy_with_logits(
        truth(hidden[known])[:, 0], truths[known].float()
    )
    cells = torch.arange(vlm.TOKENS).repeat(len(image))
    row, column = place(image).flatten(0, 1).split(vlm.GRID, -1)
    where = functional.cross_entropy(row, cells // vlm.GRID)
    where = where + functional.cross_entropy(column, cells % vlm.GRID)
    numbers = {
        "answer": each[weights[on] == _ANSWER].mean().item(),
        "words": each[weights[on] == 1].mean().item(),
        "truth": so_far.item(),
        "place": where.item(),
    }
    return said + so_far + 0.05 * where, numbers
