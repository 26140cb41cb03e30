"""Write moments as cut lists for editing programs, with times in frames: EDL and OTIO."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from granalign_fast.errors import GranAlignError, MissingExtraError

from .frame_rate import round_half_up

if TYPE_CHECKING:
    from .timeline import Timeline

_DROP_FRAME_RATES = (Fraction(30000, 1001), Fraction(60000, 1001))
"""The rates whose timecode skips numbers to keep in step with the clock (SMPTE ST 12-1)."""

_RECORD_HOUR = 1
"""Hour at which the cut's timecode starts: by custom 1, which leaves time for leaders before it."""

_MAX_EVENTS = 999
"""Events of an EDL: CMX 3600 numbers them in three digits."""


def timecode(frame: int, rate: Fraction) -> str:
    """Return the SMPTE timecode of a frame: ``00:01:00;02`` for frame 1800 at 30000/1001.

    The formula for drop-frame timecodes is that of SMPTE ST 12-1.

    Args:
        frame: the frame's number, from 0.
        rate: frames per second, exact.

    Raises:
        GranAlignError: the rate is above 99 or below 1, or the frame lies 24 hours or more after
            the first.
    """
    base = round_half_up(rate)
    if not 1 <= base <= 99:
        raise GranAlignError(
            f"frame rate: got {float(rate):g}, but a timecode counts 1 to 99 frames a second; "
            f"write otio instead"
        )
    # `number` is the frame's number in the timecode, which may skip numbers.
    number, separator = frame, ":"
    if rate in _DROP_FRAME_RATES:
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


def edl(timeline: Timeline) -> str:
    """Return an EDL in the format CMX 3600; see `formats.render`."""
    rate = timeline.rate
    if len(timeline.moments) > _MAX_EVENTS:
        raise GranAlignError(
            f"edl: got {len(timeline.moments)} moments, expected at most {_MAX_EVENTS}; take "
            f"fewer, or write otio instead"
        )
    mode = "DROP FRAME" if rate in _DROP_FRAME_RATES else "NON-DROP FRAME"
    lines = [f"TITLE: {timeline.heading[:70].rstrip()}", f"FCM: {mode}"]
    record = _frames_of_hours(_RECORD_HOUR, rate)
    for number, (start, end) in enumerate(timeline.frames()):
        stop = record + end - start
        times = " ".join(timecode(frame, rate) for frame in (start, end, record, stop))
        # AX stands for a source that is not a tape; the comment names the file.
        lines += [
            "",
            f"{number + 1:03}  AX       V     C        {times}",
            f"* FROM CLIP NAME: {timeline.name}",
            f"* COMMENT: {timeline.label(number)}",
        ]
        record = stop
    return "\n".join(lines) + "\n"


def otio(timeline: Timeline) -> str:
    """Return a timeline as OpenTimelineIO's JSON; see `formats.render`."""
    try:
        from opentimelineio.opentime import RationalTime, TimeRange
        from opentimelineio.schema import (
            Clip,
            ExternalReference,
            Marker,
            MarkerColor,
            MissingReference,
            Track,
            TrackKind,
        )
        from opentimelineio.schema import Timeline as Cut
    except ImportError:
        raise MissingExtraError("the format otio", "editors") from None

    rate = float(timeline.rate)

    def frames(start: int, end: int) -> TimeRange:
        return TimeRange(RationalTime(start, rate), RationalTime(end - start, rate))

    # The cut is one track; each moment is a clip of the whole video with a marker.
    query = timeline.heading
    whole = frames(0, max(1, round_half_up(Fraction(float(timeline.duration)) * timeline.rate)))
    cut = Cut(query, metadata={"granalign_fast": {"query": query}})
    track = Track("moments", kind=TrackKind.Video)
    cut.tracks.append(track)
    for number, (moment, cuts) in enumerate(zip(timeline.moments, timeline.frames(), strict=True)):
        facts = {
            "rank": number + 1,
            "score": round(float(moment.score), 6),
            "query": query,
            "caption": timeline.text(number),
            "start_seconds": round(float(moment.start), 3),
            "end_seconds": round(float(moment.end), 3),
        }
        marker = Marker(
            f"#{number + 1} {moment.score:.2f} {query}",
            frames(*cuts),
            MarkerColor.ORANGE,
            {"granalign_fast": facts},
            timeline.text(number),
        )
        media = (
            MissingReference(available_range=whole)
            if timeline.media is None
            else ExternalReference(_media_url(timeline.media), whole)
        )
        media.name = timeline.name
        track.append(Clip(timeline.label(number), media, frames(*cuts), markers=[marker]))
    text: str = cut.to_json_string(indent=4)
    return text + "\n"


def _frames_of_hours(hours: int, rate: Fraction) -> int:
    """Return the number of the frame whose timecode is exactly `hours` hours."""
    base = round_half_up(rate)
    per_hour = 3600 * base
    # A drop-frame hour skips the first numbers of 54 minutes.
    return hours * (per_hour - 54 * (base // 15) if rate in _DROP_FRAME_RATES else per_hour)


def _media_url(media: str | os.PathLike[str]) -> str:
    """Return the URL of a file; a URL is returned unchanged."""
    text = os.fspath(media)
    return text if "://" in text else Path(text).absolute().as_uri()
