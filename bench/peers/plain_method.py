"""The method as research code writes it: a loop over queries and runs, NumPy within a query.

It shares only definitions with the kernels. So it serves both as the peer whose speed they are
compared with, and as the judge of their results.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import ContextRules, FeedbackRules, ProposalRules
from granalign_fast.kernels.similarity import FLAT

Moment = tuple[int, int, float]
"""First clip, one past the last clip, score."""
Rows = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]
"""One or two matrices `(clips, dim)`: the first is for all comparisons, the second for those after
feedback."""

_ONE, _TAPS_ONE, _BINS = 1 << 15, 1 << 12, 32
"""1.0 of a curve in fixed point, 1.0 of the Gaussian's taps, and bins of Otsu's histogram, all as
in the kernels."""


def search(variants: npt.NDArray[np.float32], rows: Rows, config: RetrieverConfig) -> list[Moment]:
    """Return the moments of one query, best first.

    Args:
        variants: embeddings of the query's variants, `(variants, dim)`, rows of unit length.
        rows: what the comparisons take; see `mixed`.
        config: the retriever's configuration.
    """
    each = refined(variants, rows, config)
    unranked = candidates(each, each.mean(axis=0), config.proposals)
    return suppress(unranked, config.nms_threshold, config.top)


def mixed(clips: npt.NDArray[np.float32], config: RetrieverConfig) -> Rows:
    """Return the captions' embeddings as the comparisons take them."""
    first = clips if config.context is None else context(clips, config.context)
    if config.feedback is None or config.feedback.context is None:
        return first, None
    lengths = np.linalg.norm(first, axis=1, keepdims=True)
    return first, context(first / lengths, config.feedback.context)


def refined(
    variants: npt.NDArray[np.float32],
    rows: Rows,
    config: RetrieverConfig,
    aware: Collection[int] = (),
) -> npt.NDArray[np.float32]:
    """Return the curves that candidates are cut from, one or two for each variant.

    `aware` are the clips whose rows are query-aware captions.
    """
    first, second = rows
    each = curves(variants, first, config.power)
    if config.feedback is None:
        return each
    moved = [
        move(variant, curve, first, config.feedback, aware)
        for variant, curve in zip(variants, each, strict=True)
    ]
    compared = [rows for rows in (first, second) if rows is not None]
    return np.concatenate([curves(np.array(moved), rows, config.power) for rows in compared])


def move(
    variant: npt.NDArray[np.float32],
    curve: npt.NDArray[np.float32],
    rows: npt.NDArray[np.float32],
    rules: FeedbackRules,
    aware: Collection[int] = (),
) -> npt.NDArray[np.float32]:
    """Return a variant moved towards the rows of the best clips of its curve, `(dim,)`."""
    values = _smoothed(curve, rules.sigma)
    level = values.min() + int(rules.level * np.ptp(values))
    best = np.flatnonzero(values >= max(np.sort(values)[-rules.clips :][0], level))
    is_aware = np.isin(np.arange(len(rows)), list(aware))
    special = rows.copy()
    for kind in (is_aware, ~is_aware):
        if kind.any():
            special[kind] -= rows[kind].mean(axis=0)
    moved: npt.NDArray[np.float32] = variant + special[best].mean(axis=0)
    return moved


def context(clips: npt.NDArray[np.float32], rules: ContextRules) -> npt.NDArray[np.float32]:
    """Return each clip's embedding mixed with those of near and similar clips, `(clips, dim)`."""
    mixed = np.empty_like(clips)
    for i, clip in enumerate(clips):
        near = clips[max(i - rules.radius, 0) : i + rules.radius + 1]
        weights = np.maximum(near @ clip, 0) ** rules.power
        mixed[i] = weights @ near / weights.sum()
    return mixed


def curves(
    variants: npt.NDArray[np.float32], clips: npt.NDArray[np.float32], power: float
) -> npt.NDArray[np.float32]:
    """Return the min-max normalised cosines of variants and clips, `(variants, clips)`."""
    rows = []
    for variant in variants:
        cosines = clips @ variant
        span = cosines.max() - cosines.min()
        rows.append(
            ((cosines - cosines.min()) / span) ** power if span >= FLAT else np.zeros_like(cosines)
        )
    return np.array(rows, np.float32)


