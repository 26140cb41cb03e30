"""Candidate moments from similarity curves: smooth, threshold, merge runs, score.

A candidate's score is the paper's, ``(1 - lambda) * mu + lambda * rho`` (GranAlign, arXiv
2601.00584, section 3), mu the mean similarity of the run, rho its share of all clips in the runs
that one threshold gives. The paper does not say what makes a clip high-scoring: here Otsu's
threshold does (Otsu 1979), chosen for each curve from a histogram.

Curves are held in fixed point, so that NumPy and CUDA agree to the bit and ties are real ties.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .launch import Array, Launcher, Offsets, check_array, check_offsets, chunks, launcher_for
from .proposal_rules import ProposalRules
from .smoothing import ONE, TAPS_ONE, gaussian_taps, smoothed

BINS = 32
"""Bins of the histogram that Otsu's threshold is chosen from: one for each lane of a warp."""
LEVELS = 3
"""Thresholds of a curve: the main one, and one more in the class above and below it."""

_THREADS = 256  # WARPS * WARP of proposals.cu
_EXACT_CLIPS = 700  # for these, float32 holds the sums of `_otsu`: 31 * 700^2 is below 2^24
_CHUNK_CLIPS = 8192  # clips the host works on at a time: its temporaries stay in the cache


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


@functools.lru_cache(maxsize=64)
def _length_factors(rules: ProposalRules, longest: int) -> npt.NDArray[np.float64] | None:
    """The factor of each length of a run, `(longest + 1,)`; None where all are 1.

    It is a table because powers on a GPU are not those of a host to the bit.
    """
    if not rules.shortest_power:
        return None
    return np.array([rules.length_factor(length) for length in range(longest + 1)])


