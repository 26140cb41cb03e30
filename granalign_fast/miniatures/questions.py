"""What the miniature vision-language model is asked about one frame in training."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from granalign_fast.language import prompts

from . import batches as packing
from . import language, meaning, queries, scenes, vlm
from .scenes import Scene

QUESTIONS, AWARE = 8, 3  # of each frame, behind one prefix
ANSWER = 3.0  # the weight of a yes or no
_SIGN = 2.0  # of the word on a sign, which few captions have
CAPTION, FOCUS, RECOGNISE = range(3)  # the heads of vlm.Prompts


class Questions(NamedTuple):
    """What is asked from some step on, as shares."""

    step: int
    simple: float
    """Questions that name one thing, by its shape, colour and number."""
    easy: float
    """False ones that are true of another scene; the others are nearly true of this one."""
    further: float
    """Demands of these that are changed beside the one that is in any case."""


def segments(
    texts: vlm.Prompts,
    scene: Scene,
    rng: np.random.Generator,
    pairs: tuple[scenes.Pair, ...],
    kind: Questions,
) -> list[packing.Segment]:
    """What is asked of one frame: a caption, aware captions and questions, half of them false."""
    made = [caption(texts, scene, [], None)]
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
    return caption(texts, scene, prompt, language.Focus.of(spec))


def caption(
    texts: vlm.Prompts, scene: Scene, prompt: list[int], focus: language.Focus | None
) -> packing.Segment:
    """A caption, aware if it has a focus.

    It spares what would tell of a pair that training never draws. Otherwise the model learns that
    there are no such pairs, and takes them for others.
    """

    def told(scene: Scene, pairs: frozenset[scenes.Pair] = frozenset()) -> list[int]:
        if focus is None:
            return texts.answer(language.agnostic_caption(scene))
        return texts.answer(
            language.aware_caption(scene, replace(focus, pairs=focus.pairs | pairs))
        )

    answer, spared = told(scene), []
    for i, thing in enumerate(scene.things):
        pair = (thing.shape, thing.colour)
        for stranger in scenes.strangers(pair):
            things = list(scene.things)
            things[i] = replace(thing, shape=stranger[0], colour=stranger[1])
            seen = frozenset({stranger} if focus and pair in focus.pairs else ())
            other = told(replace(scene, things=tuple(things)), seen)
            at = next(at for at, token in enumerate(other) if token != answer[at])
            if other[at] != texts.article:  # which begins most other things as well
                spared.append((at, other[at]))
    weights = [_SIGN if token in texts.sign_words else 1.0 for token in answer]
    head = CAPTION if focus is None else FOCUS
    return packing.Segment(head, prompt, answer, weights, spared=spared)


def question(
    texts: vlm.Prompts,
    scene: Scene,
    rng: np.random.Generator,
    pairs: tuple[scenes.Pair, ...],
    kind: Questions,
    *,
    truth: bool,
) -> packing.Segment:
    """A question of recognition, with what is true of its words."""
    simple = rng.random() < kind.simple
    sample = meaning.simple_spec if simple else meaning.sample_spec
    spec = sample(rng, scene)
    if not truth:
        if rng.random() < kind.easy:
            spec = sample(rng, scenes.sample_scene(rng))
        else:
            spec = meaning.falsified(rng, spec, scene, pairs) or spec
            for demand in meaning.demands(spec):
                if rng.random() < kind.further:
                    spec = meaning.falsified(rng, spec, scene, pairs, (demand,)) or spec
    query = queries.sample_query(rng, spec, pairs)
    return ask(texts, query, spec.holds(scene), scene)


def ask(
    texts: vlm.Prompts, query: queries.Query, truth: bool, scene: Scene | None = None
) -> packing.Segment:
    """The segment of one question; without a scene no word has a truth."""
    prompt = texts.suffix(prompts.recognition(query.text))[len(texts.heads[RECOGNISE]) :]
    answer = texts.answer("yes" if truth else "no")
    weights = [ANSWER] + [0.05] * (len(answer) - 1)
    truths = [(packing.IGNORED, packing.IGNORED)] * len(prompt)
    if scene:
        for i, (alone, so_far) in enumerate(zip(query.alone, query.so_far, strict=True)):
            truths[i] = _truth(alone, scene), _truth(so_far, scene)  # one token a word
    return packing.Segment(RECOGNISE, prompt, answer, weights, truths)


def _truth(spec: meaning.Spec | None, scene: Scene) -> int:
    return packing.IGNORED if spec is None else int(spec.holds(scene))
