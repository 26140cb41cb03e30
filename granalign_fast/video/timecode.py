"""SMPTE time codes: write and parse them, and read the one of a video's first frame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from granalign_fast.errors import GranAlignError

from .container import Video
from .frame_rate import round_half_up

if TYPE_CHECKING:
    import av

DROP_FRAME_RATES = (Fraction(30000, 1001), Fraction(60000, 1001))
"""The rates whose time code can skip numbers to keep in step with the clock (SMPTE ST 12-1)."""

_MOST_FRAMES = 99
"""Frames per second that a time code counts: it has two digits for them."""

_PATTERN = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})([:;.,])(\d{2})")
"""Hours, minutes, seconds, separator and frames; a separator other than the colon marks
drop-frame."""


def timecode(frame: int, rate: Fraction, *, drop_frame: bool | None = None) -> str:
    """Return the SMPTE time code of a frame: ``00:01:00;02`` for frame 1800 at 30000/1001.

    The formula for drop-frame time codes is that of SMPTE ST 12-1.

    Args:
        frame: the frame's number, from 0.
        rate: frames per second, exact.
        drop_frame: skip numbers; by default at the rates 29.97 and 59.94. Other rates never skip.

    Raises:
        GranAlignError: the rate is above 99 or below 1, or the frame lies 24 hours or more after
            the first.
    """
    base = round_half_up(rate)
    if not 1 <= base <= _MOST_FRAMES:
        raise GranAlignError(
            f"frame rate: got {float(rate):g}, but a timecode counts 1 to {_MOST_FRAMES} frames a "
            f"second; write otio instead"
        )
    # `number` is the frame's number in the time code, which may skip numbers.
    number, separator = frame, ":"
    if rate in DROP_FRAME_RATES and drop_frame is not False:
        # Every minute except each tenth skips its first numbers: 2 at 29.97, 4 at 59.94.
        dropped, separator = base // 15, ";"
        tens, rest = divmod(frame, 600 * base - 9 * dropped)
        number += dropped * (9 * tens + max(0, (rest - dropped) // (60 * base - dropped)))
    seconds, frames = divmod(number, base)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        raise GranAlignError(
            f"timecode: got frame {frame} at {float(rate):g} frames per second, but timecodes "
            f"end at 24 hours; write otio instead"
        )
    return f"{hours:02}:{minutes:02}:{seconds:02}{separator}{frames:02}"


def parse_timecode(text: str, rate: Fraction) -> tuple[int, bool] | None:
    """Return the frame number of a time code and whether it is drop-frame.

    Args:
        text: the time code, such as ``18:45:23;12``.
        rate: frames per second, exact. A drop-frame mark counts at 29.97 and 59.94 alone.

    Returns:
        The number of frames since 00:00:00:00 and the flag; None if this is no time code of
        the rate.
    """
    match = _PATTERN.fullmatch(text.strip())
    base = round_half_up(rate)
    if match is None or not 1 <= base <= _MOST_FRAMES:
        return None
    hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
    if hours > 23 or minutes > 59 or seconds > 59 or frames >= base:
        return None
    minutes += 60 * hours
    number = (60 * minutes + seconds) * base + frames
    drop_frame = match[4] != ":" and rate in DROP_FRAME_RATES
    if drop_frame:
        number -= base // 15 * (minutes - minutes // 10)
    return number, drop_frame


def frames_of_hours(hours: int, rate: Fraction, *, drop_frame: bool) -> int:
    """Return the number of the frame whose time code is exactly `hours` hours."""
    base = round_half_up(rate)
    # A drop-frame hour skips the first numbers of 54 minutes.
    return hours * (3600 * base - (54 * (base // 15) if drop_frame else 0))


def read_timecode(video: Video, first: av.VideoFrame, rate: Fraction) -> str | None:
    """Return the time code of a video's first frame, or None if the file has none.

    The sources, best first: the tag of the video stream, that of a time code track or another
    stream, that of the container, and the time code that the first frame carries (SMPTE ST 12-1
    in H.264 and HEVC, the group of pictures in MPEG-2).

    Args:
        video: an open video.
        first: its first frame, decoded.
        rate: frames per second, exact; a tag that is no time code of this rate does not count.
    """
    for tag in _tags(video):
        if parse_timecode(tag, rate) is not None:
            return tag.strip()
    # Encoders of MPEG-2 write zeros where they know no time code.
    tag = _tag(first.metadata)
    start = parse_timecode(tag, rate)
    return tag.strip() if start is not None and start[0] else None


def _tags(video: Video) -> Iterator[str]:
    """Yield the time codes of streams and container, the video stream's first."""
    yield _tag(video.stream.metadata)
    for stream in video.container.streams:
        if stream.type != "video":
            yield _tag(stream.metadata)
    yield _tag(video.container.metadata)


def _tag(metadata: Mapping[str, str]) -> str:
    """Return the value of the key ``timecode``, which Matroska writes in capitals, or ''."""
    return next((value for key, value in metadata.items() if key.lower() == "timecode"), "")
