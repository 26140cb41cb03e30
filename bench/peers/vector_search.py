"""Other software's searches of all clips: NumPy's product, and Faiss in 32, 16 and 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .runtimes import FAISS

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Scores and rows, `(queries, best)`."""
Search = Callable[[npt.NDArray[np.float32]], Found]

_ADDED = 1 << 16
"""Clips that are added to an index at a time, which bounds the copy in float32."""
_SECOND_LOOK = 4
"""A coarse index returns so many times the clips that are wanted; these are scored exactly."""
_TRAINING = 10_000
"""Clips of the sample from which an index of 8 bits takes the range of each number."""


class Peer(NamedTuple):
    """A search of all clips by other software."""

    name: str
    exact: bool
    """Whether it finds the best clips for sure, up to rounding."""
    search: Search


def peers(clips: npt.NDArray[np.float16], best: int) -> Iterator[Peer]:
    """Yield the searches that can run here; each index is made when it is asked for.

    Args:
        clips: `(clips, dim)`.
        best: how many clips of a query are found.
    """
    yield Peer("numpy product and partition", True, _by_product(clips, best))
    if not FAISS.installed:
        return
    import faiss

    dim = clips.shape[1]
    product, kinds = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer

    def second_look(index: Any) -> Search:
        def search(queries: npt.NDArray[np.float32]) -> Found:
            _, found = index.search(queries, _SECOND_LOOK * best)
            return rescored(queries, clips, found, best)

        return search

    yield Peer("faiss flat", True, _filled(faiss.IndexFlatIP(dim), clips, best))
    half = faiss.IndexScalarQuantizer(dim, kinds.QT_fp16, product)
    yield Peer("faiss fp16", True, _filled(half, clips, best))
    codes = faiss.IndexScalarQuantizer(dim, kinds.QT_8bit, product)
    _filled(codes, clips, best)
    yield Peer("faiss 8-bit, second look", False, second_look(codes))


def _filled(index: Any, clips: npt.NDArray[np.float16], best: int) -> Search:
    """Train an index, add the clips, and return its search."""
    sample = np.random.default_rng(0).permutation(len(clips))
    index.train(clips[np.sort(sample[:_TRAINING])].astype(np.float32))
    for first in range(0, len(clips), _ADDED):
        index.add(clips[first : first + _ADDED].astype(np.float32))
    return lambda queries: index.search(queries, best)


def rescored(
    queries: npt.NDArray[np.float32], clips: npt.NDArray[np.float16], found: Any, best: int
) -> Found:
    """Return the best of the clips that a coarse index found, by their exact products."""
    scores = np.full(found.shape, -np.inf, np.float32)
    for query, rows, out in zip(queries, found, scores, strict=True):
        some = rows >= 0
        out[some] = clips[rows[some]].astype(np.float32) @ query
    order = np.argsort(-scores, axis=1, kind="stable")[:, :best]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)


def _by_product(clips: npt.NDArray[np.float16], best: int) -> Search:
    rows = clips.astype(np.float32)
    return lambda queries: _best(queries @ rows.T, best)


def _best(scores: npt.NDArray[np.float32], best: int) -> Found:
    rows = np.argpartition(-scores, best - 1, axis=1)[:, :best]
    found = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(rows, order, axis=1)
