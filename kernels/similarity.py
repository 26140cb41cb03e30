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
)

FLAT = 1e-5
"""A curve whose cosines differ by less is constant up to rounding (float32 sums of unit vectors
are right to about 1e-6): it becomes zero instead of noise stretched over [0, 1]."""

_THREADS = 256  # WARPS * WARP of similarity.cu


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
    batch = _check(simplified, agnostic, offsets, videos, detailed, aware, aware_rows)
    if not 0.1 <= power <= 10:
        raise ValueError(f"power: got {power}, expected 0.1 to 10")
    if launcher is None:
        return _on_host(*batch, power)
    return on_device(launcher, *batch, power)


_Batch = tuple[Array, int, Array, Array | None, Array | None, Offsets, Offsets]


def _check(
    simplified: Array,
    agnostic: Array,
    offsets: npt.ArrayLike,
    videos: npt.ArrayLike | None,
    detailed: Array | None,
    aware: Array | None,
    aware_rows: Array | None,
) -> _Batch:
    """Variants in one array, and for each pair where its clips begin and how many there are."""
    check_array("simplified", simplified, (None, None, None), "float32", "float16")
    pairs, count, dim = simplified.shape
    dtype = simplified.dtype.name
    check_array("agnostic", agnostic, (None, dim), dtype)
    video_offsets = check_offsets("offsets", offsets, agnostic.shape[0])
    variants = simplified
    if detailed is not None:
        check_array("detailed", detailed, (pairs, None, dim), dtype)
        variants = _concatenate(simplified, detailed)
    if variants.shape[1] == 0:
        raise ValueError("simplified: got no variant; expected at least one, such as the query")
    asked = np.arange(pairs) if videos is None else np.asarray(videos, dtype=np.int64)
    if asked.shape != (pairs,):
        raise ValueError(f"videos: got shape {asked.shape}, expected ({pairs},), one for each pair")
    if pairs and not (asked.min() >= 0 and asked.max() < len(video_offsets) - 1):
        raise ValueError(
            f"videos: got {asked.min()} to {asked.max()}, expected 0 to {len(video_offsets) - 2}: "
            "name a video that offsets describes"
        )
    firsts = video_offsets[:-1][asked]
    pair_offsets = np.zeros(pairs + 1, dtype=np.int64)
    np.cumsum(np.diff(video_offsets)[asked], out=pair_offsets[1:])
    if (aware is None) != (aware_rows is None):
        raise ValueError("aware and aware_rows: got one of them, expected both or neither")
    if aware is not None:
        check_array("aware", aware, (None, dim), dtype)
        check_array("aware_rows", aware_rows, (int(pair_offsets[-1]),), "int32")
    return variants, count, agnostic, aware, aware_rows, firsts, pair_offsets


def _concatenate(simplified: Array, detailed: Array) -> Array:
    if isinstance(simplified, np.ndarray):
        return np.concatenate([simplified, detailed], axis=1)
    import cupy

    return cupy.concatenate([simplified, detailed], axis=1)


def _on_host(
    variants: npt.NDArray[Any],
    simplified: int,
    agnostic: npt.NDArray[Any],
    aware: npt.NDArray[Any] | None,
    aware_rows: npt.NDArray[np.int32] | None,
    firsts: Offsets,
    offsets: Offsets,
    power: float,
) -> Curves:
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
            plain, guided = variants[pair, :simplified], variants[pair, simplified:]
            np.matmul(plain, clips.T, out=curves[:simplified, left:right])
            rows = aware_rows[left:right]
            captions = np.where((rows >= 0)[:, None], aware[rows].astype(np.float32), clips)
            np.matmul(guided, captions.T, out=curves[simplified:, left:right])
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


def on_device(
    launcher: Launcher,
    variants: Array,
    simplified: int,
    agnostic: Array,
    aware: Array | None,
    aware_rows: Array | None,
    firsts: Offsets,
    offsets: Offsets,
    power: float,
) -> Curves:
    """The same on a device: one launch, a block a pair, nothing waits."""
    pairs, count, dim = variants.shape
    total = int(offsets[-1])
    curves = launcher.empty((count, total), np.float32)
    fused = launcher.empty((total,), np.float32)
    if total:
        launcher.launch(
            "similarity",
            "similarity",
            variants,
            agnostic,
            aware,
            aware_rows,
            launcher.upload(firsts),
            launcher.upload(offsets),
            np.int32(count),
            np.int32(simplified),
            np.int32(dim),
            np.int64(total),
            np.float32(FLAT),
            np.float32(power),
            curves,
            fused,
            blocks=pairs,
            threads=_THREADS,
            options=("-DGRANALIGN_HALF",) if variants.dtype.name == "float16" else (),
        )
    return Curves(curves, fused, offsets)
