"""The judge of every kernel: the definitions as naive float64 loops, written to be read.

Nothing here is shared with the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

FLAT = 1e-5


def cosine_curves(
    simplified: Any, detailed: Any, agnostic: Any, aware: dict[int, Any]
) -> list[list[float]]:
    """Raw cosines of one pair; `aware` maps a clip to its aware caption's embedding."""
    curves = [[_dot(variant, clip) for clip in agnostic] for variant in simplified]
    return curves + [
        [_dot(variant, aware.get(f, clip)) for f, clip in enumerate(agnostic)]
        for variant in detailed
    ]


def _dot(a: Any, b: Any) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def normalised(curve: Sequence[float]) -> list[float]:
    if not curve:
        return []
    low, high = min(curve), max(curve)
    if high - low < FLAT:
        return [0.0 for _ in curve]
    return [(x - low) / (high - low) for x in curve]


def refined_curves(
    simplified: Any, detailed: Any, mixed: Any, aware: dict[int, Any], power: float, feedback: Any
) -> list[list[float]]:
    """The curves of one pair, after feedback if there is any."""

    def compared(turn: Sequence[Any], rest: Sequence[Any], rows: Any) -> list[list[float]]:
        raw = cosine_curves(turn, rest, rows, aware)
        return [[x**power for x in normalised(curve)] for curve in raw]

    curves = compared(simplified, detailed, mixed)
    if feedback is None:
        return curves
    turn = len(simplified)
    variants = [
        moved(row, curve, mixed, aware if number >= turn else {}, feedback)
        for number, (row, curve) in enumerate(zip([*simplified, *detailed], curves, strict=True))
    ]
    parts = variants[:turn], variants[turn:]
    curves = compared(*parts, mixed)
    if feedback.context is not None:
        curves += compared(*parts, context(mixed, feedback.context, rescale=True))
    return curves


def moved(
    variant: Any, curve: Sequence[float], agnostic: Any, aware: dict[int, Any], rules: Any
) -> Any:
    """A variant after feedback: with the mean over its best clips of what is special in each row.

    That is the row less the mean of the rows of its kind.
    """
    here = np.asarray(variant, dtype=np.float64)
    if not curve:
        return here
    values = smoothed(curve, rules.sigma)
    lowest = sorted(values, reverse=True)[: rules.clips][-1]
    lowest = max(lowest, min(values) + int(rules.level * (max(values) - min(values))))
    best = [clip for clip, value in enumerate(values) if value >= lowest]
    rows = {clip: np.asarray(row, np.float64) for clip, row in enumerate(agnostic)}
    rows |= {clip: np.asarray(row, np.float64) for clip, row in aware.items()}
    special = []
    for clip in best:
        kind = [rows[other] for other in rows if (other in aware) == (clip in aware)]
        special.append(rows[clip] - np.mean(kind, axis=0))
    return here + np.mean(special, axis=0)


def fused(curves: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*curves, strict=True)]


