"""Questions of many searches in common batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from granalign_fast.language.batching import Question, batches, by_form, questions
from granalign_fast.types import FrameSet


def frames(*values: int, frames_per_clip: int = 1) -> FrameSet:
    shape = (4, 6, 3) if frames_per_clip == 1 else (frames_per_clip, 4, 6, 3)
    return FrameSet.of([np.full(shape, value, np.uint8) for value in values])


def test_equal_clips_of_several_targets_are_one() -> None:
    targets = [(frames(1, 2), ["a", "b"]), (frames(2, 3, 1), ["c", "a"]), (frames(4), [])]
    clips, asked = questions(targets)
    assert [image[0, 0, 0] for image in clips.load(range(len(clips)))] == [1, 2, 3, 4]
    assert [[(q.query, q.places) for q in some] for some in asked] == [
        [("a", [(0, 0, 0), (1, 1, 2)]), ("b", [(0, 1, 0)]), ("c", [(1, 0, 2)])],
        [("a", [(0, 0, 1), (1, 1, 0)]), ("b", [(0, 1, 1)]), ("c", [(1, 0, 0)])],
        [("c", [(1, 0, 1)]), ("a", [(1, 1, 1)])],
        [],
    ]
    assert all(question.clip == clip for clip, some in enumerate(asked) for question in some)


@pytest.mark.parametrize("seed", range(30))
def test_every_question_is_asked_once_in_batches_within_bounds(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = {str(query): int(draw.integers(1, 40)) for query in range(draw.integers(1, 9))}
    asked = [
        Question(clip, query, [(0, row, clip)])
        for clip in range(draw.integers(1, 9))
        for row, query in enumerate(lengths)
    ]
    rows, tokens = int(draw.integers(1, 20)), [None, 1, 64, 256][draw.integers(4)]
    made = list(batches(asked, lengths, rows, tokens))
    assert sorted(q for batch in made for q in batch) == sorted(asked)
    assert max(map(len, made)) <= rows
    sizes = [[lengths[question.query] for question in batch] for batch in made]
    for size in sizes:
        assert size == sorted(size, reverse=True)
        padded = [number for number, length in enumerate(size) if length != size[0]]
        if tokens is not None and padded:
            assert (padded[-1]) * size[0] < tokens  # there were few tokens before it joined
    # No batch ends early: it is full, or the next question has another length.
    for one, other in pairwise(sizes):
        full = tokens is not None and len(one) * one[0] >= tokens and other[0] != one[0]
        assert len(one) == rows or full


def test_sets_by_form() -> None:
    sets = [frames(1), frames(2, frames_per_clip=4), frames(3, 4)]
    assert by_form(sets) == {(1, 0.0): [0, 2], (4, 0.0): [1]}
