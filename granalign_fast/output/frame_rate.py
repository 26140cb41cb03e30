"""Frame rates as fractions: what a rounded number stands for."""

from __future__ import annotations

import math
from fractions import Fraction

_NTSC = tuple(Fraction(base * 1000, 1001) for base in (24, 30, 48, 60, 120))


def exact_rate(frame_rate: float | Fraction) -> Fraction:
    """What a rounded frame rate stands for: 30000/1001 for 29.97, and itself for an odd one."""
    for exact in (Fraction(max(1, nearest(Fraction(frame_rate)))), *_NTSC):
        # 23.98 for 24000/1001 is off by 160 millionths, and from 24 by a thousand.
        if abs(float(frame_rate) / float(exact) - 1) < 2e-4:
            return exact
    return Fraction(frame_rate).limit_denominator(100_000)


def nearest(number: Fraction) -> int:
    """The nearest integer; halves go up."""
    return math.floor(number + Fraction(1, 2))