def iou(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Intersection over union of half-open intervals."""
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return inter / float((a[1] - a[0]) + (b[1] - b[0]) - inter)


def nms(
    candidates: Sequence[tuple[int, int, float]], threshold: float, top: int
) -> list[tuple[int, int, float]]:
    """The best candidates that do not overlap; ties go to the earlier start, then end."""
    best: list[tuple[int, int, float]] = []
    for candidate in sorted(candidates, key=lambda c: (-c[2], c[0], c[1])):
        if len(best) == top:
            break
        if all(iou(candidate[:2], other[:2]) < threshold for other in best):
            best.append(candidate)
    return best


def as_array(rows: Sequence[Sequence[float]], clips: int) -> Any:
    return np.array(rows, dtype=np.float64).reshape(len(rows), clips)


def gaussian(sigma: float) -> list[int]:
    """Weights in 1/4096 out to three sigmas; the middle weight takes up the rounding."""
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return [4096]
    raw = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-radius, radius + 1)]
    weights = [round(w / math.fsum(raw) * 4096) for w in raw]
    weights[radius] += 4096 - sum(weights)
    return weights


def smoothed(curve: Sequence[float], sigma: float) -> list[int]:
    """The curve in 1/32768, smoothed with its edge clips repeated by weights in 1/4096."""
    clips = len(curve)
    fixed = [int(float(x) * 32768 + 0.5) for x in curve]
    taps = gaussian(sigma)
    radius = len(taps) // 2
    return [
        sum(w * fixed[min(max(f + k - radius, 0), clips - 1)] for k, w in enumerate(taps))
        for f in range(clips)
    ]


def prepared(curve: Sequence[float], sigma: float, stretch: bool) -> list[int]:
    """The smoothed curve in 1/32768, stretched over [0, 32768]."""
    smooth = smoothed(curve, sigma)
    if not stretch:
        return [value // 4096 for value in smooth]
    low, high = min(smooth), max(smooth)
    return [(value - low) * 32768 // (high - low) if high > low else 0 for value in smooth]


def otsu(values: Sequence[int]) -> int:
    """The edge between the 32 bins with the largest between-class variance, the first of equals.

    The edge is 0 if all values lie in one bin, or if there are no values.
    """
    bins = [min(value // 1024, 31) for value in values]
    best, best_edge = Fraction(0), 0
    for edge in range(1, 32):
        low = [b for b in bins if b < edge]
        high = [b for b in bins if b >= edge]
        if not low or not high:
            continue
        gap = Fraction(sum(low), len(low)) - Fraction(sum(high), len(high))
        variance = len(low) * len(high) * gap * gap
        if variance > best:
            best, best_edge = variance, edge
    return best_edge * 1024


def levels(values: Sequence[int], rules: Any) -> list[tuple[int, float]]:
    """Thresholds with their factors: the main one, then those of the upper and the lower class."""
    main = otsu(values)
    high = otsu([v for v in values if v >= main]) if rules.high_factor else 0
    low = otsu([v for v in values if v < main]) if rules.low_factor else 0
    return [(main, 1.0), (high, rules.high_factor), (low, rules.low_factor)]


def runs(high: Sequence[bool], gap: int) -> list[tuple[int, int]]:
    """Half-open runs of True that may hold at most `gap` False in a row."""
    intervals: list[tuple[int, int]] = []
    for clip, is_high in enumerate(high):
        if not is_high:
            continue
        if intervals and clip - intervals[-1][1] <= gap:
            intervals[-1] = (intervals[-1][0], clip + 1)
        else:
            intervals.append((clip, clip + 1))
    return intervals


def proposals(curves: Any, fused_curve: Any, rules: Any) -> list[tuple[int, int, float]]:
    """Every candidate of one pair of query and video, unordered."""
    clips = len(fused_curve)
    if clips == 0:
        return []
    cuts = [(curve, rules.sigma, 1.0) for curve in [fused_curve, *curves]]
    if not rules.variants:
        cuts = cuts[:1]
    if rules.fine_factor:
        cuts.append((fused_curve, rules.fine_sigma, rules.fine_factor))
    base = prepared(fused_curve, rules.sigma, rules.stretch)
    candidates = []
    for source, (curve, sigma, share) in enumerate(cuts):
        values = prepared(curve, sigma, rules.stretch)
        for level, (threshold, factor) in enumerate(levels(values, rules)):
            if threshold == 0:
                continue
            intervals = runs([value >= threshold for value in values], rules.gap)
            selected = sum(end - start for start, end in intervals)
            for start, end in intervals:
                source_mean = sum(values[start:end]) / ((end - start) * 32768.0)
                mean = sum(base[start:end]) / ((end - start) * 32768.0)
                mu = rules.own_share * source_mean + (1 - rules.own_share) * mean
                rho = (end - start) / selected
                score = (
                    factor * share * ((1 - rules.length_weight) * mu + rules.length_weight * rho)
                )
                length = end - start
                if length < rules.shortest:
                    score *= (length / rules.shortest) ** rules.shortest_power
                candidates.append((mean, source, level, start, end, score))
    candidates.sort()
    candidates = candidates[int(rules.drop * len(candidates)) :]
    return [(start, end, score) for *_, start, end, score in candidates] or [(0, clips, 0.0)]


def context(embeddings: Any, rules: Any, rescale: bool = False) -> Any:
    """Each clip as the mean of the clips around it, weighted by cosine."""
    if rescale:
        rows = np.asarray(embeddings, dtype=np.float64)
        embeddings = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    clips = len(embeddings)
    radius = rules.radius
    mixed = np.zeros(np.shape(embeddings), dtype=np.float64)
    for clip in range(clips):
        total = 0.0
        for other in range(max(0, clip - radius), min(clips, clip + radius + 1)):
            cosine = _dot(embeddings[clip], embeddings[other])
            weight = max(cosine, 0.0) ** rules.power
            mixed[clip] += weight * np.asarray(embeddings[other], dtype=np.float64)
            total += weight
        mixed[clip] /= total
    return mixed


def inner_products(queries: Any, clips: Any) -> list[list[float]]:
    """The product of every query with every clip."""
    return [[_dot(query, clip) for clip in clips] for query in queries]


def nearest(scores: Sequence[float], k: int) -> list[tuple[float, int]]:
    """The `k` best scores of a query with their rows; of equal scores the lower row is better."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return [(scores[row], row) for row in order[:k]]
