from __future__ import annotations

import math

import numpy as np
import pytest

from granalign_fast.library.stretches import stretch_edges, stretches_of
from granalign_fast.library.words import (
    LENGTH_SHARE,
    SATURATION,
    Collection,
    PostingsBuilder,
    query_words,
    split_words,
    word_scores,
)

DOCUMENTS = [
    ["a red car", "a red car on a road"],
    ["two dogs"],
    ["a man washes a car", "a man"],
    ["nothing at all", "a dog"],
]
QUERIES = [["a red car", "the red vehicle"], ["dog"], ["unicorn"], ["Dog, dogs!"]]


def expected(documents: list[list[str]], texts: list[str]) -> list[float]:
    """BM25 over what a document would get that has each word without end, by plain loops."""
    split = [[word for text in one for word in split_words(text)] for one in documents]
    words = [word for text in texts for word in split_words(text)]
    mean = sum(map(len, split)) / len(split)

    def idf(word: str) -> float:
        holding = sum(word in one for one in split)
        return math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))

    scores = []
    for one in split:
        norm = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * len(one) / mean)
        gains = (idf(word) * one.count(word) / (one.count(word) + norm) for word in words)
        scores.append(sum(gains) / sum(map(idf, words)))
    return scores


@pytest.mark.parametrize("cut", [[4], [1, 3], [0, 2, 2]])
def test_scores_are_those_of_the_formula_however_the_documents_are_split(cut: list[int]) -> None:
    parts, begin = [], 0
    for size in cut:
        builder = PostingsBuilder()
        for document in DOCUMENTS[begin : begin + size]:
            builder.add(document)
        begin += size
        parts.append(builder.build())
    collection = Collection([(part, None) for part in parts])
    scores = word_scores(parts, [query_words(texts) for texts in QUERIES], collection)
    assert [part.shape for part in scores] == [(4, size) for size in cut]
    got = np.concatenate(scores, axis=1)
    wanted = [expected(DOCUMENTS, texts) for texts in QUERIES]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    assert (got[2] == 0).all()


def test_documents_that_do_not_count_change_no_score() -> None:
    builder = PostingsBuilder()
    for document in [["a red red dog"], *DOCUMENTS, ["a vehicle"], ["dog"] * 9]:
        builder.add(document)
    part = builder.build()
    counts = np.array([False, True, True, True, True, False, False])
    (got,) = word_scores(
        [part], [query_words(texts) for texts in QUERIES], Collection([(part, counts)])
    )
    wanted = [expected(DOCUMENTS, texts) for texts in QUERIES]
    np.testing.assert_allclose(got[:, counts], wanted, rtol=1e-5, atol=1e-7)


def test_stretches_cover_a_video_in_equal_parts() -> None:
    for clips, seconds in [(1, 2.0), (75, 2.0), (76, 2.0), (5400, 2.0), (10, 600.0), (7, 0.5)]:
        edges = stretch_edges(clips, seconds)
        lengths = np.diff(edges)
        assert (edges[0], edges[-1]) == (0, clips)
        assert lengths.min() >= 1
        assert lengths.max() - lengths.min() <= 1
        assert lengths.max() * seconds < 152 or lengths.max() == 1
    assert [column.tolist() for column in stretches_of([(100, 2.0), (3, 2.0)])] == [
        [0, 50, 100, 103],
        [0, 0, 1],
    ]
