"""`corpus` on the host with 8-bit codes beside the clips: half the bytes, and exact results.

Integer products of codes say of every clip within which bounds its score lies. Only the clips that
may be among the best are then read themselves and scored as `corpus` does without codes. So codes
change no result, and a query that they do not suit is searched without them.

ONNX Runtime multiplies the codes: on CPUs with integer units one query takes as long as sixteen.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .corpus_host import Asked, Keys, cores, some_keys

_LEVELS = 255  # the greatest code
_DIGIT = 64  # greatest size of a query's digit: 2 * 255 * 64 fits in the 16 bits of older CPUs
_PARTS = 128  # parts of a digit that the second digit tells apart
_PRODUCTS = 1 << 19  # of a block: 2 MB, which a core's second cache holds
_LONGEST = 1 << 14  # clips of a block at most
_READ = 4096  # clips that are read at a time to make codes
_SCORED = 4096  # clips that are scored at a time
_UNIT = 2.0**-24  # the rounding of float32
_MOST_DIM = 4096  # numbers of an embedding: sums of products fit in 32 bits

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]


class Codes(NamedTuple):
    """Clips in 8 bits a number: number *j* of a clip is near ``low[j] + step[j] * code``."""

    rows: npt.NDArray[np.uint8]
    """`(clips, dim)`, C-contiguous; it may be a memory map."""
    low: _Floats
    """`(dim,)`: the least value of each number."""
    step: _Floats
    """`(dim,)`: the difference of neighbouring codes."""
    error: float
    """The greatest distance of a clip from its codes."""
    length: float
    """The greatest length of a clip."""

    def part(self, rows: Any) -> Codes:
        """Return the codes of some rows: of a slice, or of row numbers."""
        return self._replace(rows=self.rows[rows])


def make_codes(clips: npt.NDArray[Any]) -> Codes:
    """Return the codes of clips, `(clips, dim)` float32 or float16, finite."""
    low, step = code_range(clips)
    rows = np.empty(clips.shape, np.uint8)
    error = length = 0.0
    for block, codes, off, size in code_blocks(clips, low, step):
        rows[block] = codes
        error, length = max(error, off), max(length, size)
    return Codes(rows, low, step, error, length)


def code_range(clips: npt.NDArray[Any]) -> tuple[_Floats, _Floats]:
    """Return `low` and `step` of the codes of clips, which are read block by block."""
    low = np.full(clips.shape[1], np.inf if len(clips) else 0, np.float32)
    high = -low
    for first in range(0, len(clips), _READ):
        part = clips[first : first + _READ].astype(np.float32)
        low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
    return low, (high - low) / np.float32(_LEVELS)


def code_blocks(
    clips: npt.NDArray[Any], low: _Floats, step: _Floats
) -> Iterator[tuple[slice, npt.NDArray[np.uint8], float, float]]:
    """Yield blocks of rows: where they lie, their codes, and their `error` and `length`."""
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    for first in range(0, len(clips), _READ):
        block = slice(first, min(first + _READ, len(clips)))
        exact = clips[block].astype(np.float64)
        codes = np.clip(np.rint((exact - low) * inverse), 0, _LEVELS)
        off = np.linalg.norm(exact - (low.astype(np.float64) + step * codes), axis=1)
        size = np.linalg.norm(exact, axis=1)
        yield block, codes.astype(np.uint8), float(off.max()), float(size.max())


def coded_keys(
    queries: npt.NDArray[Any], clips: npt.NDArray[Any], codes: Codes, k: int
) -> Keys | None:
    """Return what `best_keys` of `corpus_host` returns, bit for bit; None if codes do not suit.

    Args:
        queries: `(queries, dim)` float32 or float16.
        clips: `(clips, dim)`, same dtype, finite; it may be a memory map.
        codes: of the clips.
        k: at least 1.
    """
    digits = _digits(queries, codes)
    session = _session()
    if digits is None or session is None:
        return None
    total, count = len(clips), len(queries)
    step = max(min(_PRODUCTS // (2 * count), _LONGEST), 256)
    threads = max(min(cores(), total // (2 * step)), 1)
    numbers = itertools.count()

    def scan() -> _Near:
        near = _Near(digits.margins, k)
        while (begin := next(numbers) * step) < total:
            block = codes.rows[begin : begin + step]
            (products,) = session.run(None, {"codes": block, "queries": digits.rows})
            near.offer(_joined(products, digits.parts), begin)
        return near

    if threads == 1:
        near = [scan()]
    else:
        with ThreadPoolExecutor(threads) as pool:
            near = [job.result() for job in [pool.submit(scan) for _ in range(threads)]]
    return _second_look(near[0].join(near[1:]), queries, clips, k)


class _Digits(NamedTuple):
    """Queries as whole numbers, in two digits each."""

    rows: npt.NDArray[np.int8]
    """`(dim, 2 * queries)`: first digits of all queries, then second ones."""
    parts: int
    """The first digit counts so many times."""
    margins: _Ints
    """`(queries,)`: a clip whose product is lower than that of `k` others by more than this is not
    among the best `k`."""


def _digits(queries: npt.NDArray[Any], codes: Codes) -> _Digits | None:
    """Return the digits of queries; None if one is 0 or no number, or has too many numbers."""
    dim = queries.shape[1]
    if dim > _MOST_DIM or not len(queries) or not len(codes.rows):
        return None
    exact = queries.astype(np.float64)
    factors = exact * codes.step
    top = np.abs(factors).max(axis=1)
    if not (np.isfinite(top).all() and (top > 0).all()):
        return None
    # Sums of products of codes and whole queries stay below 2^31.
    parts = min(_PARTS, 1 << (((1 << 31) // (_LEVELS * (_DIGIT + 1) * dim)).bit_length() - 1))
    unit = top / (_DIGIT * parts)
    whole = np.rint(factors / unit[:, None])
    first = np.rint(whole / parts)
    rows = np.concatenate([first, whole - first * parts]).astype(np.int8)
    # What a score can be off: the clip from its codes, the query from its digits, float32 sums.
    size = np.linalg.norm(exact, axis=1)
    left = np.abs(factors - whole * unit[:, None]).sum(axis=1) * _LEVELS
    slack = size * (codes.error + 4.0 * dim * _UNIT * codes.length) + left
    margins = np.ceil(2 * slack / unit * (1 + 1e-6)) + 1
    if not (margins < 1 << 31).all():
        return None
    return _Digits(np.ascontiguousarray(rows.T), parts, margins.astype(np.int64))


def _joined(products: npt.NDArray[np.int32], parts: int) -> npt.NDArray[np.int32]:
    """Return the products of whole queries, `(clips, queries)`, from those of their digits."""
    count = products.shape[1] // 2
    joined = products[:, :count] * np.int32(parts)
    joined += products[:, count:]
    return joined


class _Near:
    """Clips that may be among the best `k` of each query, by the products of their codes."""

    def __init__(self, margins: _Ints, k: int) -> None:
        self._margins, self._k = margins, k
        self._floors = np.full(len(margins), -(1 << 31), np.int64)
        """The least product that may be among the best."""
        self._waiting: list[tuple[_Ints, _Ints, npt.NDArray[np.int32]]] = []
        self._most = self._room = max(4 * len(margins) * k, 1 << 15)

    def offer(self, products: npt.NDArray[np.int32], first: int) -> None:
        """Add a block of clips.

        Args:
            products: `(clips, queries)`.
            first: row of the first clip.
        """
        clips, k = len(products), self._k
        if clips > k and (self._floors == -(1 << 31)).any():
            least = np.partition(products, clips - k, axis=0)[clips - k]
            self._raise(least.astype(np.int64))
        passes = products >= self._floors.astype(np.int32)
        # Of one axis: NumPy's search of two axes takes ten times as long.
        if len(found := np.flatnonzero(passes)):
            places, numbers = np.divmod(found, products.shape[1])
            self._waiting.append((numbers, first + places, products.ravel()[found]))
            self._room -= len(found)
        if self._room < 0:
            self._settle()

    def _raise(self, least: _Ints) -> None:
        """Raise the floors to what the k-th best products leave."""
        floors = np.maximum(least - self._margins, -(1 << 31))
        self._floors = np.maximum(self._floors, floors)

    def _settle(self) -> None:
        """Sort out the clips that later ones have overtaken."""
        numbers, rows, products = self._joined()
        counts = np.bincount(numbers, minlength=len(self._margins))
        full = np.flatnonzero(counts >= self._k)
        # One sort of whole numbers for all queries: NumPy has a fast one for them alone.
        keys = np.sort(numbers << 32 | products.astype(np.int64) + (1 << 31))
        least = np.full(len(counts), -(1 << 31), np.int64)
        least[full] = (keys[np.cumsum(counts)[full] - self._k] & 0xFFFFFFFF) - (1 << 31)
        self._raise(least)
        keep = products >= self._floors[numbers]
        self._waiting = [(numbers[keep], rows[keep], products[keep])]
        # What the margin holds may be more than half of the room.
        self._room = max(self._most - int(keep.sum()), self._most // 2)

    def _joined(self) -> tuple[_Ints, _Ints, npt.NDArray[np.int32]]:
        """Return query, row and product of each clip that waits."""
        columns = zip(*self._waiting, strict=True)
        numbers, rows, products = (np.concatenate(column) for column in columns)
        return numbers, rows, products

    def join(self, others: Sequence[_Near]) -> list[_Ints]:
        """Return the rows of the clips that may be among the best of each query, ascending.

        Args:
            others: found in other clips.
        """
        for other in others:
            self._waiting += other._waiting
            self._floors = np.maximum(self._floors, other._floors)
        self._settle()
        ((numbers, rows, _),) = self._waiting
        # In the order of the clips, neighbours are read together.
        keys = np.sort(numbers << 32 | rows)
        ends = np.cumsum(np.bincount(numbers, minlength=len(self._margins)))
        return np.split(keys & 0xFFFFFFFF, ends[:-1])


def _second_look(found: list[_Ints], queries: npt.NDArray[Any], clips: Any, k: int) -> Keys:
    """Score the clips that may be among the best, and return the keys of those that are."""
    asked = Asked(queries, clips.dtype)

    def best(number: int) -> Keys:
        keys = np.zeros(0, np.uint64)
        for first in range(0, len(found[number]), _SCORED):
            more = some_keys(asked, number, clips, found[number][first : first + _SCORED])
            keys = np.sort(np.concatenate([keys, more]))[-k:]
        return np.concatenate([keys[::-1], np.zeros(k - len(keys), np.uint64)])

    if len(found) == 1:
        return best(0)[None]
    with ThreadPoolExecutor(min(cores(), len(found))) as pool:
        return np.stack(list(pool.map(best, range(len(found)))))


@functools.cache
def _session() -> Any:
    """Return a session of ONNX Runtime that multiplies codes; None if it is not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    helper, kinds = onnx.helper, onnx.TensorProto
    node = helper.make_node("MatMulInteger", ["codes", "queries"], ["products"])
    graph = helper.make_graph(
        [node],
        "codes",
        [
            helper.make_tensor_value_info("codes", kinds.UINT8, ["clips", "dim"]),
            helper.make_tensor_value_info("queries", kinds.INT8, ["dim", "queries"]),
        ],
        [helper.make_tensor_value_info("products", kinds.INT32, ["clips", "queries"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads take blocks
    onnxruntime.disable_telemetry_events()
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
