"""The method as people publish it: one query after another, NumPy within a query, loops over runs.

It shares nothing with the kernels but their definitions, so it is both what they are compared with
in speed and what judges them in the same run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import ContextRules, ProposalRules
from granalign_fast.kernels.similarity import FLAT

Found = tuple[int, int, float]
"""First clip, one past the last, score."""

_ONE, _TAPS_ONE, _BINS = 1 << 15, 1 << 12, 32


def search(
    variants: npt.NDArray[np.float32], clips: npt.NDArray[np.float32], config: RetrieverConfig
) -> list[Found]:
    """The moments of one query, best first.

    Args:
        variants: of the query, `(variants, dim)`, rows of unit length.
        clips: `(clips, dim)`, the embeddings that `context` has mixed if it is to.
        config: of the retriever.
    """
    each = curves(variants, clips, config.power)
    found = candidates(each, each.mean(axis=0), config.proposals)
    return suppress(found, config.nms_threshold, config.top)


def context(clips: npt.NDArray[np.float32], rules: ContextRules) -> npt.NDArray[np.float32]:
    """Each clip mixed with near and similar ones, `(clips, dim)`."""
    mixed = np.empty_like(clips)
    for i, clip in enumerate(clips):
        near = clips[max(i - rules.radius, 0) : i + rules.radius + 1]
        weights = np.maximum(near @ clip, 0) ** rules.power
        mixed[i] = weights @ near / weights.sum()
    return mixed


def curves(
    variants: npt.NDArray[np.float32], clips: npt.NDArray[np.float32], power: float
) -> npt.NDArray[np.float32]:
    """The rescaled cosines of each variant with each clip, `(variants, clips)`."""
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
) -> list[Found]:
    """Every candidate of one query, unordered."""
    base = _prepared(fused, rules)
    found: list[tuple[Any, ...]] = []
    for source, curve in enumerate([fused, *(each if rules.variants else [])]):
        values = _prepared(curve, rules)
        for level, threshold in enumerate(_thresholds(values, rules)):
            if not threshold:
                continue
            runs = _runs(values >= threshold, rules.gap)
            selected = sum(end - start for start, end in runs)
            for start, end in runs:
                scale = float(end - start) * _ONE
                own, mean = values[start:end].sum() / scale, base[start:end].sum() / scale
                score = (1 - rules.length_weight) * (
                    rules.own_share * own + (1 - rules.own_share) * mean
                )
                score = score + rules.length_weight * ((end - start) / selected)
                place = 3 * source + level
                found.append((mean, place, start, end, rules.factors[level] * score))
    found.sort(key=lambda one: one[:3])
    found = found[int(rules.drop * len(found)) :]
    return [(start, end, float(score)) for *_, start, end, score in found] or [(0, len(fused), 0.0)]


def suppress(found: list[Found], threshold: float, top: int) -> list[Found]:
    """The best that do not overlap a better one; ties go to the earlier start, then end."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda c: (-c[2], c[0], c[1])):
        if len(kept) == top:
            break
        if all(_overlap(one, other) < threshold for other in kept):
            kept.append(one)
    return kept


def _overlap(one: Found, other: Found) -> float:
    both = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return both / ((one[1] - one[0]) + (other[1] - other[0]) - both)


def _prepared(curve: npt.NDArray[np.float32], rules: ProposalRules) -> npt.NDArray[np.int64]:
    """In fixed point, smoothed and stretched."""
    fixed = (curve * np.float32(_ONE) + np.float32(0.5)).astype(np.int64)
    radius = math.ceil(3 * rules.sigma)
    taps = np.array([_TAPS_ONE])
    if radius:
        steps = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (steps / rules.sigma) ** 2)
        taps = np.rint(weights / weights.sum() * _TAPS_ONE).astype(np.int64)
        taps[radius] += _TAPS_ONE - taps.sum()
    smooth: npt.NDArray[np.int64] = np.convolve(np.pad(fixed, radius, "edge"), taps, "valid")
    if not rules.stretch:
        return smooth // _TAPS_ONE
    span = max(int(np.ptp(smooth)), 1)
    stretched: npt.NDArray[np.int64] = (smooth - smooth.min()) * _ONE // span
    return stretched


def _thresholds(values: npt.NDArray[np.int64], rules: ProposalRules) -> tuple[int, int, int]:
    """Otsu's, and those of the clips above and below it where they are asked for."""
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
