"""Candidate moments from similarity curves: smooth, threshold, merge runs, score.

A candidate's score is the paper's, ``(1 - lambda) * mu + lambda * rho`` (GranAlign, arXiv
2601.00584, section 3), mu the mean similarity of the run, rho its share of all clips in the runs
that one threshold gives. The paper does not say what makes a clip high-scoring: here Otsu's
threshold does (Otsu 1979), chosen for each curve from a histogram.

Curves are held in fixed point, so that NumPy and CUDA agree to the bit and ties are real ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .launch import Array, Launcher, Offsets, check_array, check_offsets, launcher_for

ONE = 1 << 15
"""1.0 in fixed point."""
TAPS_ONE = 1 << 12
"""The sum of a Gaussian's weights in fixed point."""
BINS = 32
"""Bins of the histogram that Otsu's threshold is chosen from: one for each lane of a warp."""
LEVELS = 3
"""Thresholds of a curve: the main one, and one more in the class above and below it."""

_THREADS = 256  # WARPS * WARP of proposals.cu
_CHUNK_CLIPS = 8192  # clips the host works on at a time: its temporaries stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRules:
    """How candidates are cut out of the curves and scored. Lengths are in clips.

    Raises:
        ValueError: a value is out of its range.
    """

    sigma: float = 0.0
    """Gaussian that smooths every curve; 0 leaves it as it is."""
    stretch: bool = True
    """Rescale every smoothed curve to [0, 1] before its threshold and its means."""
    variants: bool = False
    """Candidates from each variant's own curve too, not just from the fused one."""
    high_factor: float = 0.0
    """Otsu once more among the clips above the threshold gives the cores of runs; this is what
    their scores are multiplied with. 0 for none."""
    low_factor: float = 0.0
    """Otsu once more among the clips below gives runs with their surroundings; likewise."""
    gap: int = 0
    """Runs of high-scoring clips join over at most this many low ones (the paper's tau)."""
    drop: float = 0.0
    """Share of a pair's candidates that go, those of the lowest fused mean (the paper's n%)."""
    own_share: float = 0.0
    """mu is the fused curve's mean over the run, but for this share, which is the mean of the
    curve that the run was cut from."""
    length_weight: float = 0.3
    """The paper's lambda."""

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 64:
            raise ValueError(f"sigma: got {self.sigma}, expected 0 to 64 clips")
        if self.gap < 0:
            raise ValueError(f"gap: got {self.gap}, expected 0 clips or more")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop: got {self.drop}, expected a share of at least 0 and below 1")
        for name in ("high_factor", "low_factor", "own_share", "length_weight"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected 0 to 1")

    @property
    def factors(self) -> tuple[float, float, float]:
        """What the score is multiplied with at the main, the high and the low threshold."""
        return 1.0, self.high_factor, self.low_factor


class Proposals(NamedTuple):
    """Candidates of a ragged batch: pair *p* owns slots ``offsets[p]:offsets[p + 1]``."""

    starts: Array
    """`(slots,)` int32: first clip."""
    ends: Array
    """`(slots,)` int32: one past the last clip."""
    scores: Array
    """`(slots,)` float64; -inf where the slot is empty."""
    offsets: Offsets
    """`(pairs + 1,)` int64 on the host."""


def proposals(
    curves: Array, fused: Array, offsets: npt.ArrayLike, *, rules: ProposalRules
) -> Proposals:
    """Candidates of every pair, unordered; the same interval may come from several curves.

    A pair whose curves give no candidate, because they are flat or the video is one clip long, gets
    its whole video with a score of 0; a video without clips gets nothing. So does a pair of which a
    curve holds a NaN: there is no ranking of what is not a number.

    Args:
        curves: `(variants, total clips)` float32 in [0, 1], as `similarity` returns them.
        fused: `(total clips,)` float32 in [0, 1].
        offsets: `(pairs + 1,)` into the clips.
        rules: how to cut and score.

    Raises:
        ValueError: a shape or dtype does not fit.
        TypeError: NumPy and CuPy arrays are mixed.
    """
    launcher = launcher_for(curves=curves, fused=fused)
    check_array("curves", curves, (None, None), "float32")
    check_array("fused", fused, (curves.shape[1],), "float32")
    checked = check_offsets("offsets", offsets, curves.shape[1])
    if launcher is None:
        return on_host(curves, fused, checked, rules)
    return OnDevice(launcher, checked, curves.shape[0], rules)(curves, fused)


def _taps(sigma: float) -> npt.NDArray[np.int32]:
    """A Gaussian out to three sigmas in fixed point, `(2 * radius + 1,)`, summing to `TAPS_ONE`."""
    radius = math.ceil(3 * sigma)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2) if radius else np.ones(1)
    taps: npt.NDArray[np.int32] = np.rint(weights / weights.sum() * TAPS_ONE).astype(np.int32)
    taps[radius] += TAPS_ONE - taps.sum()
    return taps


