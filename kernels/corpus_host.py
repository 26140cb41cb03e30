"""`corpus` on the host: float32 products block by block, exact scores for what may be best.

One or two queries are summed by `numpy.vecdot`, whose order of additions is the same for every row:
equal clips have equal scores. More queries are multiplied as matrices, which is faster; there the
order depends on a row's place. These products only choose the clips that may be among the best,
with a bound on both sums' rounding; those are then scored by `numpy.vecdot` too.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from .launch import SERIAL_PRODUCT

Keys = npt.NDArray[np.uint64]
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]

_BLOCK = 1024  # clips of a block: at 384 numbers 1.5 MB of float32, near a core's second cache
_LONG_BLOCK = 8192  # of float32 that is summed where it lies: fewer turns between threads
_TAKEN = 1 << 14  # clips that a thread takes at a time
_SUMMED = 2  # queries up to which sums cost less than a product and its exact second look
_WORTH_WAKING = 1 << 15  # numbers of all queries, from which on OpenBLAS has work for many cores
_WORTH_A_THREAD = 1 << 23  # multiplications that take some milliseconds
_PAIRS = 4096  # pairs of query and clip that are scored at a time
_SHRUNK = 2.0**-112  # rows of float16 are this times their numbers, see `widen`
_GROWN = 2.0**111  # queries of float16 clips are this times theirs: no finite one overflows
_HALF_INFINITE = 65536.0 * _SHRUNK  # what an infinite float16 becomes; NaN is above
_UNIT = 2.0**-24  # the rounding of float32


def sort_keys(scores: _Floats, rows: _Ints) -> Keys:
    """Return keys that are greater for a better score, then for a lower row. Never 0.

    NaN is above all numbers, and -0 equals 0.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0: they are equal
    negative = bits >> np.uint32(31) != 0
    bits = np.where(negative, ~bits, bits | np.uint32(1 << 31))
    bits[np.isnan(scores)] = 0xFFFFFFFF
    keys: Keys = bits.astype(np.uint64) << np.uint64(32) | ~rows.astype(np.uint32)
    return keys


def key_scores(keys: Keys) -> _Floats:
    """Return the scores of keys; 0 stands for no clip, and gives -inf."""
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    positive = bits >> np.uint32(31) != 0
    bits = np.where(positive, bits & np.uint32((1 << 31) - 1), ~bits)
    return np.where(keys == 0, np.float32(-np.inf), bits.view(np.float32))


def key_rows(keys: Keys) -> _Ints:
    """Return the rows of keys; 0 stands for no clip, and gives -1."""
    return np.where(keys == 0, -1, (~keys & np.uint64(0xFFFFFFFF)).astype(np.int64))


