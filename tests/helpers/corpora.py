"""Queries and libraries of clips, and checks of what is found in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from granalign_fast.kernels.corpus import Top

from . import reference

# Sums of up to 384 products of unit vectors in float32, in any order. On tensor cores float32 is
# multiplied to 22 bits, and sums may be cut off where float32 would round.
TOLERANCE = 1e-5


def unit(rng: np.random.Generator, rows: int, dim: int, dtype: Any) -> Any:
    values = rng.standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)


def whole(rng: np.random.Generator, rows: int, dim: int, dtype: Any) -> Any:
    """Numbers so round that every sum is exact, and so few that many scores are equal."""
    return rng.integers(-1, 2, (rows, dim)).astype(dtype)


def check(top: Top, queries: Any, clips: Any, k: int) -> None:
    """Each score belongs to its row, and no clip that was left out is better than one kept."""
    assert top.scores.shape == top.rows.shape == (len(queries), k)
    assert top.scores.dtype == np.float32
    assert top.rows.dtype == np.int64
    kept = min(k, len(clips))
    assert (top.rows[:, kept:] == -1).all()
    assert np.isneginf(top.scores[:, kept:]).all()
    exact = np.array(reference.inner_products(queries, clips)).reshape(len(queries), len(clips))
    for query, (scores, rows) in enumerate(zip(top.scores[:, :kept], top.rows, strict=True)):
        rows = rows[:kept]
        assert len(set(rows.tolist())) == kept
        np.testing.assert_allclose(scores, exact[query, rows], rtol=0, atol=TOLERANCE)
        best = [score for score, _ in reference.nearest(exact[query].tolist(), k)]
        np.testing.assert_allclose(scores, best, rtol=0, atol=TOLERANCE)
        ranked = list(zip((-scores).tolist(), rows.tolist(), strict=True))
        assert ranked == sorted(ranked)


def check_exactly(top: Top, queries: Any, clips: Any, k: int) -> None:
    """Where every sum is exact: the same scores and rows, ties and all."""
    for query, exact in enumerate(reference.inner_products(queries, clips)):
        expected = reference.nearest(exact, k)
        expected += [(-np.inf, -1)] * (k - len(expected))
        got = zip(top.scores[query].tolist(), top.rows[query].tolist(), strict=True)
        assert list(got) == expected
