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
    even_runs,
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
    """`(variants, total clips)` float32 in [0, 1]: the simplified ones, then the detailed ones.
    Where each variant is compared twice, the curves of the second comparison follow."""
    fused: Array
    """`(total clips,)` float32: the mean of these curves, the method's S_f."""
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
    second: Array | None = None,
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
        second: like `agnostic`; where it is given, each variant has one more curve, for which these
            rows stand in the place of `agnostic`.
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
        second=second,
    )
    check_power(power)
    layout = layout_of(simplified, agnostic, offsets, videos, detailed, aware, aware_rows)
    if second is not None:
        check_array("second", second, agnostic.shape, layout.dtype)
    arrays = simplified, detailed, agnostic, aware, aware_rows, second
    if launcher is None:
        return on_host(*arrays, layout.firsts, layout.offsets, power)
    return OnDevice(launcher, *layout, power, twice=second is not None)(*arrays)


class Layout(NamedTuple):
    """The shape of a batch, as its arrays give it."""

    firsts: Offsets
    """`(pairs,)`: the first clip of the pair's video."""
    offsets: Offsets
    """`(pairs + 1,)`: of the pairs' columns in the curves."""
    counts: tuple[int, int]
    """Simplified and detailed variants of a pair."""
    dim: int
    dtype: str


def layout_of(
    simplified: Array,
    agnostic: Array,
    offsets: npt.ArrayLike,
    videos: npt.ArrayLike | None,
    detailed: Array | None,
    aware: Array | None,
    aware_rows: Array | None,
) -> Layout:
    """Check the arguments of `similarity`, and return what they say about the batch.

    Raises:
        ValueError: a shape, dtype or index does not fit.
    """
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
    return Layout(firsts, pair_offsets, (count, rest), dim, dtype)


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
    second: npt.NDArray[Any] | None,
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
    count = variants.shape[1]
    check_rows(aware, aware_rows)
    # Half precision is a storage format here: NumPy has no fast half-precision product.
    variants = variants.astype(np.float32, copy=False)
    parts = [(agnostic, slice(0, count))]
    if second is not None:
        parts.append((second, slice(count, 2 * count)))
    curves = np.empty((len(parts) * count, int(offsets[-1])), dtype=np.float32)
    for embeddings, rows in parts:
        guides = (turn, aware, aware_rows) if aware is not None and aware_rows is not None else None
        _multiply(variants, embeddings, guides, firsts, offsets, curves[rows])
    _normalise(curves, offsets)
    if power == 1.5:
        curves *= np.sqrt(curves)  # several times as fast as the general power
    elif power != 1:
        np.power(curves, np.float32(power), out=curves)
    return Curves(curves, curves.mean(axis=0), offsets)