def on_host(
    curves: npt.NDArray[np.float32],
    fused: npt.NDArray[np.float32],
    offsets: Offsets,
    rules: ProposalRules,
) -> Proposals:
    """The NumPy twin, a few pairs at a time."""
    parts = []
    for pairs in chunks(offsets, _CHUNK_CLIPS):
        begin, end = offsets[pairs.start], offsets[pairs.stop]
        sources = fused[None, begin:end]
        if rules.variants:
            sources = np.concatenate([sources, curves[:, begin:end]])
        own_offsets = offsets[pairs.start : pairs.stop + 1] - begin
        parts.append(_Chunk(sources, own_offsets, rules).proposals())
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
        self.total = sources.shape[1]
        factors = [rules.factors] * len(sources) + [rules.fine_factors] * (rules.fine_factor > 0)
        self.sources, self.factors = len(factors), np.array(factors)
        self.offsets, self.begins, self.lengths = offsets, offsets[:-1], offsets[1:] - offsets[:-1]
        self.pairs = len(self.lengths)
        self.length_factors = _length_factors(rules, int(self.lengths.max(initial=0)))
        self.owner = np.repeat(np.arange(self.pairs), self.lengths)
        self.rows = np.arange(self.sources)[:, None] * self.pairs + self.owner
        self.broken = np.zeros(self.pairs, np.bool_)
        if np.isnan(sources.sum()):  # one pass where there is no NaN
            wrong = np.isnan(sources)
            self.broken[self.owner[wrong.any(axis=0)]] = True
            sources = np.where(wrong, np.float32(0), sources)
        self.values = self.prepare(sources)

    def prepare(self, sources: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """The curves in fixed point, smoothed and stretched, `(sources, total)`."""
        gaussians = [(self.rules.sigma, len(sources))]
        if self.rules.fine_factor:
            gaussians.append((self.rules.fine_sigma, 1))
        smooth = smoothed(sources, self.offsets, gaussians)
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

    def edges(self) -> npt.NDArray[np.int32]:
        """`(LEVELS, sources, pairs)` bin edges; 0 where a level is not used or does not exist."""
        bins = np.minimum(self.values >> (ONE // BINS).bit_length() - 1, BINS - 1)
        flat = (self.rows * BINS + bins).ravel()
        histogram = np.bincount(flat, minlength=self.sources * self.pairs * BINS)
        histogram = histogram.reshape(-1, BINS)
        # Floating-point numbers are faster than integers, and exact up to here.
        exact = np.float32 if self.lengths.max(initial=0) <= _EXACT_CLIPS else np.float64
        counts = np.zeros((len(histogram), BINS + 1), exact)
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
        owner, starts, ends, scores, means, rows = self.runs(self.edges())
        if self.rules.drop > 0:
            kept = self.without_the_lowest(owner, starts, means, rows)
            owner, starts, ends, scores = owner[kept], starts[kept], ends[kept], scores[kept]
        if self.broken.any():
            kept = np.flatnonzero(~self.broken[owner])
            owner, starts, ends, scores = owner[kept], starts[kept], ends[kept], scores[kept]
        none = np.bincount(owner, minlength=self.pairs) == 0
        bare = np.flatnonzero(none & (self.lengths > 0) & ~self.broken)
        owner = np.concatenate([owner, bare])
        # NumPy sorts 16 bits by radix, several times as fast.
        order = owner.astype(np.min_scalar_type(self.pairs)).argsort(kind="stable")
        return Proposals(
            np.concatenate([starts, np.zeros(len(bare), np.int32)])[order],
            np.concatenate([ends, self.lengths[bare].astype(np.int32)])[order],
            np.concatenate([scores, np.zeros(len(bare))])[order],
            np.concatenate([[0], np.bincount(owner, minlength=self.pairs).cumsum()]),
        )

    def runs(self, edges: npt.NDArray[np.int32]) -> tuple[npt.NDArray[Any], ...]:
        """Owner, start, end, score, fused mean and row of every run, level after level."""
        rules = self.rules
        threshold = np.where(edges > 0, edges * np.int32(ONE // BINS), np.int32(2 * ONE))
        above = self.values >= np.repeat(threshold, self.lengths, axis=2)
        high = above.ravel().nonzero()[0]
        # Far enough apart between pairs, curves and levels that no run crosses over.
        line, clip = np.divmod(high, self.total)
        place = high + (line * self.pairs + self.owner[clip]) * (rules.gap + 1)
        apart = np.empty(len(high), np.bool_)
        apart[:1] = True
        np.greater(place[1:] - place[:-1], rules.gap + 1, out=apart[1:])
        fresh = apart.nonzero()[0]
        line, clip, length = line[fresh], clip[fresh], self.run_lengths(high, fresh)
        level, source = np.divmod(line, self.sources)
        owner = self.owner[clip]

        row = line * self.pairs + owner
        row_length = np.bincount(row, weights=length, minlength=edges.size)
        # The same operations in the same order as proposals.cu, so that the bits agree.
        scale = length * float(ONE)
        own_sums = np.zeros(self.values.size + 1, np.int64)
        self.values.ravel().cumsum(dtype=np.int64, out=own_sums[1:])
        begin = source * self.total + clip
        own = (own_sums[begin + length] - own_sums[begin]) / scale
        # The fused curve is the first source: its sums begin at 0.
        means = (own_sums[clip + length] - own_sums[clip]) / scale
        scores = (1 - rules.length_weight) * (rules.own_share * own + (1 - rules.own_share) * means)
        scores = scores + rules.length_weight * (length / row_length[row])
        scores *= self.factors[source, level]
        if self.length_factors is not None:
            scores *= self.length_factors[length]
        starts = (clip - self.begins[owner]).astype(np.int32)
        ends = starts + length.astype(np.int32)
        return owner, starts, ends, scores, means, source * LEVELS + level

    @staticmethod
    def run_lengths(high: npt.NDArray[np.int64], fresh: npt.NDArray[np.int64]) -> Any:
        """The clips from the first high one of each run to its last one."""
        last = np.empty(len(fresh), np.int64)
        last[:-1] = high[fresh[1:] - 1]
        last[-1:] = high[-1:]
        return last - high[fresh] + 1

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
    counts: npt.NDArray[Any],
    sums: npt.NDArray[Any],
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
    below = counts[:, 1:-1] - count_before
    gap = sums[:, 1:-1] - sum_before
    gap *= count
    gap -= total * below
    # Above 0 where both classes hold a clip. Elsewhere it is below 0, and so is the variance, or it
    # is 0, and so is the gap.
    both = (count - below) * below
    both += both == 0
    variance = gap.astype(np.float64)
    variance *= variance
    variance /= both
    edge = variance.argmax(axis=1)
    return np.where(variance[every, edge] > 0, edge + 1, 0).astype(np.int32)


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
        self.sources = 1 + (variants if rules.variants else 0) + (rules.fine_factor > 0)
        rows = self.sources * LEVELS
        # Two runs lie at least gap + 1 low clips apart, which bounds how many a curve can have.
        capacity = -(-np.diff(offsets) // (rules.gap + 2))
        slot_offsets = np.concatenate([[0], np.cumsum(rows * capacity)])
        slots = int(slot_offsets[-1])
        taps, fine_taps = gaussian_taps(rules.sigma), gaussian_taps(rules.fine_sigma)
        self.radius = len(taps) // 2
        self.fine_radius = len(fine_taps) // 2 if rules.fine_factor else -1
        factors = np.array([rules.factors, rules.fine_factors])
        self.tables = [
            launcher.upload(table)
            for table in (offsets, slot_offsets, np.concatenate([taps, fine_taps]), factors)
        ]
        by_length = _length_factors(rules, int(np.diff(offsets).max(initial=0)))
        self.length_factors = None if by_length is None else launcher.upload(by_length)
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
                self.length_factors,
                np.int32(self.radius),
                np.int32(self.fine_radius),
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
