"""Query variants against captions: a curve for each variant, rescaled to [0, 1], and their mean.

The score of a clip *f* is ``S_f = 1/(2m) * sum_i [g(s_i, agnostic_f) + g(d_i, aware_f)]``, *g* the
cosine rescaled to [0, 1] over the video's clips (GranAlign, arXiv 2601.00584, section 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .launch import (
    SERIAL_PRODUCT,
    Array,
    Launcher,
    Offsets,
    check_array,
    check_offsets,
    launcher_for,
    options_for,
    tiles,
)

FLAT = 1e-5
"""A curve whose cosines differ by less is constant up to rounding (float32 sums of unit vectors
are right to about 1e-6): it becomes zero instead of noise stretched over [0, 1]."""

_WARPS = 4  # of cosines in similarity.cu
_CLIPS = 4  # a warp
_TILE = 8  # variants of a kind, a warp
_RESCALERS = 8


class Curves(NamedTuple):
    """The curves of a ragged batch: pair *p* owns columns ``offsets[p]:offsets[p + 1]``."""

    variants: Array
    """`(variants, total clips)` float32 in [0, 1]: the simplified ones, then the detailed ones."""
    fused: Array
    """`(total clips,)` float32: the mean over the variants, the method's S_f."""
    offsets: Offsets
    """`(pairs + 1,)` int64 on the host."""


def similarity(
    simplified: Array,
    agnostic: Array,
    offsets: npt.ArrayLike,
    *,
    videos: npt.ArrayLike | None = None,
    detailed: Array | None = None,
    aware: Array | None = None,
    aware_rows: Array | None = None,
    power: float = 1.0,
) -> Curves:
    """Curves of every pair of a query and a video.

    Simplified variants are compared with the query-agnostic captions, detailed ones with the
    query-aware captions. A clip without an aware caption is compared by its agnostic caption: the
    aware captions are given to key frames only, and an agnostic caption of the same frame is the
    nearest thing known of the others.

    Args:
        simplified: `(pairs, m, dim)` float32 or float16, rows of unit length.
        agnostic: `(clips of all videos, dim)`, same dtype, rows of unit length.
        offsets: `(videos + 1,)`: the clips of video *v* are rows ``offsets[v]:offsets[v + 1]``.
        videos: `(pairs,)` the video of each pair; by default pair *p* asks about video *p*.
        detailed: `(pairs, m', dim)`; none by default.
        aware: `(aware captions, dim)`; none by default.
        aware_rows: `(total clips of all pairs,)` int32: the row of `aware` that describes the clip
            for this pair's query, or -1. Needed with `aware`.
        power: exponent of the rescaled cosines; above 1 it lifts a clip that fits one variant well
            over one that fits all of them a little.

    Returns:
        Curves of the kind of array that came in; NaN embeddings give NaN, never a ranking.

    Raises:
        ValueError: a shape, dtype or index does not fit.
        TypeError: NumPy and CuPy arrays are mixed.
    """
    launcher = launcher_for(
        simplified=simplified,
        detailed=detailed,
        agnostic=agnostic,
        aware=aware,
        aware_rows=aware_rows,
    )
    check_array("simplified", simplified, (None, None, None), "float32", "float16")
    pairs, count, dim = simplified.shape
    dtype = simplified.dtype.name
    check_array("agnostic", agnostic, (None, dim), dtype)
    video_offsets = check_offsets("offsets", offsets, agnostic.shape[0])
    if detailed is not None:
        check_array("detailed", detailed, (pairs, None, dim), dtype)
    rest = 0 if detailed is None else detailed.shape[1]
    check_counts(count, rest)
    firsts, pair_offsets = pairs_of(video_offsets, videos, pairs)
    check_aware(aware, aware_rows, dim, dtype, int(pair_offsets[-1]))
    check_power(power)
    arrays = simplified, detailed, agnostic, aware, aware_rows
    if launcher is None:
        return on_host(*arrays, firsts, pair_offsets, power)
    run = OnDevice(launcher, firsts, pair_offsets, (count, rest), dim, dtype, power)
    return run(*arrays)


def check_counts(simplified: int, detailed: int) -> None:
    """Refuse a query without a variant.

    Raises:
        ValueError: there is none of either granularity.
    """
    if simplified < 0 or detailed < 0 or simplified + detailed == 0:
        raise ValueError("simplified: got no variant; expected at least one, such as the query")


def check_power(power: float) -> None:
    """Refuse an exponent that is out of its range.

    Raises:
        ValueError: it is.
    """
    if not 0.1 <= power <= 10:
        raise ValueError(f"power: got {power}, expected 0.1 to 10")


def check_aware(
    aware: Array | None, aware_rows: Array | None, dim: int, dtype: str, total: int
) -> None:
    """Refuse aware captions that are not what `similarity` says.

    Raises:
        ValueError: a shape or dtype does not fit, or one of the two is missing.
    """
    if (aware is None) != (aware_rows is None):
        raise ValueError("aware and aware_rows: got one of them, expected both or neither")
    if aware is not None:
        check_array("aware", aware, (None, dim), dtype)
        check_array("aware_rows", aware_rows, (total,), "int32")


