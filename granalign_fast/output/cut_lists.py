"""Write moments as cut lists for editing programs, with times in frames: EDL and OTIO."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.video.timecode import frames_of_hours, timecode

if TYPE_CHECKING:
    from .timeline import Timeline

_RECORD_HOUR = 1
"""Hour at which the cut's timecode starts: by custom 1, which leaves time for leaders before it."""

_MAX_EVENTS = 999
"""Events of an EDL: CMX 3600 numbers them in three digits."""


def edl(timeline: Timeline) -> str:
    """Return an EDL in the format CMX 3600; see `formats.render`."""
    rate, drop_frame = timeline.rate, timeline.drop_frame
    if len(timeline.moments) > _MAX_EVENTS:
        raise GranAlignError(
            f"edl: got {len(timeline.moments)} moments, expected at most {_MAX_EVENTS}; take "
            f"fewer, or write otio instead"
        )
    mode = "DROP FRAME" if drop_frame else "NON-DROP FRAME"
    lines = [f"TITLE: {timeline.heading[:70].rstrip()}", f"FCM: {mode}"]
    record = frames_of_hours(_RECORD_HOUR, rate, drop_frame=drop_frame)
    for number, (start, end) in enumerate(timeline.frames()):
        stop = record + end - start
        source = [timeline.source_timecode(frame) for frame in (start, end)]
        cut = [timecode(frame, rate, drop_frame=drop_frame) for frame in (record, stop)]
        times = " ".join(source + cut)
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

    rate, first = float(timeline.rate), timeline.start_frame

    def frames(start: int, end: int) -> TimeRange:
        return TimeRange(RationalTime(first + start, rate), RationalTime(end - start, rate))

    # The cut is one track; each moment is a clip of the whole video with a marker.
    query = timeline.heading
    whole = frames(0, timeline.frame_count())
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
            else ExternalReference(media_url(timeline.media), whole)
        )
        media.name = timeline.name
        track.append(Clip(timeline.label(number), media, frames(*cuts), markers=[marker]))
    text: str = cut.to_json_string(indent=4)
    return text + "\n"


def media_url(media: str | os.PathLike[str]) -> str:
    """Return the URL of a file; a URL is returned unchanged."""
    text = os.fspath(media)
    return text if "://" in text else Path(text).absolute().as_uri()
