"""Find a video's exact frame rate from its packets, and make rounded rates such as 29.97 exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

from .container import Video
from .packets import PacketReader

_NTSC = tuple(Fraction(base * 1000, 1001) for base in (24, 30, 48, 60, 120))
"""The rates of NTSC video and its multiples in frames per second, such as 30000/1001."""

NOMINAL_RATES = (
    *(Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30)),
    *(Fraction(48), Fraction(50), Fraction(60000, 1001), Fraction(60)),
    *(Fraction(120000, 1001), Fraction(120)),
)
"""The frame rates in which cameras record and editing programs count."""

_ROUNDED_TOLERANCE = 2e-4
"""Largest relative error of a rounded rate: 23.98 differs from 24000/1001 by 1.6e-4, and from 24 by
8.3e-4."""

_MEASURED_TOLERANCE = 5e-4
"""Largest relative distance of a measured rate from its nominal rate: half of that between 29.97
and 30. Clocks of cameras are better than a tenth of it."""

_MEASURED_SECONDS = 120
"""Seconds from the first frame on whose packets are read."""

_JITTER = Fraction(1, 10)
"""Part of the median by which the duration of a frame may differ in a constant rate."""

_ROUNDING = Fraction(2)
"""Units of the time base by which rounded time stamps may change the duration of a frame. Rounding
both of its ends changes it by 1, and a file that was converted may be rounded twice."""

_MOST_IRREGULAR = Fraction(1, 100)
"""Part of the frames that may differ by more in a constant rate: the file may lack some frames."""


@dataclass(frozen=True, slots=True)
class FrameRate:
    """A frame rate that was checked against the presentation times of the packets."""

    rate: Fraction
    """Exact frames per second. For a variable rate: the nominal rate that is nearest to the median
    duration of a frame."""
    shortest: float
    """The shortest duration of a frame in seconds."""
    longest: float
    """The longest duration of a frame in seconds."""
    is_variable: bool = False
    """True if the durations of frames differ by more than rounding and jitter."""


def measure_rate(video: Video, *, interlaced: bool = False) -> FrameRate | None:
    """Return the frame rate of an open video, from its packets; nothing is decoded.

    Packets are read from the current position, for two minutes of video. The rate in the headers
    counts where the packets agree with it; headers that are wrong are corrected. AVI has no
    presentation times, so its header is right by definition.

    Args:
        video: an open video at its start.
        interlaced: the pictures are interlaced, so that each packet may hold one field.

    Returns:
        The rate, or None if the headers have no rate and the packets show none.
    """
    average = video.stream.average_rate
    header = exact_rate(average) if average else None
    times = [] if video.has_packet_numbers else _packet_times(video)
    steps = [after - before for before, after in pairwise(times) if after > before]
    if len(steps) < 2:
        duration = 0.0 if header is None else float(1 / header)
        return None if header is None else FrameRate(header, duration, duration)
    # 1. A duration is regular if it differs from the median by rounding or jitter alone.
    median = median_low(steps)
    tolerance = max(_ROUNDING, median * _JITTER)
    regular = [step for step in steps if abs(step - median) <= tolerance]
    is_variable = len(steps) - len(regular) > len(steps) * _MOST_IRREGULAR
    # 2. The mean of the regular durations is exact, although time stamps are rounded.
    measured = len(regular) / (sum(regular) * video.time_base)
    error = 1 / sum(regular)
    if interlaced and header is not None and abs(measured / (2 * header) - 1) < Fraction(1, 100):
        measured = measured / 2
    rate = _nearest_nominal(measured) if is_variable else _snap(measured, header, error)
    shortest, longest = (float(step * video.time_base) for step in (min(steps), max(steps)))
    return FrameRate(rate, shortest, longest, is_variable)


def exact_rate(frame_rate: float | Fraction) -> Fraction:
    """Return the exact rate for a rounded one: 30000/1001 for 29.97.

    A rate that is near neither an integer nor an NTSC rate is returned as a fraction.
    """
    for exact in (Fraction(max(1, round_half_up(Fraction(frame_rate)))), *_NTSC):
        if abs(float(frame_rate) / float(exact) - 1) < _ROUNDED_TOLERANCE:
            return exact
    return Fraction(frame_rate).limit_denominator(100_000)


def round_half_up(number: Fraction) -> int:
    """Round to the nearest integer; halves go up."""
    return math.floor(number + Fraction(1, 2))


def _packet_times(video: Video) -> Sequence[int]:
    """Return the PTS of the first packets in ascending order, in units of the time base."""
    reader = PacketReader(video, Fraction(2))
    times: list[int] = []
    limit = video.ticks(Fraction(_MEASURED_SECONDS))
    while (packet := reader.next_packet()) is not None:
        if packet.pts is None or packet.is_discard:
            continue
        times.append(packet.pts)
        if packet.pts - times[0] > limit:
            break
    return sorted(times)


def _snap(measured: Fraction, header: Fraction | None, error: float) -> Fraction:
    """Return the exact rate that a measured constant rate stands for.

    Args:
        measured: frames per second.
        header: the exact rate in the headers, or None.
        error: relative error of `measured` that comes from rounded time stamps.
    """
    if header is not None and abs(measured / header - 1) <= max(_ROUNDED_TOLERANCE, error):
        return header
    nominal = _nearest_nominal(measured)
    if abs(measured / nominal - 1) <= max(_MEASURED_TOLERANCE, error):
        return nominal
    return exact_rate(measured)


def _nearest_nominal(measured: Fraction) -> Fraction:
    """Return the nominal rate whose ratio to a measured rate is nearest to 1."""
    return min(NOMINAL_RATES, key=lambda rate: max(rate / measured, measured / rate))
