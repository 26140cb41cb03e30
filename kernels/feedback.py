"""Relevance feedback within a video: a query moves towards the clips that its curve ranks first.

A caption words a scene in another way than a query does, and the clips that a query ranks first are
mostly right. So a second pass compares the captions with the query and with the mean of these
clips' embeddings. This is Rocchio's relevance feedback (Rocchio, "Relevance feedback in information
retrieval", 1971) on embeddings, with the best clips taken for relevant and all clips of the video
for the others: for documents instead of clips, see Li et al., arXiv 2108.11044.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .context import ContextRules
from .launch import (
    SERIAL_PRODUCT,
    Array,
    Launcher,
    Offsets,
    check_array,
    chunks,
    even_runs,
    launcher_for,
    options_for,
)
from .similarity import Curves, check_power, check_rows, guided_rows, layout_of
from .similarity import OnDevice as Similarity
from .similarity import on_host as similarity_on_host
from .smoothing import check_sigma, gaussian_taps, smoothed

_WARPS = 8  # of feedback.cu
_TILE = 4  # variants of a kind, a block
_PIECE_BYTES = 16
_CHUNK_BYTES = 3 << 20
"""Bytes of rows that the host compares, moves towards, and has still in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRules:
    """Which clips a query moves towards, and what the second pass compares it with.

    Raises:
        ValueError: a value is out of its range.
    """

    clips: int = 12
    """The best clips of a curve, and all that equal the lowest of them. It is a count and no share
    of the video: what a query asks for does not get longer with the video."""
    level: float = 0.6
    """How high a best clip must lie in the range of its curve, 0 to 1, so that few clips are taken
    where few stand out."""
    sigma: float = 1.0
    """Gaussian, in clips, that smooths the curve before its best clips are chosen."""
    context: ContextRules | None = None
    """After feedback each variant is compared twice: with the rows of before, and with them at unit
    length, mixed once more by these rules. None: with the rows of before alone."""

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"clips: got {self.clips}, expected at least 1")
        if not 0 <= self.level <= 1:
            raise ValueError(f"level: got {self.level}, expected 0 to 1")
        check_sigma("sigma", self.sigma)


class Moved(NamedTuple):
    """The variants of all pairs after feedback, of the shapes and the dtype of the variants before.

    They are no longer of unit length: the curves of `similarity` do not depend on it.
    """

    simplified: Array
    detailed: Array | None


def feedback(
    curves: Array,
    simplified: Array,
    agnostic: Array,
    offsets: npt.ArrayLike,
    *,
    videos: npt.ArrayLike | None = None,
    detailed: Array | None = None,
    aware: Array | None = None,
    aware_rows: Array | None = None,
    rules: FeedbackRules,
) -> Moved:
    """Move each variant towards the clips that its own curve ranks first.

    With K the best clips of the smoothed curve of a variant *t*, and R the rows that *t* is
    compared with, the variant becomes ``t + mean_K (R_k - M_k)``. M_k is the mean of the video's
    rows of the same kind as R_k, agnostic or aware: what all captions of a kind share, such as
    their style, says nothing of a clip. A variant with a flat curve stays as it is, since all its
    clips are equally good.

    Args:
        curves: `(m + m', total clips of all pairs)` float32 in [0, 1], from `similarity` of the
            other arguments.
        simplified: `(pairs, m, dim)` float32 or float16.
        agnostic: `(clips of all videos, dim)`, same dtype; see `similarity`, as for all that
            follow.
        offsets: `(videos + 1,)`.
        videos: `(pairs,)`.
        detailed: `(pairs, m', dim)`.
        aware: `(aware captions, dim)`: a detailed variant moves towards the aware caption of a
            clip that has one.
        aware_rows: `(total clips of all pairs,)` int32.
        rules: which clips.

    Returns:
        Variants of the kind of array that came in. A variant becomes NaN where a number of its own,
        or of a row that it is compared with, is NaN.

    Raises:
        ValueError: a shape, dtype or index does not fit.
        TypeError: NumPy and CuPy arrays are mixed.
    """
    launcher = launcher_for(
        curves=curves,
        simplified=simplified,
        detailed=detailed,
        agnostic=agnostic,
        aware=aware,
        aware_rows=aware_rows,
    )
    layout = layout_of(simplified, agnostic, offsets, videos, detailed, aware, aware_rows)
    check_array("curves", curves, (sum(layout.counts), int(layout.offsets[-1])), "float32")
    arrays = curves, simplified, detailed, agnostic, aware, aware_rows
    if launcher is None:
        return on_host(*arrays, layout.firsts, layout.offsets, rules)
    return OnDevice(launcher, *layout, rules)(*arrays)