def best_keys(
    queries: npt.NDArray[Any], clips: npt.NDArray[Any], k: int, *, finite: bool = False
) -> Keys:
    """Return the keys of the `k` best clips of each query, `(queries, k)`, the best first.

    Args:
        queries: `(queries, dim)` float32 or float16.
        clips: `(clips, dim)`, same dtype; it may be a memory map.
        k: at least 1.
        finite: whether no clip holds NaN or infinity, so that float16 is not searched for them.
    """
    total = len(clips)
    asked = Asked(queries, clips.dtype)
    threads = 1  # OpenBLAS brings its own
    if queries.size < _WORTH_WAKING:
        threads = max(min(cores(), total * queries.size // _WORTH_A_THREAD), 1)
    # Whichever thread is free takes the next rows: the cores may be busy with other work.
    numbers = itertools.count()
    step = _TAKEN if threads > 1 else max(total, 1)

    def scan() -> Keys:
        best = _Best(len(queries), k)
        while (begin := next(numbers) * step) < total:
            _scan(best, asked, clips, begin, min(begin + step, total), finite)
        best.settle()
        return best.keys

    if threads == 1:
        return _quietly(scan)[:, ::-1]
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(_quietly, scan) for _ in range(threads)]
        keys = np.concatenate([job.result() for job in jobs], axis=1)
    return np.sort(keys, axis=1)[:, : -k - 1 : -1]


def _quietly(scan: Callable[[], Keys]) -> Keys:
    """Scan without warnings of NaN and infinity, which are reported by their ranks."""
    with np.errstate(invalid="ignore", over="ignore"):  # of this thread alone
        return scan()


def some_keys(asked: Asked, number: int, clips: npt.NDArray[Any], rows: _Ints) -> Keys:
    """Return the keys of some clips for one query, with scores bit for bit as `corpus` has them.

    Args:
        asked: the queries.
        number: of the query.
        clips: `(clips, dim)`, finite.
        rows: `(some,)`, of clips.
    """
    part = clips[rows]
    if part.dtype == np.float16:
        part = widen(part, np.empty(part.shape, np.int32))
    scores = np.empty(len(rows), np.float32)
    np.vecdot(part, asked.rows[number], out=scores)
    scores *= asked.scale
    return sort_keys(scores, rows)


def row_scores(queries: npt.NDArray[Any], rows: npt.NDArray[Any]) -> _Floats:
    """Return the inner product of each query with every row, bit for bit as `corpus` has it.

    Args:
        queries: `(queries, dim)` float32 or float16.
        rows: `(rows, dim)` float32 or float16, C-contiguous.

    Returns:
        `(queries, rows)`.
    """
    asked = Asked(queries, rows.dtype)
    scores = np.empty((len(queries), len(rows)), np.float32)
    for first, part, _ in _blocks(rows, 0, len(rows), bounded=True):
        for query, out in zip(asked.rows, scores, strict=True):
            np.vecdot(part, query, out=out[first : first + len(part)])
    scores *= asked.scale
    return scores


class Asked:
    """Queries as they are multiplied with blocks of clips.

    Attributes:
        rows: `(queries, dim)` float32.
        scale: by which a product with a block's rows is multiplied to become the score. It is a
            power of two, so that scores have the bits that plain float32 gives.
    """

    def __init__(self, queries: npt.NDArray[Any], clips: Any) -> None:
        self.rows: _Floats = np.ascontiguousarray(queries, dtype=np.float32)
        self.scale = np.float32(1)
        if clips == np.float16:
            self.rows = self.rows * np.float32(_GROWN)
            self.scale = np.float32(1 / _SHRUNK / _GROWN)


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Best:
    """The best clips of each query so far, and later ones that may be among them."""

    def __init__(self, count: int, k: int) -> None:
        self.keys: Keys = np.zeros((count, k), dtype=np.uint64)
        """The best, ascending; 0 where there are fewer."""
        self.bars = np.full(count, np.nan, dtype=np.float32)
        """The least score that is kept; NaN as long as every clip is, since nothing is below it."""
        self._k = k
        self._waiting: list[tuple[_Ints, Keys]] = []
        self._room = max(2 * count * k, 1 << 14)

    def offer(self, numbers: _Ints, scores: _Floats, rows: _Ints) -> None:
        """Add clips.

        Args:
            numbers: of the queries, one for each clip that is offered.
            scores: exact ones.
            rows: of the clips.
        """
        self._waiting.append((numbers, sort_keys(scores, rows)))
        self._room -= len(numbers)
        # The bars are not yet known after the first block.
        if self._room < 0 or np.isnan(self.bars).any():
            self.settle()

    def settle(self) -> None:
        """Sort out the clips that were added, and raise the bars."""
        count, k = self.keys.shape
        if not self._waiting or count == 0:
            return
        kept = np.repeat(np.arange(count), k)
        numbers = np.concatenate([kept, *(numbers for numbers, _ in self._waiting)])
        keys = np.concatenate([self.keys.reshape(-1), *(keys for _, keys in self._waiting)])
        order = np.lexsort((keys, numbers))
        # Each query has at least the `k` keys that it had before: take the last `k` of its run.
        ends = np.cumsum(np.bincount(numbers, minlength=count))
        self.keys = keys[order[ends[:, None] - k + np.arange(k)]]
        least = self.keys[:, 0]
        self.bars = np.where(least == 0, np.float32(np.nan), key_scores(least))
        self._waiting.clear()
        self._room = max(2 * count * k, 1 << 14)


def _scan(
    best: _Best, asked: Asked, clips: npt.NDArray[Any], begin: int, end: int, finite: bool
) -> None:
    """Offer the clips of the rows from `begin` up to `end`."""
    count, dim = asked.rows.shape
    summed = count <= _SUMMED
    sizes = np.abs(asked.rows).sum(axis=1, dtype=np.float64) * float(asked.scale)
    # Two sums of `dim` products: either is off by at most dim * unit * (sum of absolute products).
    rounding = 4.0 * dim * _UNIT * sizes
    searched = clips.dtype == np.float16 and not finite  # for NaN and infinity
    for first, rows, most in _blocks(clips, begin, end, bounded=searched or not summed):
        slack = rounding * most
        if summed or not np.isfinite(slack).all():
            _add_sums(best, asked, rows, first)
        else:
            _add_products(best, asked, rows, first, slack.astype(np.float32))


def _blocks(
    clips: npt.NDArray[Any], begin: int, end: int, *, bounded: bool
) -> Iterator[tuple[int, _Floats, float]]:
    """Yield blocks of rows as float32, each with its first row and its greatest absolute number.

    The number is infinite if the block holds a NaN, and 0 where it is not wanted; float16 may then
    hold neither NaN nor infinity. Rows of float16 are multiplied by `_SHRUNK`, and overwritten by
    the next block.
    """
    half = clips.dtype == np.float16
    step = _BLOCK if half or bounded else _LONG_BLOCK
    buffer = np.empty((min(step, end - begin) if half else 0, clips.shape[1]), np.int32)
    for first in range(begin, end, step):
        part = clips[first : min(first + step, end)]
        rows: _Floats = widen(part, buffer[: len(part)]) if half else part
        most = 0.0
        if bounded:
            most = max(float(rows.max(initial=0)), -float(rows.min(initial=0)))
        if half and not most < _HALF_INFINITE:
            rows, most = part.astype(np.float32) * np.float32(_SHRUNK), np.inf
        yield first, rows, most if most == most else np.inf


def widen(part: npt.NDArray[Any], buffer: npt.NDArray[np.int32]) -> _Floats:
    """Return float16 numbers as float32 times `_SHRUNK`, in `buffer`.

    The sign stays the highest bit, and exponent and mantissa move to where float32 has them. There
    the exponent counts from another zero, which is the factor; it is exact, for subnormal numbers
    too. Infinite numbers and NaN become finite, from `_HALF_INFINITE` on. NumPy's own conversion
    takes six times as long.
    """
    rows: _Floats = widen_pieces([part], buffer[None])[0]
    return rows


def widen_pieces(pieces: Sequence[npt.NDArray[Any]], buffer: npt.NDArray[np.int32]) -> _Floats:
    """Return what `widen` returns of each of some equally long pieces, without copies of them.

    Args:
        pieces: each `(rows, dim)`, float16.
        buffer: `(pieces, rows, dim)`.
    """
    for part, out in zip(pieces, buffer, strict=True):
        np.copyto(out, part.view(np.int16))  # the sign fills the upper bits
    np.left_shift(buffer, 13, out=buffer)
    np.bitwise_and(buffer, np.int32(~0x70001FFF), out=buffer)
    return buffer.view(np.float32)


def _add_sums(best: _Best, asked: Asked, rows: _Floats, first: int) -> None:
    """Offer the clips of a block by exact scores, without a product before."""
    scores = np.empty((len(asked.rows), len(rows)), np.float32)
    for query, out in zip(asked.rows, scores, strict=True):
        np.vecdot(rows, query, out=out)
    scores *= asked.scale
    # An equal score in a later row is not better. Not "greater": a NaN must pass.
    passes = ~(scores <= best.bars[:, None])
    if (parted := _kth(best, scores)) is not None:
        passes &= ~(scores < parted[:, None])
    numbers, places = np.nonzero(passes)
    if len(numbers):
        best.offer(numbers, scores[numbers, places], first + places)


def _kth(best: _Best, scores: _Floats) -> _Floats | None:
    """Return the k-th best score of a block for each query, where there are no `k` clips yet.

    Those below it are surely not among the best. None where the bars say more, or the block is
    short.
    """
    k, clips = best.keys.shape[1], scores.shape[1]
    if k >= clips or not np.isnan(best.bars).any():
        return None
    return np.asarray(np.partition(scores, clips - k, axis=1)[:, clips - k])


def _add_products(best: _Best, asked: Asked, rows: _Floats, first: int, slack: _Floats) -> None:
    """Offer the clips of a block whose product says that they may be among the best."""
    found = products(asked.rows, rows)
    found *= asked.scale
    floors = best.bars - slack
    if (parted := _kth(best, found)) is not None:
        floors = np.where(np.isnan(floors), parted - slack, floors)
    numbers, places = np.nonzero(~(found < floors[:, None]))
    if not len(numbers):
        return
    scores = np.empty(len(numbers), np.float32)
    for start in range(0, len(numbers), _PAIRS):
        some = slice(start, start + _PAIRS)
        pairs = asked.rows[numbers[some]], rows[places[some]]
        np.vecdot(*pairs, out=scores[some])
    scores *= asked.scale
    best.offer(numbers, scores, first + places)


def products(asked: _Floats, rows: _Floats, *, alone: bool = False) -> _Floats:
    """Return ``asked @ rows.T``, in products that OpenBLAS computes on this thread unless large.

    Args:
        asked: `(queries, dim)`.
        rows: `(rows, dim)`.
        alone: whether other threads have work of their own, so that large ones stay on this too.
    """
    count, dim = asked.shape
    if asked.size >= _WORTH_WAKING and not alone:
        return np.asarray(asked @ rows.T)
    found = np.empty((count, len(rows)), np.float32)
    across = min(count, 16)
    along = max(SERIAL_PRODUCT // (across * dim), 16)
    for query in range(0, count, across):
        for clip in range(0, len(rows), along):
            some = slice(query, query + across), slice(clip, clip + along)
            np.matmul(asked[some[0]], rows[some[1]].T, out=found[some])
    return found
