"""Time codes as OpenTimelineIO counts them, and rounded rates made exact."""

from __future__ import annotations

import math
from fractions import Fraction
from importlib import import_module

import pytest

from granalign_fast.video.frame_rate import exact_rate
from granalign_fast.video.timecode import frames_of_hours, parse_timecode, timecode

RATES = {
    23.976: Fraction(24000, 1001),
    24: Fraction(24),
    25: Fraction(25),
    29.97: Fraction(30000, 1001),
    30: Fraction(30),
    59.94: Fraction(60000, 1001),
    60: Fraction(60),
}
DROP = (RATES[29.97], RATES[59.94])


@pytest.mark.parametrize("frame_rate", sorted(RATES))
def test_timecodes(frame_rate: float) -> None:
    opentime = import_module("opentimelineio.opentime")
    rate = RATES[frame_rate]
    minute = math.ceil(60 * rate)
    near_minutes = {n * minute + d for n in range(25) for d in range(-90, 40)}
    spread = range(0, math.floor(86_399 * rate), 104_729)
    for frame in sorted({*range(200), *near_minutes, *spread}):
        if frame >= 0:
            expected = opentime.RationalTime(frame, float(rate)).to_timecode()
            assert timecode(frame, rate) == expected


@pytest.mark.parametrize(
    ("given_rate", "expected"),
    [
        *RATES.items(),
        *((exact, exact) for exact in RATES.values()),
        (23.98, Fraction(24000, 1001)),
        (47.952, Fraction(48000, 1001)),
        (29.97002997002997, Fraction(30000, 1001)),
        (19001 / 634, Fraction(30000, 1001)),
        (12.5, Fraction(25, 2)),
        (17.123, Fraction(17123, 1000)),
        (0.1, Fraction(1, 10)),
    ],
)
def test_rounded_rates_are_made_exact(given_rate: float, expected: Fraction) -> None:
    assert exact_rate(given_rate) == expected


@pytest.mark.parametrize("drop_frame", [True, False])
@pytest.mark.parametrize("rate", [exact_rate(rate) for rate in (23.976, 25, 29.97, 50, 59.94)])
def test_time_codes_are_parsed_as_they_are_written(rate: Fraction, drop_frame: bool) -> None:
    day = frames_of_hours(24, rate, drop_frame=drop_frame and rate in DROP)
    for frame in (*range(0, 4000, 7), *range(17_900, 18_100), *range(0, day, 98_731), day - 1):
        text = timecode(frame, rate, drop_frame=drop_frame)
        assert parse_timecode(text, rate) == (frame, ";" in text)
