"""Curves in fixed point, smoothed by a Gaussian: whole numbers, so that equal values stay equal.

Sums of whole numbers do not depend on their order. So NumPy and CUDA agree to the bit, and a tie is
a tie on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .launch import Offsets

ONE = 1 << 15
"""1.0 of a curve in fixed point."""
TAPS_ONE = 1 << 12
"""The sum of a Gaussian's weights in fixed point."""

Fixed = npt.NDArray[np.int32]


def gaussian_taps(sigma: float) -> Fixed:
    """A Gaussian out to three sigmas, `(2 * radius + 1,)`, summing to `TAPS_ONE`."""
    radius = math.ceil(3 * sigma)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2) if radius else np.ones(1)
    taps: Fixed = np.rint(weights / weights.sum() * TAPS_ONE).astype(np.int32)
    taps[radius] += TAPS_ONE - taps.sum()
    return taps


def check_sigma(name: str, sigma: float) -> None:
    """Refuse a Gaussian that is out of its range.

    Raises:
        ValueError: it is.
    """
    if not 0 <= sigma <= 64:
        raise ValueError(f"{name}: got {sigma}, expected 0 to 64 clips")


def smoothed(
    curves: npt.NDArray[np.float32], offsets: Offsets, gaussians: Sequence[tuple[float, int]]
) -> Fixed:
    """Smooth the curves of each pair, its edge clips repeated beyond its ends.

    Args:
        curves: `(curves, total)` in [0, 1], without NaN.
        offsets: `(pairs + 1,)` into the clips.
        gaussians: each a sigma in clips, and the number of curves that it smooths, from the first.

    Returns:
        `(curves of all Gaussians, total)` in units of ``1 / (ONE * TAPS_ONE)``.
    """
    fixed = (curves * np.float32(ONE) + np.float32(0.5)).astype(np.int32)
    cuts = [(fixed[:count], gaussian_taps(sigma)) for sigma, count in gaussians]
    radius = max(len(taps) // 2 for _, taps in cuts)
    if radius == 0:
        return np.concatenate([rows * np.int32(TAPS_ONE) for rows, _ in cuts])
    # Repeat the edge clips, so that the steps below are the same for all clips.
    begins, lengths = offsets[:-1], offsets[1:] - offsets[:-1]
    wide = lengths + np.where(lengths > 0, 2 * radius, 0)
    wide_begins = np.cumsum(wide) - wide
    owner = np.repeat(np.arange(len(lengths)), wide)
    clip = np.arange(len(owner)) - wide_begins[owner] - radius
    clip = np.clip(clip, 0, lengths[owner] - 1) + begins[owner]
    inner = np.arange(fixed.shape[1]) + np.repeat(wide_begins - begins, lengths)
    wide_rows = [_blurred(rows.take(clip, axis=1), radius, taps) for rows, taps in cuts]
    return np.concatenate([rows.take(inner, axis=1) for rows in wide_rows])


def _blurred(padded: Fixed, radius: int, taps: Fixed) -> Fixed:
    """The weighted sums around each clip but the first and the last `radius`."""
    width = max(padded.shape[1] - 2 * radius, 0)
    middle = len(taps) // 2
    out: Fixed = padded[:, radius : radius + width] * taps[middle]
    for step in range(1, middle + 1):
        both = padded[:, radius - step : radius - step + width]
        both = both + padded[:, radius + step : radius + step + width]
        both *= taps[middle + step]
        out += both
    return out
