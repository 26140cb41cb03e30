"""How well stretches fit queries by their embeddings: the mean cosine of a stretch's best clips.

Every stretch is multiplied with the texts of a query on its own. So its result has the same bits
whatever else is searched at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.kernels.corpus_host import Asked, products, widen_pieces
from granalign_fast.kernels.launch import SERIAL_PRODUCT
from granalign_fast.models.encoder import cpu_threads

BEST_CLIPS = 5
"""Clips of a stretch whose cosines make its similarity: a moment of ten seconds has five."""

_BLOCK = 2048
"""Rows of a block: at 384 numbers 3 MB of float32, which stay near a core for all queries."""
_WORTH_THREADS = 1 << 26
"""Multiplications from which on it pays to share the blocks between threads."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Compared(NamedTuple):
    """The texts of a query, in the space of the rows that they are compared with."""

    rows: Floats
    """`(texts, dim)`: embeddings of the query and its rewrites."""
    weights: Floats
    """`(texts,)`, with the sum 1."""

    @property
    def vector(self) -> Floats:
        """The weighted mean `(dim,)`: its product with a row is the mean of the cosines."""
        return np.asarray(self.weights @ self.rows)


class Similarities(NamedTuple):
    """The evidence of stretches for a query; arrays of one length."""

    means: Floats
    """The mean cosine of the best clips, each text with its own ones, and of that the weighted mean
    over the texts."""
    best: Ints
    """The row with the greatest weighted cosine."""


def similarities(
    rows: npt.NDArray[np.float16],
    edges: Ints,
    wanted: Sequence[Ints],
    queries: Sequence[Compared],
) -> list[Similarities]:
    """Compare stretches with queries; a stretch that several queries want is read once.

    Args:
        rows: `(clips, dim)`, finite.
        edges: `(stretches + 1,)`: stretch *i* has the rows from `edges[i]` to `edges[i + 1]`.
        wanted: for each query the numbers of its stretches, ascending.
        queries: what they are compared with.
    """
    found = [
        Similarities(np.empty(len(some), np.float32), np.empty(len(some), np.int64))
        for some in wanted
    ]
    asked = [Asked(query.rows, rows.dtype) for query in queries]

    def compare(block: Ints) -> None:
        clips = _widened(rows, edges, block)
        for query, one, some, out in zip(queries, asked, wanted, found, strict=True):
            at = np.searchsorted(some, block)
            inside = np.flatnonzero(some.take(at, mode="clip") == block) if len(some) else at[:0]
            if not len(inside):
                continue
            cosines = _exact_products(one.rows, clips, inside)
            cosines *= one.scale
            weights = query.weights[:, None]
            out.means[at[inside]] = (best_means(cosines) * query.weights).sum(axis=1)
            peaks = (cosines * weights).sum(axis=1).argmax(axis=1)
            out.best[at[inside]] = edges[block[inside]] + peaks

    needed, lengths = np.unique(np.concatenate([np.empty(0, np.int64), *wanted])), np.diff(edges)
    work = sum(
        int(lengths[some].sum()) * query.rows.size
        for some, query in zip(wanted, queries, strict=True)
    )
    blocks = _blocks(needed, lengths)
    if work < _WORTH_THREADS:
        for block in blocks:
            compare(block)
        return found
    with ThreadPoolExecutor(cpu_threads(None)) as pool:
        list(pool.map(compare, blocks))
    return found


def rough_means(
    rows: npt.NDArray[np.float16], edges: Ints, stretches: Ints, queries: Sequence[Compared]
) -> Floats:
    """Return the means of `similarities` up to rounding, `(queries, stretches)`.

    All texts are one matrix, whose products take a fraction of the time. Their rounding depends on
    what else is compared, so they only choose the stretches that `similarities` is then asked for.

    Args:
        rows: as all that follow, those of `similarities`.
        edges: of the stretches.
        stretches: those that every query is compared with, ascending.
        queries: at least one.
    """
    asked = Asked(np.concatenate([query.rows for query in queries]), rows.dtype)
    weights = np.concatenate([query.weights for query in queries])[:, None] * asked.scale
    firsts = np.cumsum([0, *(len(query.rows) for query in queries[:-1])])
    means = np.empty((len(queries), len(stretches)), np.float32)

    def compare(block: Ints) -> None:
        clips = _widened(rows, edges, block)
        cosines = products(asked.rows, clips.reshape(-1, clips.shape[2]), alone=True)
        best = best_means(cosines.reshape(len(weights), *clips.shape[:2]))
        at = np.searchsorted(stretches, block)
        means[:, at] = np.add.reduceat(best * weights, firsts, axis=0)

    # Blocks are shared, not products: conversion and means take as long as the products.
    with ThreadPoolExecutor(cpu_threads(None)) as pool:
        list(pool.map(compare, _blocks(stretches, np.diff(edges))))
    return means


def _widened(rows: npt.NDArray[np.float16], edges: Ints, block: Ints) -> npt.NDArray[np.float32]:
    """Return the rows of equally long stretches as `widen` does, `(stretches, clips, dim)`."""
    first = edges[block]
    length = int(edges[block[0] + 1] - first[0])
    buffer = np.empty((len(block), length, rows.shape[1]), np.int32)
    return widen_pieces([rows[begin : begin + length] for begin in first.tolist()], buffer)


def _blocks(numbers: Ints, lengths: Ints) -> list[Ints]:
    """Return stretches in blocks of equally long ones."""
    order = numbers[np.argsort(lengths[numbers], kind="stable")]
    runs = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
    return [part for run in runs if len(run) for part in _parts(run, int(lengths[run[0]]))]


def _parts(run: Ints, length: int) -> Iterator[Ints]:
    step = max(_BLOCK // max(length, 1), 1)
    for first in range(0, len(run), step):
        yield run[first : first + step]


def _exact_products(texts: Floats, clips: npt.NDArray[Any], inside: Ints) -> Floats:
    """Return the products of texts with the clips of some stretches, `(stretches, texts, clips)`.

    Args:
        texts: `(texts, dim)`.
        clips: `(stretches, clips, dim)`.
        inside: the numbers of the stretches.
    """
    _, length, dim = clips.shape
    cosines = np.empty((len(inside), len(texts), length), np.float32)
    step = max(SERIAL_PRODUCT // max(len(texts) * dim, 1), 1)
    for left in range(0, length, step):
        part = slice(left, left + step)
        if len(inside) == len(clips):
            np.matmul(texts, clips[:, part].transpose(0, 2, 1), out=cosines[:, :, part])
            continue
        for out, number in zip(cosines, inside.tolist(), strict=True):  # without a copy of clips
            np.matmul(texts, clips[number, part].T, out=out[:, part])
    return cosines


def best_means(cosines: Floats) -> Floats:
    """Return the mean of the `BEST_CLIPS` greatest numbers of each last axis, or of all it has."""
    length = cosines.shape[-1]
    if length > BEST_CLIPS:
        cosines = np.partition(cosines, length - BEST_CLIPS, axis=-1)[..., length - BEST_CLIPS :]
    return np.asarray(cosines.mean(axis=-1), np.float32)
