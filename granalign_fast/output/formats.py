"""Write moments as files for players and editing programs: subtitles, chapters, cut lists,
tables."""

from __future__ import annotations

import csv
import html
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing

from .cut_lists import edl, otio
from .fcpxml import fcpxml
from .timeline import Timeline
from .visible import visible

CSV_COLUMNS = (
    *("rank", "start", "end", "score", "start_timecode", "end_timecode"),
    *("caption", "query", "source"),
)
"""The header of the format csv."""

_SRT_REPLACEMENTS = str.maketrans({"{": "(", "}": ")", "\\": "/"})
"""Replacements in SRT: players that convert SRT to ASS, as FFmpeg does, read braces and backslashes
as commands."""


@dataclass(frozen=True, slots=True)
class Format:
    """A file format that `render` writes."""

    suffix: str
    """The suffix of the file's name."""
    render: Callable[[Timeline], str]
    """Returns the text of a file in this format."""


def render(name: str, timeline: Timeline) -> str:
    """Return the text of a file in one of `FORMATS`; without moments it is valid and empty.

    - ``srt``, ``vtt``: SubRip and WebVTT subtitles with a cue for each moment, ordered by start;
      cues may overlap.
    - ``ffmetadata``: chapters for FFmpeg, one for each moment, ordered by start. Chapters may not
      overlap, so a moment that overlaps a better one is left out. To add the chapters to a video
      without encoding it: ``ffmpeg -i in.mp4 -i moments.ffmeta -map 0 -map_chapters 1 -c copy
      out.mp4``.
    - ``edl``: a cut list (CMX 3600) that shows the moments one after another, best first. Source
      timecodes count from that of the video's first frame, as the file states it, or from
      00:00:00:00. The timecodes of the cut count from 01:00:00:00. Drop-frame timecodes are
      used if the file has them; a file without timecodes gets them at 29.97 and 59.94 frames per
      second.
    - ``otio``: the same cut for OpenTimelineIO; a marker on each clip has score and query.
    - ``fcpxml``: the same cut in FCPXML 1.10, for Final Cut Pro and DaVinci Resolve; its timecodes
      count from 00:00:00:00.
    - ``csv``: a table (RFC 4180, UTF-8) with a row for each moment, best first: rank, start and end
      in seconds, score, start and end as source timecodes, caption, query, source. Timecodes are
      empty where the frame rate is unknown or no timecode can count it.

    Args:
        name: the format's name.
        timeline: the video, the query and the moments.

    Raises:
        GranAlignError: the format is unknown; for a cut list, the frame rate is unknown; for an
            EDL, the frame rate or the number of moments is outside the format's limits.
        MissingExtraError: for ``otio``, if opentimelineio is not installed.
    """
    if name not in FORMATS:
        raise GranAlignError(f"format: got {name!r}, expected one of: {', '.join(FORMATS)}")
    return FORMATS[name].render(timeline)


def write_timeline(
    timeline: Timeline, path: str | os.PathLike[str], *, name: str | None = None
) -> None:
    """Write a file completely or not at all.

    Args:
        timeline: the video, the query and the moments.
        path: the file; an existing file is replaced.
        name: the format's name; by default the format with the path's suffix.

    Raises:
        GranAlignError: as for `render`; no format has the suffix, or the file cannot be written.
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
    for cue, (number, start, end) in enumerate(_by_start(timeline), start=1):
        # SRT has no escapes, so arrows and mark-up are replaced by similar characters.
        text = _without_arrows(timeline.label(number)).translate(_SRT_REPLACEMENTS)
        text = re.sub("<(?=[/a-zA-Z])", "‹", text)
        cues.append(f"{cue}\n{_timestamp(start, ',')} --> {_timestamp(end, ',')}\n{text}\n")
    return "\n".join(cues)


def _vtt(timeline: Timeline) -> str:
    heading = html.escape(_without_arrows(timeline.heading), quote=False)
    blocks = [f"WEBVTT - {heading}\n"]
    for cue, (number, start, end) in enumerate(_by_start(timeline), start=1):
        text = html.escape(timeline.label(number), quote=False)
        blocks.append(f"{cue}\n{_timestamp(start, '.')} --> {_timestamp(end, '.')}\n{text}\n")
    return "\n".join(blocks)


def _without_arrows(text: str) -> str:
    """Return a text without the arrow that stands between two times."""
    # The look-behind keeps the search linear in a long run of hyphens.
    return re.sub("(?<!-)-{2,}>", "->", text)


def _ffmetadata(timeline: Timeline) -> str:
    # Best first: a moment becomes a chapter unless it overlaps an earlier chapter.
    chapters: list[tuple[int, int, int]] = []
    for number, (start, end) in enumerate(timeline.milliseconds()):
        if all(end <= other[0] or other[1] <= start for other in chapters):
            chapters.append((start, end, number))
    lines = [";FFMETADATA1\n"]
    for start, end, number in sorted(chapters):
        title = re.sub(r"([=;#\\])", r"\\\1", timeline.label(number))
        # FFmpeg would read a backslash at the end of a line as an escaped line end.
        title += " " * title.endswith("\\")
        lines.append(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={end}\ntitle={title}\n")
    return "\n".join(lines)


def _csv(timeline: Timeline) -> str:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    source = timeline.title if timeline.media is None else os.fspath(timeline.media)
    # The file system may hold names that are not UTF-8, which Python reads as lone surrogates.
    source = visible(source.encode(errors="replace").decode())
    for number, moment in enumerate(timeline.moments):
        writer.writerow(
            (
                number + 1,
                f"{moment.start:.3f}",
                f"{min(moment.end, timeline.duration):.3f}",
                f"{moment.score:.6f}",
                *_source_timecodes(timeline, number),
                *map(_as_text, (timeline.caption(number), timeline.heading, source)),
            )
        )
    return sink.getvalue()


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Beginnings of formulas; a spreadsheet in Japanese takes the wide forms too."""


def _as_text(value: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: an apostrophe comes before it."""
    return f"'{value}" if value.startswith(_FORMULA) else value


def _source_timecodes(timeline: Timeline, number: int) -> tuple[str, str]:
    """Return the time codes of moment `number` in its source, or empty texts if it has none."""
    try:
        start, end = timeline.frames()[number]
        return timeline.source_timecode(start), timeline.source_timecode(end)
    except GranAlignError:
        return "", ""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "srt": Format(".srt", _srt),
        "vtt": Format(".vtt", _vtt),
        "ffmetadata": Format(".ffmeta", _ffmetadata),
        "edl": Format(".edl", edl),
        "otio": Format(".otio", otio),
        "fcpxml": Format(".fcpxml", fcpxml),
        "csv": Format(".csv", _csv),
    }
)
"""The formats of `render`, by name."""


def _by_start(timeline: Timeline) -> list[tuple[int, int, int]]:
    """Return number, start and end in ms of each moment, ordered by start."""
    spans = enumerate(timeline.milliseconds())
    return [(number, start, end) for start, end, number in sorted((*s, n) for n, s in spans)]


def _timestamp(milliseconds: int, point: str) -> str:
    """Return ``hh:mm:ss,mmm``, with `point` for the decimal sign."""
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{point}{rest:03}"
