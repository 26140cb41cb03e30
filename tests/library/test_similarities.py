"""The similarity of stretches, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.corpora import unit

from granalign_fast.library import similarities as module
from granalign_fast.library.similarities import Compared, rough_means, similarities

LENGTHS = [75, 3, 75, 1, 40, 75, 6, 5, 75]
EDGES = np.cumsum([0, *LENGTHS])


def queries(rng: np.random.Generator, counts: list[int]) -> list[Compared]:
    weights = [np.arange(1, count + 1, dtype=np.float32) for count in counts]
    return [Compared(unit(rng, len(one), 48, np.float32), one / one.sum()) for one in weights]


def test_means_and_best_clips_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    rows, asked = unit(rng, int(EDGES[-1]), 48, np.float16), queries(rng, [1, 6, 130])
    wanted = [np.arange(9), np.array([0, 3, 8]), np.array([1, 2, 4, 6])]
    for query, some, got in zip(
        asked, wanted, similarities(rows, EDGES, wanted, asked), strict=True
    ):
        for stretch, mean, best in zip(some, *got, strict=True):
            part = rows[EDGES[stretch] : EDGES[stretch + 1]].astype(np.float64)
            cosines = query.rows.astype(np.float64) @ part.T
            means = [np.sort(one)[-5:].mean() for one in cosines]
            assert mean == pytest.approx(np.dot(query.weights, means), abs=1e-6)
            weighted = query.weights @ cosines
            assert weighted[best - EDGES[stretch]] == pytest.approx(weighted.max(), abs=1e-6)


def test_a_stretch_has_the_same_bits_whatever_else_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    rows, asked = unit(rng, int(EDGES[-1]), 48, np.float16), queries(rng, [4, 4, 7])
    every = [np.arange(9)] * 3
    together = similarities(rows, EDGES, every, asked)
    monkeypatch.setattr(module, "_WORTH_THREADS", 0)
    monkeypatch.setattr(module, "_BLOCK", 100)
    threaded = similarities(rows, EDGES, every, asked)
    for query, one, other in zip(asked, together, threaded, strict=True):
        assert one.means.tobytes() == other.means.tobytes()
        for stretch in range(9):
            (alone,) = similarities(rows, EDGES, [np.array([stretch])], [query])
            assert alone.means[0] == one.means[stretch]
            assert alone.best[0] == one.best[stretch]


def test_nothing_is_compared_with_nothing() -> None:
    rng = np.random.default_rng(2)
    rows, none = unit(rng, int(EDGES[-1]), 48, np.float16), np.empty(0, np.int64)
    (got,) = similarities(rows, EDGES, [none], queries(rng, [2]))
    assert (len(got.means), len(got.best)) == (0, 0)
    assert similarities(rows, EDGES, [], []) == []


def test_rough_means_are_the_means_up_to_rounding() -> None:
    rng = np.random.default_rng(3)
    rows, asked = unit(rng, int(EDGES[-1]), 48, np.float16), queries(rng, [1, 6, 130])
    some = np.array([0, 1, 3, 5, 8])
    exact = similarities(rows, EDGES, [some] * 3, asked)
    rough = rough_means(rows, EDGES, some, asked)
    np.testing.assert_allclose(rough, [one.means for one in exact], atol=1e-6)