def candidates(
    each: npt.NDArray[np.float32], fused: npt.NDArray[np.float32], rules: ProposalRules
) -> list[Moment]:
    """Return every candidate of one query, in no particular order."""
    base = _prepared(fused, rules.sigma, rules.stretch)
    cuts = [(fused, rules.sigma, rules.factors)]
    if rules.variants:
        cuts += [(curve, rules.sigma, rules.factors) for curve in each]
    if rules.fine_factor:
        cuts.append((fused, rules.fine_sigma, rules.fine_factors))
    scored: list[tuple[Any, ...]] = []
    for source, (curve, sigma, factors) in enumerate(cuts):
        values = _prepared(curve, sigma, rules.stretch)
        for level, threshold in enumerate(_thresholds(values, rules)):
            if not threshold:
                continue
            runs = _runs(values >= threshold, rules.gap)
            selected = sum(end - start for start, end in runs)
            for start, end in runs:
                scale = float(end - start) * _ONE
                source_mean, mean = values[start:end].sum() / scale, base[start:end].sum() / scale
                score = (1 - rules.length_weight) * (
                    rules.own_share * source_mean + (1 - rules.own_share) * mean
                )
                score = score + rules.length_weight * ((end - start) / selected)
                score = factors[level] * score * rules.length_factor(end - start)
                scored.append((mean, 3 * source + level, start, end, score))
    scored.sort(key=lambda one: one[:3])
    scored = scored[int(rules.drop * len(scored)) :]
    return [(start, end, float(score)) for *_, start, end, score in scored] or [
        (0, len(fused), 0.0)
    ]


def suppress(candidates: list[Moment], threshold: float, top: int) -> list[Moment]:
    """Suppress non-maxima: return the best that do not overlap a better one.

    Of equal scores, the earlier start wins, then the earlier end.
    """
    selected: list[Moment] = []
    for one in sorted(candidates, key=lambda c: (-c[2], c[0], c[1])):
        if len(selected) == top:
            break
        if all(_overlap(one, other) < threshold for other in selected):
            selected.append(one)
    return selected


def _overlap(one: Moment, other: Moment) -> float:
    both = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return both / ((one[1] - one[0]) + (other[1] - other[0]) - both)


def _smoothed(curve: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.int64]:
    """Convert a curve to fixed point and smooth it."""
    fixed = (curve * np.float32(_ONE) + np.float32(0.5)).astype(np.int64)
    radius = math.ceil(3 * sigma)
    taps = np.array([_TAPS_ONE])
    if radius:
        steps = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (steps / sigma) ** 2)
        taps = np.rint(weights / weights.sum() * _TAPS_ONE).astype(np.int64)
        taps[radius] += _TAPS_ONE - taps.sum()
    smooth: npt.NDArray[np.int64] = np.convolve(np.pad(fixed, radius, "edge"), taps, "valid")
    return smooth


def _prepared(curve: npt.NDArray[np.float32], sigma: float, stretch: bool) -> npt.NDArray[np.int64]:
    """Smooth a curve and stretch it to its range."""
    smooth = _smoothed(curve, sigma)
    if not stretch:
        return smooth // _TAPS_ONE
    span = max(int(np.ptp(smooth)), 1)
    stretched: npt.NDArray[np.int64] = (smooth - smooth.min()) * _ONE // span
    return stretched


def _thresholds(values: npt.NDArray[np.int64], rules: ProposalRules) -> tuple[int, int, int]:
    """Return Otsu's threshold, and those of the clips above and below it if the rules use them."""
    main = _otsu(values)
    if not main:
        return 0, 0, 0
    high = _otsu(values[values >= main]) if rules.high_factor else 0
    low = _otsu(values[values < main]) if rules.low_factor else 0
    return main, high, low


def _otsu(values: npt.NDArray[np.int64]) -> int:
    bins = np.minimum(values // (_ONE // _BINS), _BINS - 1)
    histogram = np.bincount(bins, minlength=_BINS).astype(np.float64)
    low = histogram.cumsum()[:-1]
    low_sum = (histogram * np.arange(_BINS)).cumsum()[:-1]
    high, high_sum = len(values) - low, bins.sum() - low_sum
    both = low * high
    variance = np.divide(
        (low_sum * high - high_sum * low) ** 2, both, out=np.zeros(_BINS - 1), where=both > 0
    )
    best = int(variance.argmax())
    return (best + 1) * (_ONE // _BINS) if variance[best] > 0 else 0


def _runs(high: npt.NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for clip in np.flatnonzero(high).tolist():
        if runs and clip - runs[-1][1] <= gap:
            runs[-1] = runs[-1][0], clip + 1
        else:
            runs.append((clip, clip + 1))
    return runs
