"""Convert rounded frame rates, such as 29.97, to exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

_NTSC = tuple(Fraction(base * 1000, 1001) for base in (24, 30, 48, 60, 120))
"""The rates of NTSC video and its multiples in frames per second, such as 30000/1001."""

_TOLERANCE = 2e-4
"""Largest relative error of a rounded rate: 23.98 differs from 24000/1001 by 1.6e-4, and from 24 by
8.3e-4."""


def exact_rate(frame_rate: float | Fraction) -> Fraction:
    """Return the exact rate for a rounded one: 30000/1001 for 29.97.

    A rate that is near neither an integer nor an NTSC rate is returned as a fraction.
    """
    for exact in (Fraction(max(1, round_half_up(Fraction(frame_rate)))), *_NTSC):
        if abs(float(frame_rate) / float(exact) - 1) < _TOLERANCE:
            return exact
    return Fraction(frame_rate).limit_denominator(100_000)


def round_half_up(number: Fraction) -> int:
    """Round to the nearest integer; halves go up."""
    return math.floor(number + Fraction(1, 2))