def _multiply(
    variants: npt.NDArray[np.float32],
    embeddings: npt.NDArray[Any],
    guides: tuple[int, npt.NDArray[Any], npt.NDArray[np.int32]] | None,
    firsts: Offsets,
    offsets: Offsets,
    out: npt.NDArray[np.float32],
) -> None:
    """Write the products of each pair's variants with the rows of its video to `out`.

    Args:
        variants: `(pairs, variants, dim)`.
        embeddings: `(clips of all videos, dim)`.
        guides: how many variants are simplified, the aware captions, and the row of each clip.
        firsts: of the videos in `embeddings`.
        offsets: of the pairs in `out`.
        out: `(variants, total)`.
    """
    _, count, dim = variants.shape
    step = max(SERIAL_PRODUCT // max(count * dim, 1), 1)
    for pairs, clips in even_runs(offsets, firsts):
        begin, end = int(offsets[pairs.start]), int(offsets[pairs.stop])
        first = int(firsts[pairs.start])
        rows = embeddings[first : first + end - begin].astype(np.float32, copy=False)
        rows = rows.reshape(-1, clips, dim)
        cells = out[:, begin:end].reshape(count, -1, clips).transpose(1, 0, 2)
        captions = rows
        if guides is not None:
            turn, aware, aware_rows = guides
            captions = guided_rows(rows, aware, aware_rows[begin:end].reshape(-1, clips))
        for left in range(0, clips, step):
            part = slice(left, left + step)
            if guides is None:
                np.matmul(variants[pairs], _turned(rows[:, part]), out=cells[:, :, part])
                continue
            plain, guided = variants[pairs, :turn], variants[pairs, turn:]
            np.matmul(plain, _turned(rows[:, part]), out=cells[:, :turn, part])
            np.matmul(guided, _turned(captions[:, part]), out=cells[:, turn:, part])


def _turned(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return rows.transpose(0, 2, 1)


def check_rows(aware: Array | None, aware_rows: Array | None) -> None:
    """Refuse a number in `aware_rows` that is no row of `aware`; both on the host.

    Raises:
        ValueError: there is one.
    """
    if aware is not None and aware_rows is not None and len(aware_rows):
        low, high = int(aware_rows.min()), int(aware_rows.max())
        if low < -1 or high >= len(aware):
            raise ValueError(f"aware_rows: got {low} to {high}, expected -1 to {len(aware) - 1}")


def guided_rows(
    clips: npt.NDArray[np.float32], aware: npt.NDArray[Any], rows: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    """Return the row of each clip for detailed variants: its aware row, or its own without one."""
    captions = clips.copy()
    has_one = rows >= 0
    captions[has_one] = aware[rows[has_one]]
    return captions


def _normalise(curves: npt.NDArray[np.float32], offsets: Offsets) -> None:
    """Min-max over each pair's clips, in place."""
    for pairs, clips in even_runs(offsets):
        part = curves[:, offsets[pairs.start] : offsets[pairs.stop]].reshape(len(curves), -1, clips)
        low = part.min(axis=2, keepdims=True)
        span = part.max(axis=2, keepdims=True) - low
        span[span < FLAT] = np.inf  # to zero, while a NaN stays one and is reported
        part -= low
        part /= span


class OnDevice:
    """The same on a device: two launches, three for `twice`, nothing waits.

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
        *,
        twice: bool = False,
    ) -> None:
        self.launcher, self.counts, self.dim, self.power = launcher, counts, dim, power
        self.options = options_for(dtype)
        self.pairs, self.total = len(offsets) - 1, int(offsets[-1])
        table = tiles(offsets, _CLIPS)
        self.tile_count = len(table)
        self.firsts, self.offsets, self.tiles = map(launcher.upload, (firsts, offsets, table))
        self.rows = sum(counts) * (2 if twice else 1)
        self.curves = Curves(
            launcher.empty((self.rows, self.total), np.float32),
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
        second: Array | None = None,
    ) -> Curves:
        """Launch, and return where the result will be. `second` is needed for `twice`."""
        if not self.total:
            return self.curves
        groups = sum(-(-count // _TILE) for count in self.counts)
        for first in range(0, self.rows, sum(self.counts)):
            self.launcher.launch(
                "similarity",
                "cosines",
                simplified,
                detailed,
                second if first else agnostic,
                aware,
                aware_rows,
                self.firsts,
                self.offsets,
                self.tiles,
                np.int64(self.tile_count),
                *map(np.int32, self.counts),
                np.int32(self.dim),
                np.int64(self.total),
                self.curves.variants[first:],
                blocks=-(-self.tile_count * groups // _WARPS),
                threads=_WARPS * 32,
                options=self.options,
            )
        self.launcher.launch(
            "similarity",
            "rescale",
            self.offsets,
            np.int32(self.rows),
            np.int64(self.total),
            np.float32(FLAT),
            np.float32(self.power),
            *self.curves[:2],
            blocks=self.pairs,
            threads=_RESCALERS * 32,
            options=self.options,
        )
        return self.curves
