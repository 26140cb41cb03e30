"""The best clips of a whole library for each query: exact inner products, no approximate index.

The library goes by in segments, and of each query only the best `k` so far are kept, so that memory
is bounded whatever the number of clips. On a GPU up to `FEW` queries ride along in one pass over
the clips, which then costs what reading them costs; more queries are multiplied on tensor cores.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .corpus_codes import Codes, coded_keys
from .corpus_host import best_keys, key_rows, key_scores
from .launch import (
    Array,
    CupyLauncher,
    Launcher,
    check_array,
    launcher_for,
    options_for,
)

MOST = 1024
"""The largest `k`, and the queries that a device takes at a time."""

FEW = 8
"""Queries up to which the clips are streamed; from there on a tensor core does what reading the
clips leaves time for. FEW of corpus.cu."""

WORKSPACE = 1 << 30
"""Bytes of device memory for the lists of candidates, unless the caller says otherwise."""

_THREADS = 256  # WARPS * WARP of corpus.cuh
_STREAMED = 128  # clips that a block of `one` and `few` scores at a time
_WAVES = 16  # blocks of theirs a multiprocessor
_TILE_QUERIES = 128  # of `many` and `many_sm90`
_TILE_CLIPS = 192
_CHUNK = 64  # bytes of a row in a stage of `many`
_SM90_CLIPS = 256  # of a tile of `many_sm90`
_SM90_THREADS = 384
_SM90_LINE = 128  # bytes of a row in a stage of `many_sm90`
_SM90_STAGES = (3, 4)  # at least and at most
_SM90_SHARED = 232448  # bytes that a block can have
_SM90_OTHER = 8 * 288 + 9 * 8  # of these for keys that wait and for barriers
_FIRST = 4096  # clips before there is any bar: all of them become candidates
_GROWTH = 8  # A segment is so many times what came before: of clips in no order, 8 k pass the bar.


class Top(NamedTuple):
    """The best clips of each query, best first; past the last clip -inf and -1."""

    scores: Array
    """`(queries, k)` float32."""
    rows: Array
    """`(queries, k)` int64: rows of the clips."""


def corpus(
    queries: Array,
    clips: Array,
    *,
    k: int,
    workspace: int = WORKSPACE,
    finite: bool = False,
    codes: Codes | None = None,
) -> Top:
    """The `k` clips with the largest inner product with each query, out of all clips.

    Of equal scores the lower row is better, and the same arrays give the same bits again. Scores
    are within 1e-5 of the exact product of unit vectors, whatever the embeddings' dtype: sums are
    float32, and on a GPU more than `FEW` float32 queries are multiplied as pairs of 11-bit numbers,
    to 22 bits. On the host the best clips are those by the float32 sums, none is left out, and the
    clips may be a memory map, of which no copy is made.

    A NaN ranks above every number: the first of a query's scores is NaN, and its row tells the
    clip, where an embedding of either holds one. With infinite numbers a score may be NaN.

    On a GPU nothing waits, and all work is on CuPy's current stream, so that it can be captured in
    a CUDA graph: after a first call, which compiles, and under a memory pool that lives as long as
    the graph (``with cupy.cuda.using_allocator(pool.malloc)``).

    Args:
        queries: `(queries, dim)` float32 or float16. A device takes 1,024 at a time.
        clips: `(clips, dim)`, same dtype; up to 2^31 - 1 clips.
        k: 1 to 1,024.
        workspace: bytes of device memory for candidates; the less, the more often they are sorted
            out.
        finite: whether no clip holds NaN or infinity. On the host float16 is then not searched for
            them, which makes one or two queries a fifth faster. If one does, scores are wrong.
        codes: of the clips, which are then finite. On the host they are read in place of most
            clips, with the same results; a device does not need them.

    Raises:
        ValueError: a shape, dtype or value does not fit.
        TypeError: NumPy and CuPy arrays are mixed.
    """
    launcher = launcher_for(queries=queries, clips=clips)
    check_array("queries", queries, (None, None), "float32", "float16")
    count, dim = queries.shape
    check_array("clips", clips, (None, dim), queries.dtype.name)
    if dim < 1:
        raise ValueError("queries: got no numbers in a row, expected embeddings")
    if clips.shape[0] >= 1 << 31:
        raise ValueError(f"clips: got {clips.shape[0]}, expected fewer than 2^31: search in parts")
    if not 1 <= k <= MOST:
        raise ValueError(f"k: got {k}, expected 1 to {MOST}")
    least = 8 * max(min(count, MOST), 1) * (k + _FIRST)
    if workspace < least:
        raise ValueError(
            f"workspace: got {workspace} bytes, expected at least {least}, "
            f"for lists of {k} and {_FIRST} candidates a query"
        )
    if codes is not None and codes.rows.shape != clips.shape:
        raise ValueError(f"codes: got shape {codes.rows.shape}, expected {clips.shape}, the clips'")
    if launcher is None:
        return _on_host(queries, clips, k, finite, codes)
    return on_device(launcher, queries, clips, k, workspace)


def _on_host(
    queries: npt.NDArray[Any], clips: npt.NDArray[Any], k: int, finite: bool, codes: Codes | None
) -> Top:
    keys = None if codes is None else coded_keys(queries, clips, codes, k)
    if keys is None:
        keys = best_keys(queries, clips, k, finite=finite or codes is not None)
    return Top(key_scores(keys), key_rows(keys))


def on_device(launcher: Launcher, queries: Array, clips: Array, k: int, workspace: int) -> Top:
    """The same on a device: two launches a segment, nothing waits."""
    count = queries.shape[0]
    top = Top(launcher.empty((count, k), np.float32), launcher.empty((count, k), np.int64))
    for first in range(0, count, MOST):
        part = slice(first, first + MOST)
        _search(launcher, queries[part], clips, k, workspace, top.scores[part], top.rows[part])
    return top


def _segments(total: int, room: int, k: int) -> Iterator[tuple[int, int]]:
    """Half-open runs of clips, each small enough for a list of `room` that holds `k`."""
    begin = 0
    while begin < total:
        end = min(begin + max(_FIRST, begin * _GROWTH), begin + room - k, total)
        yield begin, end
        begin = end


def _search(
    launcher: Launcher,
    queries: Array,
    clips: Array,
    k: int,
    workspace: int,
    scores: Array,
    rows: Array,
) -> None:
    """Up to MOST queries, into `scores` and `rows`."""
    count, dim = queries.shape
    total = clips.shape[0]
    room = min(workspace // (8 * count), k + max(total, _FIRST))
    segments = list(_segments(total, room, k))
    multiprocessors = _multiprocessors(launcher)
    tiles: int = -(-count // _TILE_QUERIES)
    walkers = max(multiprocessors // tiles, 1)
    options = options_for(queries.dtype)
    steps, fragments, packed = 2 * -(-dim * queries.dtype.itemsize // _CHUNK), 0, None
    shape = (np.int32(dim),)
    if count <= FEW:
        kernel = "one" if count == 1 else "few"
        most = _WAVES * multiprocessors
        way = _Way("corpus", kernel, (queries, clips), shape, 1, most, _STREAMED, options)
    elif (found := _by_warpgroups(launcher, queries, clips, tiles, walkers)) is not None:
        way = found
    else:
        fragments = tiles * _TILE_QUERIES // 16 * steps * 32
        packed = launcher.empty((fragments, 4), np.uint32)
        given = (packed, clips)
        way = _Way("corpus_many", "many", given, shape, tiles, walkers, _TILE_CLIPS, options)
    lists = launcher.empty((count, room), np.uint64)
    counts = launcher.empty((count,), np.int32)
    bars = launcher.empty((count,), np.uint64)

    def launch(kernel: str, *arguments: Any, blocks: int) -> None:
        launcher.launch(
            "corpus", kernel, *arguments, blocks=blocks, threads=_THREADS, options=options
        )

    def keep(*, last: bool) -> None:
        limits = (np.int64(room), np.int32(k), np.int32(last))
        launch("keep", lists, counts, bars, *limits, scores, rows, blocks=count)

    launch(
        "prepare",
        queries,
        np.int32(count),
        np.int32(dim),
        np.int32(steps),
        np.int64(fragments),
        np.int64(segments[0][1] if segments else 0),
        packed,
        counts,
        bars,
        blocks=-(-max(fragments, count) // _THREADS),
    )
    for begin, end in segments:
        if begin:
            keep(last=False)
        way.launch(launcher, begin, end, np.int32(count), np.int64(room), bars, lists, counts)
    keep(last=True)


class _Way(NamedTuple):
    """A kernel that scores clips, and how."""

    family: str
    kernel: str
    embeddings: tuple[Array, Array]
    """Queries and clips, as it takes them."""
    shape: tuple[np.int32, ...]
    tiles: int
    """Of queries: blocks of one have the same."""
    walkers: int
    """Blocks of a tile of queries, at most."""
    clips: int
    """That a block scores at a time."""
    options: tuple[str, ...] = ()
    threads: int = _THREADS
    shared: int = 0

    def launch(self, launcher: Launcher, begin: int, end: int, *rest: Any) -> None:
        """Score the clips from `begin` up to `end`."""
        launcher.launch(
            self.family,
            self.kernel,
            *(*self.embeddings, np.int64(begin), np.int64(end), *self.shape, *rest),
            blocks=self.tiles * min(self.walkers, -(-(end - begin) // self.clips)),
            threads=self.threads,
            options=self.options,
            shared=self.shared,
        )


def _by_warpgroups(
    launcher: Launcher, queries: Array, clips: Array, tiles: int, walkers: int
) -> _Way | None:
    """`None` where the device or the embeddings are not for it.

    It is for float16, rows of a multiple of 16 bytes, up to 512 numbers: a block's queries must
    leave room for clips.
    """
    if queries.dtype != np.float16:
        return None
    chunks = -(-queries.shape[1] * queries.itemsize // _SM90_LINE)
    kept, stage = (rows * _SM90_LINE for rows in (chunks * _TILE_QUERIES, _SM90_CLIPS))
    stages = min((_SM90_SHARED - _SM90_OTHER - kept) // stage, _SM90_STAGES[1])
    if stages < _SM90_STAGES[0]:
        return None
    maps = launcher.tensor_map(queries, _TILE_QUERIES), launcher.tensor_map(clips, _SM90_CLIPS)
    if maps[0] is None or maps[1] is None:
        return None
    return _Way(
        *("corpus_sm90", "many_sm90", maps, (np.int32(chunks), np.int32(stages))),
        *(tiles, walkers, _SM90_CLIPS),
        threads=_SM90_THREADS,
        shared=kept + stages * stage + _SM90_OTHER,
    )


def _multiprocessors(launcher: Launcher) -> int:
    """Of the current device. Any but CuPy's is an emulated one."""
    if not isinstance(launcher, CupyLauncher):
        return 2
    import cupy

    return _attribute(cupy.cuda.Device().id)


@functools.cache
def _attribute(device: int) -> int:
    import cupy

    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])
