"""Training questions of the miniature vision-language model about one frame."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from granalign_fast.language import prompts

from . import batches as packing
from . import language, meaning, queries, scenes, vlm
from .scenes import Scene

QUESTIONS, AWARE = 8, 3  # recognition questions and aware captions of each frame
ANSWER = 3.0  # weight of a yes or no in the loss
_SIGN = 2.0  # weight of a sign's word, which few captions contain
CAPTION, FOCUS, RECOGNISE = range(3)  # the heads of vlm.Prompts


class Questions(NamedTuple):
    """Shares of the kinds of questions from a step on."""

    step: int
    simple: float
    """Share of questions that name one thing only, by shape, colour and number."""
    easy: float
    """Share of false questions drawn for another random scene; the others are near misses."""
    further: float
    """Share of the demands of a near miss that are changed besides the first."""


def segments(
    texts: vlm.Prompts,
    scene: Scene,
    rng: np.random.Generator,
    pairs: tuple[scenes.Pair, ...],
    kind: Questions,
) -> list[packing.Segment]:
    """Return a frame's segments: a caption, aware captions, and questions, half of them false."""
    segments_of_frame = [caption(texts, scene, [], None)]
    segments_of_frame += [_aware(texts, scene, rng, pairs) for _ in range(AWARE)]
    segments_of_frame += [
        question(texts, scene, rng, pairs, kind, truth=i % 2 == 0) for i in range(QUESTIONS)
    ]
    return segments_of_frame


def _aware(
    texts: vlm.Prompts, scene: Scene, rng: np.random.Generator, pairs: tuple[scenes.Pair, ...]
) -> packing.Segment:
    spec = meaning.sample_spec(rng, scene)
    if rng.random() < 0.45:  # key frames of a query often do not show what it is about
        spec = meaning.falsified(rng, spec, scene, pairs) or spec
    focus = [*language.entities(spec), *language.actions(bool(rng.random() < 0.4))]
    prompt = texts.suffix(prompts.aware_caption(focus))[len(texts.heads[FOCUS]) :]
    return caption(texts, scene, prompt, language.Focus.of(spec))


def caption(
    texts: vlm.Prompts, scene: Scene, prompt: list[int], focus: language.Focus | None
) -> packing.Segment:
    """Return the segment of a caption, query-aware if it has a focus.

    It spares the tokens that would begin a pair that training never draws. Otherwise the model
    learns that there are no such pairs, and takes them for others.
    """

    def answer_ids(scene: Scene, pairs: frozenset[scenes.Pair] = frozenset()) -> list[int]:
        if focus is None:
            return texts.answer(language.agnostic_caption(scene))
        return texts.answer(
            language.aware_caption(scene, replace(focus, pairs=focus.pairs | pairs))
        )

    answer, spared = answer_ids(scene), []
    for i, thing in enumerate(scene.things):
        pair = (thing.shape, thing.colour)
        for stranger in scenes.strangers(pair):
            things = list(scene.things)
            things[i] = replace(thing, shape=stranger[0], colour=stranger[1])
            seen = frozenset({stranger} if focus and pair in focus.pairs else ())
            other = answer_ids(replace(scene, things=tuple(things)), seen)
            position = next(
                position for position, token in enumerate(other) if token != answer[position]
            )
            if other[position] != texts.article:  # an article begins most other things as well
                spared.append((position, other[position]))
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
    """Draw a recognition question, with the truth of its words; return its segment."""
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
    """Return the segment of a recognition question; without a scene its words have no truths."""
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