def pairs_of(
    video_offsets: Offsets, videos: npt.ArrayLike | None, pairs: int
) -> tuple[Offsets, Offsets]:
    """For each pair the first clip of its video; and the offsets of the pairs' own columns.

    Raises:
        ValueError: there is not one video for each pair, or a video that offsets do not describe.
    """
    asked = np.arange(pairs) if videos is None else np.asarray(videos, dtype=np.int64)
    if asked.shape != (pairs,):
        raise ValueError(f"videos: got shape {asked.shape}, expected ({pairs},), one for each pair")
    if pairs and not (asked.min() >= 0 and asked.max() < len(video_offsets) - 1):
        raise ValueError(
            f"videos: got {asked.min()} to {asked.max()}, expected 0 to {len(video_offsets) - 2}: "
            "name a video that offsets describes"
        )
    pair_offsets = np.zeros(pairs + 1, dtype=np.int64)
    np.cumsum(np.diff(video_offsets)[asked], out=pair_offsets[1:])
    return video_offsets[:-1][asked], pair_offsets


def on_host(
    simplified: npt.NDArray[Any],
    detailed: npt.NDArray[Any] | None,
    agnostic: npt.NDArray[Any],
    aware: npt.NDArray[Any] | None,
    aware_rows: npt.NDArray[np.int32] | None,
    firsts: Offsets,
    offsets: Offsets,
    power: float,
) -> Curves:
    """The NumPy twin.

    Raises:
        ValueError: a number in `aware_rows` is no row of `aware`.
    """
    variants, turn = simplified, simplified.shape[1]
    if detailed is not None:
        variants = np.concatenate([simplified, detailed], axis=1)
    _, count, dim = variants.shape
    if aware is not None and aware_rows is not None and len(aware_rows):
        low, high = int(aware_rows.min()), int(aware_rows.max())
        if low < -1 or high >= len(aware):
            raise ValueError(f"aware_rows: got {low} to {high}, expected -1 to {len(aware) - 1}")
    # Half precision is a storage format here: NumPy has no fast half-precision product.
    variants = variants.astype(np.float32, copy=False)
    curves = np.empty((count, int(offsets[-1])), dtype=np.float32)
    step = max(SERIAL_PRODUCT // max(count * dim, 1), 1)
    for pair, (first, begin, end) in enumerate(
        zip(firsts.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ):
        for left in range(begin, end, step):
            right = min(left + step, end)
            clips = agnostic[first + left - begin : first + right - begin]
            clips = clips.astype(np.float32, copy=False)
            if aware is None or aware_rows is None:
                np.matmul(variants[pair], clips.T, out=curves[:, left:right])
                continue
            plain, guided = variants[pair, :turn], variants[pair, turn:]
            np.matmul(plain, clips.T, out=curves[:turn, left:right])
            rows = aware_rows[left:right]
            captions = np.where((rows >= 0)[:, None], aware[rows].astype(np.float32), clips)
            np.matmul(guided, captions.T, out=curves[turn:, left:right])
    _normalise(curves, offsets)
    if power != 1:
        np.power(curves, np.float32(power), out=curves)
    return Curves(curves, curves.mean(axis=0), offsets)


def _normalise(curves: npt.NDArray[np.float32], offsets: Offsets) -> None:
    """Min-max over each pair's clips, in place."""
    lengths = np.diff(offsets)
    filled = lengths > 0  # reduceat reads an empty part as its neighbour's first item
    if not filled.any():
        return
    begins, lengths = offsets[:-1][filled], lengths[filled]
    low = np.minimum.reduceat(curves, begins, axis=1)
    span = np.maximum.reduceat(curves, begins, axis=1) - low
    span[span < FLAT] = np.inf  # to zero, while a NaN stays one and is reported
    curves -= np.repeat(low, lengths, axis=1)
    curves /= np.repeat(span, lengths, axis=1)


class OnDevice:
    """The same on a device: two launches, nothing waits.

    What does not change from call to call is uploaded and allocated once; a call overwrites the
    result of the one before. No number in `aware_rows` may be past the end of `aware`: on a device
    nobody looks.
    """

    def __init__(
        self,
        launcher: Launcher,
        firsts: Offsets,
        offsets: Offsets,
        counts: tuple[int, int],
        dim: int,
        dtype: npt.DTypeLike,
        power: float,
    ) -> None:
        self.launcher, self.counts, self.dim, self.power = launcher, counts, dim, power
        self.options = options_for(dtype)
        self.pairs, self.total = len(offsets) - 1, int(offsets[-1])
        table = tiles(offsets, _CLIPS)
        self.tile_count = len(table)
        self.firsts, self.offsets, self.tiles = map(launcher.upload, (firsts, offsets, table))
        self.curves = Curves(
            launcher.empty((sum(counts), self.total), np.float32),
            launcher.empty((self.total,), np.float32),
            offsets,
        )

    def __call__(
        self,
        simplified: Array,
        detailed: Array | None,
        agnostic: Array,
        aware: Array | None,
        aware_rows: Array | None,
    ) -> Curves:
        """Launch, and return where the result will be."""
        if not self.total:
            return self.curves
        groups = sum(-(-count // _TILE) for count in self.counts)
        self.launcher.launch(
            "similarity",
            "cosines",
            simplified,
            detailed,
            agnostic,
            aware,
            aware_rows,
            self.firsts,
            self.offsets,
            self.tiles,
            np.int64(self.tile_count),
            *map(np.int32, self.counts),
            np.int32(self.dim),
            np.int64(self.total),
            self.curves.variants,
            blocks=-(-self.tile_count * groups // _WARPS),
            threads=_WARPS * 32,
            options=self.options,
        )
        self.launcher.launch(
            "similarity",
            "rescale",
            self.offsets,
            np.int32(sum(self.counts)),
            np.int64(self.total),
            np.float32(FLAT),
            np.float32(self.power),
            *self.curves[:2],
            blocks=self.pairs,
            threads=_RESCALERS * 32,
            options=self.options,
        )
        return self.curves
