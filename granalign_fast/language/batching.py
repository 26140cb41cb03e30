"""The clips of many searches in common batches: which of them, and what is asked about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.types import FrameSet, check_queries

CPU_PADDED_TOKENS = 128
"""Tokens of a batch on a CPU from which on only questions of equal lengths join it."""

Form = tuple[int, float]
"""The frames of a clip and the seconds between two of them, as `FrameSet.form` has them."""

Place = tuple[int, int, int]
"""The place of an answer: the number of the target, and of the query and the clip within it."""


class Question(NamedTuple):
    """Whether a clip shows a query.

    Attributes:
        clip: its number among the different clips.
        query: in words.
        places: of the answer: equal clips and queries have one.
    """

    clip: int
    query: str
    places: list[Place]


def by_form(sets: Sequence[FrameSet]) -> dict[Form, list[int]]:
    """Return the numbers of the sets whose clips have a form, for each form.

    Prefixes of clips of different forms differ in length, and make batches of their own.
    """
    numbers: dict[Form, list[int]] = {}
    for number, some in enumerate(sets):
        numbers.setdefault(some.form, []).append(number)
    return numbers


def questions(
    targets: Sequence[tuple[FrameSet, Sequence[str]]],
) -> tuple[FrameSet, list[list[Question]]]:
    """Return the different clips of all targets, and what is asked about each of them.

    Args:
        targets: clips, all of one form, and queries about each of them.
    """
    numbers: dict[str, int] = {}  # of each clip, by its hash
    asked: list[dict[str, Question]] = []  # about each clip, by query
    taken: list[int] = []
    first = 0
    for target, (frames, queries) in enumerate(targets):
        for column, key in enumerate(frames.hashes):
            clip = numbers.setdefault(key, len(asked))
            if clip == len(asked):
                asked.append({})
                taken.append(first + column)
            for row, query in enumerate(queries):
                question = asked[clip].setdefault(query, Question(clip, query, []))
                question.places.append((target, row, column))
        first += len(frames)
    clips = FrameSet.joined([frames for frames, _ in targets]).take(taken)
    return clips, [list(about.values()) for about in asked]


def recognised(
    targets: Sequence[tuple[FrameSet, Sequence[str]]],
    ask: Callable[[FrameSet, Sequence[Sequence[Question]]], Iterable[tuple[Place, float]]],
) -> list[npt.NDArray[np.float32]]:
    """Return how likely each clip of each target shows each of its queries, `(queries, clips)`.

    Args:
        targets: clips, and queries about each of them.
        ask: gets different clips of one form, and the questions about each; it yields the place of
            each answer, and the probability of a yes.

    Raises:
        GranAlignError: a query is empty or not valid text.
    """
    for _, queries in targets:
        check_queries(queries)
    found = [np.empty((len(queries), len(frames)), np.float32) for frames, queries in targets]
    for some in by_form([frames for frames, _ in targets]).values():
        clips, asked = questions([targets[number] for number in some])
        for (target, query, clip), share in ask(clips, asked):
            found[some[target]][query, clip] = share
    return found


def batches(
    asked: Sequence[Question], lengths: Mapping[str, int], rows: int, tokens: int | None
) -> Iterator[list[Question]]:
    """Yield the questions of each batch, those of about equal lengths together.

    The rows of a batch are padded to the longest. On a CPU a token of padding takes as long as any
    other; but a batch of few tokens takes as long as it takes to read the weights.

    Args:
        asked: the questions.
        lengths: tokens of the prompt about each query, without the clip.
        rows: of a batch, at most.
        tokens: of a batch, from which on only questions of equal lengths join it; None for none.

    >>> asked = [Question(0, query, [(0, row, 0)]) for row, query in enumerate("abc")]
    >>> [len(batch) for batch in batches(asked, {"a": 9, "b": 12, "c": 12}, 64, 20)]
    [2, 1]
    """
    batch: list[Question] = []
    longest = 0
    for question in sorted(asked, key=lambda question: -lengths[question.query]):
        length = lengths[question.query]
        apart = length != longest and tokens is not None and len(batch) * longest >= tokens
        if batch and (len(batch) == rows or apart):
            yield batch
            batch = []
        longest = longest if batch else length
        batch.append(question)
    if batch:
        yield batch