def refined_curves(
    simplified: Array,
    agnostic: Array,
    offsets: npt.ArrayLike,
    *,
    second: Array | None = None,
    videos: npt.ArrayLike | None = None,
    detailed: Array | None = None,
    aware: Array | None = None,
    aware_rows: Array | None = None,
    power: float = 1.0,
    rules: FeedbackRules | None = None,
) -> Curves:
    """Curves of every pair by `similarity`, with `rules` after `feedback`.

    Args:
        simplified: as all that is not named here, an argument of `similarity`.
        agnostic: what variants are compared with before feedback and after it.
        offsets: of the videos.
        second: what they are compared with besides after feedback; unused without `rules`.
        videos: of each pair.
        detailed: compared with `aware` where a clip has a caption there.
        aware: the same in all comparisons.
        aware_rows: for each clip of each pair.
        power: of all comparisons.
        rules: of the feedback; None for none.

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
    arrays = simplified, detailed, agnostic, aware, aware_rows
    if launcher is None:
        shape = layout.firsts, layout.offsets
        return refined_on_host(*arrays, second, *shape, power, rules)
    curves = Similarity(launcher, *layout, power)(*arrays)
    if rules is None:
        return curves
    moved = OnDevice(launcher, *layout, rules)(curves.variants, *arrays)
    compare = Similarity(launcher, *layout, power, twice=second is not None)
    return compare(*moved, agnostic, aware, aware_rows, second)


def refined_on_host(
    simplified: npt.NDArray[Any],
    detailed: npt.NDArray[Any] | None,
    agnostic: npt.NDArray[Any],
    aware: npt.NDArray[Any] | None,
    aware_rows: npt.NDArray[np.int32] | None,
    second: npt.NDArray[Any] | None,
    firsts: Offsets,
    offsets: Offsets,
    power: float,
    rules: FeedbackRules | None,
) -> Curves:
    """The NumPy twin of `refined_curves`, a few pairs at a time."""
    if rules is None:
        arrays = simplified, detailed, agnostic, aware, aware_rows, None
        return similarity_on_host(*arrays, firsts, offsets, power)
    count = simplified.shape[1] + (0 if detailed is None else detailed.shape[1])
    total = int(offsets[-1])
    refined = Curves(
        np.empty((count if second is None else 2 * count, total), np.float32),
        np.empty(total, np.float32),
        offsets,
    )
    clips = max(_CHUNK_BYTES // max(agnostic[:1].nbytes, 1), 1)
    for pairs in chunks(offsets, clips):
        columns = slice(offsets[pairs.start], offsets[pairs.stop])
        variants = simplified[pairs], None if detailed is None else detailed[pairs]
        guides = aware, None if aware_rows is None else aware_rows[columns]
        shape = firsts[pairs], offsets[pairs.start : pairs.stop + 1] - offsets[pairs.start]
        curves = similarity_on_host(*variants, agnostic, *guides, None, *shape, power)
        moved = on_host(curves.variants, *variants, agnostic, *guides, *shape, rules)
        curves = similarity_on_host(*moved, agnostic, *guides, second, *shape, power)
        refined.variants[:, columns], refined.fused[columns] = curves.variants, curves.fused
    return refined


def on_host(
    curves: npt.NDArray[np.float32],
    simplified: npt.NDArray[Any],
    detailed: npt.NDArray[Any] | None,
    agnostic: npt.NDArray[Any],
    aware: npt.NDArray[Any] | None,
    aware_rows: npt.NDArray[np.int32] | None,
    firsts: Offsets,
    offsets: Offsets,
    rules: FeedbackRules,
) -> Moved:
    """The NumPy twin."""
    _, turn, dim = simplified.shape
    variants = simplified
    if detailed is not None:
        variants = np.concatenate([simplified, detailed], axis=1)
    moved = variants.astype(np.float32)  # a copy; NumPy has no fast half-precision product
    check_rows(aware, aware_rows)
    weights = _weights(curves, turn, aware_rows, offsets, rules)
    step = max(SERIAL_PRODUCT // max(moved.shape[1] * dim, 1), 1)
    for pairs, clips in even_runs(offsets, firsts):
        begin, end = int(offsets[pairs.start]), int(offsets[pairs.stop])
        first = int(firsts[pairs.start])
        rows = agnostic[first : first + end - begin].astype(np.float32, copy=False)
        rows = rows.reshape(-1, clips, dim)
        shares = weights[:, begin:end].reshape(len(weights), -1, clips).transpose(1, 0, 2)
        captions = rows
        if aware is not None and aware_rows is not None:
            captions = guided_rows(rows, aware, aware_rows[begin:end].reshape(-1, clips))
        for left in range(0, clips, step):
            part = slice(left, left + step)
            if captions is rows:
                moved[pairs] += shares[:, :, part] @ rows[:, part]
                continue
            moved[pairs, :turn] += shares[:, :turn, part] @ rows[:, part]
            moved[pairs, turn:] += shares[:, turn:, part] @ captions[:, part]
    moved = moved.astype(simplified.dtype, copy=False)
    if detailed is None:
        return Moved(moved, None)
    return Moved(np.ascontiguousarray(moved[:, :turn]), np.ascontiguousarray(moved[:, turn:]))


def _weights(
    curves: npt.NDArray[np.float32],
    turn: int,
    aware_rows: npt.NDArray[np.int32] | None,
    offsets: Offsets,
    rules: FeedbackRules,
) -> npt.NDArray[np.float32]:
    """The weight of each clip's row in what is added to a variant, `(variants, total)`.

    The weights of a pair's rows of one kind, agnostic or aware, sum to 0. The first `turn` variants
    are compared with agnostic rows alone.
    """
    if np.isnan(curves.sum()):  # a NaN reaches the variant through a row or the variant itself
        curves = np.nan_to_num(curves)
    values = smoothed(curves, offsets, [(rules.sigma, len(curves))])
    weights = np.empty_like(curves)
    for pairs, clips in even_runs(offsets):
        columns = slice(offsets[pairs.start], offsets[pairs.stop])
        part = values[:, columns].reshape(len(values), -1, clips)
        last = clips - min(rules.clips, clips)
        ordered = np.partition(part, (0, last, clips - 1), axis=-1)
        low, high = ordered[..., :1], ordered[..., -1:]
        level = low + (rules.level * (high - low)).astype(np.int32)
        chosen = part >= np.maximum(ordered[..., last, None], level)
        share = 1 / chosen.sum(axis=-1, keepdims=True, dtype=np.float32)
        out = weights[:, columns].reshape(part.shape)
        np.multiply(chosen, share, out=out)
        if aware_rows is None:
            out -= np.float32(1 / clips)
            continue
        out[:turn] -= np.float32(1 / clips)
        aware = aware_rows[columns].reshape(-1, clips) >= 0
        for kind in (aware, ~aware):
            count = np.maximum(kind.sum(axis=-1, dtype=np.float32), 1)
            mean = (out[turn:] * kind).sum(axis=-1) / count
            out[turn:] -= kind * mean[..., None]
    return weights


class OnDevice:
    """The same on a device: one launch, a block for a few variants of a pair, nothing waits.

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
        rules: FeedbackRules,
    ) -> None:
        self.launcher, self.counts, self.dim, self.rules = launcher, counts, dim, rules
        self.options = options_for(dtype)
        self.pairs, self.total = len(offsets) - 1, int(offsets[-1])
        self.firsts, self.offsets = launcher.upload(firsts), launcher.upload(offsets)
        self.moved = Moved(
            launcher.empty((self.pairs, counts[0], dim), dtype),
            launcher.empty((self.pairs, counts[1], dim), dtype) if counts[1] else None,
        )
        taps = gaussian_taps(rules.sigma)
        self.radius, self.taps = len(taps) // 2, launcher.upload(taps)
        self.smoothed = launcher.empty((sum(counts), self.total), np.int32)
        # Numbers of a row that a warp reads at a time.
        columns = 32 * _PIECE_BYTES // np.dtype(dtype).itemsize
        self.slices = -(-dim // columns)

    def __call__(
        self,
        curves: Array,
        simplified: Array,
        detailed: Array | None,
        agnostic: Array,
        aware: Array | None,
        aware_rows: Array | None,
    ) -> Moved:
        """Launch, and return where the result will be."""
        groups = sum(-(-count // _TILE) for count in self.counts)
        if blocks := self.pairs * groups * self.slices:
            self.launcher.launch(
                "feedback",
                "feedback",
                simplified,
                detailed,
                agnostic,
                aware,
                aware_rows,
                self.firsts,
                self.offsets,
                curves,
                self.taps,
                np.int32(self.radius),
                np.int64(self.total),
                *map(np.int32, self.counts),
                np.int32(self.dim),
                np.int32(self.rules.clips),
                np.float64(self.rules.level),
                self.smoothed,
                *self.moved,
                blocks=blocks,
                threads=_WARPS * 32,
                options=self.options,
            )
        return self.moved
