"""Moments as files for players and editors: subtitles, chapters and cut lists."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing

from .cut_lists import edl, otio
from .timeline import Timeline

# Braces and backslashes are commands where a player turns SRT into ASS, as FFmpeg does.
_SRT_SPELLING = str.maketrans({"{": "(", "}": ")", "\\": "/"})


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file that `render` writes."""

    suffix: str
    """What the file's name ends in."""
    what: str
    """What it is, for people."""
    render: Callable[[Timeline], str]
    """Its text."""


def render(name: str, timeline: Timeline) -> str:
    """The text of a file in one of `FORMATS`; without moments it is valid and empty.

    - ``srt``, ``vtt``: a cue for each moment, in the order of time; they may overlap.
    - ``ffmetadata``: a chapter for each moment, in the order of time. Chapters may not overlap: a
      moment that overlaps a better one is left out. They get into a video, without encoding it
      again, by ``ffmpeg -i in.mp4 -i moments.ffmeta -map 0 -map_chapters 1 -c copy out.mp4``.
    - ``edl``: a cut list (CMX 3600) that shows the moments one after the other, best first. Source
      timecodes count from 00:00:00:00 at the first frame, those of the cut from 01:00:00:00;
      29.97 and 59.94 frames per second have drop-frame timecodes.
    - ``otio``: the same cut for OpenTimelineIO; a marker on each clip has score and query.

    Raises:
        GranAlignError: there is no such format; a cut list was asked for and the frame rate is not
            known or, for an EDL, cannot be written in it; there are too many moments for it.
        MissingExtraError: opentimelineio is not installed, and ``otio`` was asked for.
    """
    if name not in FORMATS:
        raise GranAlignError(f"format: got {name!r}, expected one of: {', '.join(FORMATS)}")
    return FORMATS[name].render(timeline)


def write_timeline(
    timeline: Timeline, path: str | os.PathLike[str], *, name: str | None = None
) -> None:
    """Write a file, whole or not at all.

    Args:
        timeline: what to write.
        path: the file; one that is there is replaced.
        name: of the format; by default the one with the path's suffix.

    Raises:
        GranAlignError: as for `render`; the suffix names no format, or the file cannot be written.
        MissingExtraError: as for `render`.
    """
    if name is None:
        suffix = Path(path).suffix.lower()
        name = next((key for key, form in FORMATS.items() if form.suffix == suffix), None)
        if name is None:
            known = ", ".join(form.suffix for form in FORMATS.values())
            raise GranAlignError(f"{path}: expected a name that ends in one of: {known}")
    text = render(name, timeline)
    with replacing(path) as sink:
        sink.write(text.encode())


def _srt(timeline: Timeline) -> str:
    cues = []
    for place, (number, start, end) in enumerate(_in_time(timeline), start=1):
        # SRT has no way to escape: what would be an arrow or mark-up is spelt otherwise.
        text = re.sub("-{2,}>", "->", timeline.label(number)).translate(_SRT_SPELLING)
        text = re.sub("<(?=[/a-zA-Z])", "‹", text)
        cues.append(f"{place}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n")
    return "\n".join(cues)


def _vtt(timeline: Timeline) -> str:
    blocks = [f"WEBVTT - {re.sub('-{2,}>', '->', timeline.heading)}\n"]
    for place, (number, start, end) in enumerate(_in_time(timeline), start=1):
        text = timeline.label(number)
        for character, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(character, escaped)
        blocks.append(f"{place}\n{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n")
    return "\n".join(blocks)


def _ffmetadata(timeline: Timeline) -> str:
    kept: list[tuple[int, int, int]] = []
    for number, (start, end) in enumerate(timeline.milliseconds()):
        if all(end <= other[0] or other[1] <= start for other in kept):
            kept.append((start, end, number))
    lines = [";FFMETADATA1\n"]
    for start, end, number in sorted(kept):
        title = re.sub(r"([=;#\\])", r"\\\1", timeline.label(number))
        # FFmpeg takes an escaped backslash at the end of a line for an escaped end of line.
        title += " " * title.endswith("\\")
        lines.append(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={end}\ntitle={title}\n")
    return "\n".join(lines)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "srt": Format(".srt", "SubRip subtitles", _srt),
        "vtt": Format(".vtt", "WebVTT subtitles", _vtt),
        "ffmetadata": Format(".ffmeta", "chapters for ffmpeg", _ffmetadata),
        "edl": Format(".edl", "cut list, CMX 3600", edl),
        "otio": Format(".otio", "cut for OpenTimelineIO", otio),
    }
)
"""The formats that `render` knows, by name."""


def _in_time(timeline: Timeline) -> list[tuple[int, int, int]]:
    """Number, start and end in ms of each moment, the earliest first."""
    spans = enumerate(timeline.milliseconds())
    return [(number, start, end) for start, end, number in sorted((*s, n) for n, s in spans)]


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{point}{rest:03}"