def on_host(
    curves: npt.NDArray[np.float32],
    fused: npt.NDArray[np.float32],
    offsets: Offsets,
    rules: ProposalRules,
) -> Proposals:
    """The NumPy twin, a few pairs at a time."""
    pairs = len(offsets) - 1
    parts, first = [], 0
    while first < pairs:
        last = int(np.searchsorted(offsets, offsets[first] + _CHUNK_CLIPS, side="right")) - 1
        last = min(max(last, first + 1), pairs)
        part = slice(offsets[first], offsets[last])
        sources = fused[None, part]
        if rules.variants:
            sources = np.concatenate([sources, curves[:, part]])
        parts.append(_Chunk(sources, offsets[first : last + 1] - offsets[first], rules).proposals())
        first = last
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    return Proposals(
        np.concatenate([part.starts for part in parts] or [np.empty(0, np.int32)]),
        np.concatenate([part.ends for part in parts] or [np.empty(0, np.int32)]),
        np.concatenate([part.scores for part in parts] or [np.empty(0)]),
        np.concatenate([[0], *(p.offsets[1:] + end for p, end in zip(parts, ends, strict=False))]),
    )


class _Chunk:
    """A few pairs whose clips lie side by side; every step is one pass over all of them."""

    def __init__(
        self, sources: npt.NDArray[np.float32], offsets: Offsets, rules: ProposalRules
    ) -> None:
        self.rules = rules
        self.sources, self.total = sources.shape
        self.begins, self.lengths = offsets[:-1], np.diff(offsets)
        self.pairs = len(self.lengths)
        self.owner = np.repeat(np.arange(self.pairs), self.lengths)
        self.broken = np.zeros(self.pairs, np.bool_)
        if np.isnan(sources.sum()):  # one pass where there is no NaN
            wrong = np.isnan(sources)
            self.broken[self.owner[wrong.any(axis=0)]] = True
            sources = np.where(wrong, np.float32(0), sources)
        self.values = self.prepare(sources)

    def prepare(self, sources: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """The curves in fixed point, smoothed and stretched, `(sources, total)`."""
        smooth = self.smooth((sources * np.float32(ONE) + np.float32(0.5)).astype(np.int32))
        if not self.rules.stretch:
            smooth //= np.int32(TAPS_ONE)
            return smooth
        filled = self.lengths > 0  # reduceat reads an empty part as its neighbour's first item
        begins, lengths = self.begins[filled], self.lengths[filled]
        low = np.minimum.reduceat(smooth, begins, axis=1)
        span = np.maximum(np.maximum.reduceat(smooth, begins, axis=1) - low, 1)
        smooth -= np.repeat(low, lengths, axis=1)
        # Exact: of integers below 2^43 and 2^28 no quotient is a rounding away from an integer.
        scale = np.repeat(span.astype(np.float64), lengths, axis=1)
        stretched: npt.NDArray[np.int32] = (smooth * float(ONE) / scale).astype(np.int32)
        return stretched

    def smooth(self, curves: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Gaussian over each pair's clips, its edge clips repeated beyond its ends."""
        taps = _taps(self.rules.sigma)
        radius = len(taps) // 2
        if radius == 0:
            curves *= taps[0]
            return curves
        wide = self.lengths + np.where(self.lengths > 0, 2 * radius, 0)
        wide_begins = np.cumsum(wide) - wide
        wide_owner = np.repeat(np.arange(self.pairs), wide)
        clip = np.arange(len(wide_owner)) - wide_begins[wide_owner] - radius
        clip = np.clip(clip, 0, self.lengths[wide_owner] - 1) + self.begins[wide_owner]
        padded = curves.take(clip, axis=1)
        width = padded.shape[1] - 2 * radius
        out: npt.NDArray[np.int32] = padded[:, radius : radius + width] * taps[radius]
        for step in range(1, radius + 1):
            both = padded[:, radius - step : radius - step + width]
            both = both + padded[:, radius + step : radius + step + width]
            both *= taps[radius + step]
            out += both
        inner = np.arange(self.total) + (wide_begins - self.begins)[self.owner]
        smooth: npt.NDArray[np.int32] = out.take(inner, axis=1)
        return smooth

    def edges(self) -> npt.NDArray[np.int32]:
        """`(LEVELS, sources, pairs)` bin edges; 0 where a level is not used or does not exist."""
        bins = np.minimum(self.values >> (ONE // BINS).bit_length() - 1, BINS - 1)
        row = np.arange(self.sources)[:, None] * self.pairs + self.owner
        flat = (row * BINS + bins).ravel()
        histogram = np.bincount(flat, minlength=self.sources * self.pairs * BINS)
        histogram = histogram.reshape(-1, BINS)
        counts = np.zeros((len(histogram), BINS + 1))  # float64: exact, and faster than integers
        sums = np.zeros_like(counts)
        histogram.cumsum(axis=1, out=counts[:, 1:])
        (histogram * np.arange(BINS)).cumsum(axis=1, out=sums[:, 1:])
        first = np.zeros(len(histogram), np.int64)
        last = np.full_like(first, BINS)
        edges = np.zeros((LEVELS, len(histogram)), np.int32)
        edges[0] = main = _otsu(counts, sums, first, last)
        if self.rules.high_factor:
            edges[1] = np.where(main > 0, _otsu(counts, sums, main, last), 0)
        if self.rules.low_factor:
            edges[2] = np.where(main > 0, _otsu(counts, sums, first, main), 0)
        return edges.reshape(LEVELS, self.sources, self.pairs)

    def proposals(self) -> Proposals:
        """Candidates of all pairs, pair after pair."""
        edges = self.edges()
        own_sums = np.concatenate([[0], self.values.ravel().cumsum(dtype=np.int64)])
        found = [self.runs(level, edges[level], own_sums) for level in range(LEVELS)]
        owner, starts, ends, scores, means, rows = (
            np.concatenate(column) for column in zip(*found, strict=True)
        )
        if self.rules.drop > 0:
            kept = self.without_the_lowest(owner, starts, means, rows)
            owner, starts, ends, scores = owner[kept], starts[kept], ends[kept], scores[kept]
        if self.broken.any():
            kept = np.flatnonzero(~self.broken[owner])
            owner, starts, ends, scores = owner[kept], starts[kept], ends[kept], scores[kept]
        none = np.bincount(owner, minlength=self.pairs) == 0
        bare = np.flatnonzero(none & (self.lengths > 0) & ~self.broken)
        owner = np.concatenate([owner, bare])
        order = owner.argsort(kind="stable")
        return Proposals(
            np.concatenate([starts, np.zeros(len(bare), np.int32)])[order],
            np.concatenate([ends, self.lengths[bare].astype(np.int32)])[order],
            np.concatenate([scores, np.zeros(len(bare))])[order],
            np.concatenate([[0], np.bincount(owner, minlength=self.pairs).cumsum()]),
        )

    def runs(
        self, level: int, edges: npt.NDArray[np.int32], own_sums: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[Any], ...]:
        """Owner, start, end, score, fused mean and row of every run at one level."""
        rules = self.rules
        threshold = np.where(edges > 0, edges * np.int32(ONE // BINS), np.int32(2 * ONE))
        high = np.flatnonzero(self.values >= np.repeat(threshold, self.lengths, axis=1))
        source, clip = np.divmod(high, self.total)
        # Far enough apart between pairs and between curves that no run crosses over.
        place = high + (self.owner[clip] + source * self.pairs) * (rules.gap + 1)
        fresh = np.flatnonzero(np.diff(place, prepend=-rules.gap - 2) > rules.gap + 1)
        begin, end = high[fresh], high[np.append(fresh[1:] - 1, -1)[: len(fresh)]] + 1
        source, clip = source[fresh], clip[fresh]
        owner, length = self.owner[clip], end - begin

        row = source * self.pairs + owner
        row_length = np.bincount(row, weights=length, minlength=self.sources * self.pairs)
        # The same operations in the same order as proposals.cu, so that the bits agree.
        scale = length * float(ONE)
        own = (own_sums[end] - own_sums[begin]) / scale
        # The fused curve is the first source: its sums begin at 0.
        means = (own_sums[clip + length] - own_sums[clip]) / scale
        scores = (1 - rules.length_weight) * (rules.own_share * own + (1 - rules.own_share) * means)
        scores = rules.factors[level] * (scores + rules.length_weight * (length / row_length[row]))
        starts = (clip - self.begins[owner]).astype(np.int32)
        ends = starts + length.astype(np.int32)
        return owner, starts, ends, scores, means, source * LEVELS + level

    def without_the_lowest(
        self,
        owner: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int32],
        means: npt.NDArray[np.float64],
        rows: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """Which candidates stay when each pair loses its `drop` lowest by fused mean."""
        order = np.lexsort((starts, rows, means, owner))
        counts = np.bincount(owner, minlength=self.pairs)
        rank = np.arange(len(owner)) - (counts.cumsum() - counts)[owner[order]]
        lost = (self.rules.drop * counts).astype(np.int64)
        return np.sort(order[rank >= lost[owner[order]]])


def _otsu(
    counts: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    first: npt.NDArray[Any],
    last: npt.NDArray[Any],
) -> npt.NDArray[np.int32]:
    """Otsu's edge among the bins from `first` up to `last` of each row.

    It maximises the variance between the classes, the first of equals; 0 where only one of the bins
    is occupied. `counts` and `sums`, `(rows, BINS + 1)`, are the clips, and the sum of their bins,
    below each edge.
    """
    every = np.arange(len(counts))
    count_before, sum_before = counts[every, first, None], sums[every, first, None]
    count = counts[every, last, None] - count_before
    total = sums[every, last, None] - sum_before
    below = np.clip(counts[:, 1:-1] - count_before, 0, count)
    gap = np.clip(sums[:, 1:-1] - sum_before, 0, total)
    gap *= -count
    gap += total * below
    gap *= gap
    below *= count - below
    variance = np.divide(gap, below, out=np.zeros_like(gap), where=below > 0)
    edge = variance.argmax(axis=1)
    found: npt.NDArray[np.bool_] = variance[every, edge] > 0
    return np.where(found, edge + 1, 0).astype(np.int32)


class OnDevice:
    """The same on a device: one launch, a block a pair, nothing waits.

    What does not change from call to call is uploaded and allocated once; a call overwrites the
    result of the one before.
    """

    def __init__(
        self, launcher: Launcher, offsets: Offsets, variants: int, rules: ProposalRules
    ) -> None:
        self.launcher, self.rules = launcher, rules
        self.pairs, self.total = len(offsets) - 1, int(offsets[-1])
        self.sources = 1 + (variants if rules.variants else 0)
        rows = self.sources * LEVELS
        # Two runs lie at least gap + 1 low clips apart, which bounds how many a curve can have.
        capacity = -(-np.diff(offsets) // (rules.gap + 2))
        slot_offsets = np.concatenate([[0], np.cumsum(rows * capacity)])
        slots = int(slot_offsets[-1])
        taps = _taps(rules.sigma)
        self.radius = len(taps) // 2
        self.tables = [
            launcher.upload(table)
            for table in (offsets, slot_offsets, taps, np.array(rules.factors))
        ]
        self.workspace = [
            launcher.empty((self.sources, self.total), np.int32),
            launcher.empty((self.sources, self.total), np.int64),
            launcher.empty((self.pairs, rows, 2), np.int32),
        ]
        self.found = Proposals(
            launcher.empty((slots,), np.int32),
            launcher.empty((slots,), np.int32),
            launcher.empty((slots,), np.float64),
            slot_offsets,
        )

    def __call__(self, curves: Array, fused: Array) -> Proposals:
        """Launch, and return where the result will be."""
        rules = self.rules
        if self.total:
            self.launcher.launch(
                "proposals",
                "proposals",
                curves,
                fused,
                *self.tables,
                np.int32(self.radius),
                np.int32(self.sources),
                np.int64(self.total),
                np.int32(rules.gap),
                np.int32(rules.stretch),
                np.float64(rules.drop),
                np.float64(rules.own_share),
                np.float64(1 - rules.own_share),
                np.float64(1 - rules.length_weight),
                np.float64(rules.length_weight),
                *self.workspace,
                *self.found[:3],
                blocks=self.pairs,
                threads=_THREADS,
                options=("--fmad=false",),  # as NumPy rounds
            )
        return self.found
