"""Moments as files for players and editors: subtitles, chapters and cut lists."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.jsonl import replacing
from granalign_fast.types import Moment, SearchResult

from .cutlists import edl, exact_rate, nearest, otio
from .report import peak_caption

# Braces and backslashes are commands where a player turns SRT into ASS, as FFmpeg does.
_SRT_SPELLING = str.maketrans({"{": "(", "}": ")", "\\": "/"})


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a file for players or editors says: a video, a query and its moments.

    Moments that end after the video are cut off at its end.

    Example:
        >>> timeline = Timeline("street", "a red car", (Moment(2.0, 5.5, 0.93),), duration=60.0)
        >>> print(render("srt", timeline), end="")
        1
        00:00:02,000 --> 00:00:05,500
        #1 0.93 a red car

    Raises:
        GranAlignError: a moment is empty, begins before the video or after its end, or is not a
            number; captions and moments are not as many; duration or frame rate are out of range.
    """

    title: str
    """What the video is called where there is no file."""
    query: str
    moments: tuple[Moment, ...]
    """Best first."""
    duration: float
    """Of the video, in seconds."""
    captions: tuple[str, ...] = ()
    """What each moment shows; where there is none, the query stands in its place."""
    media: str | os.PathLike[str] | None = None
    """The video file, or its address (``https://...``)."""
    frame_rate: Fraction | float | None = None
    """Frames per second, needed by cut lists; 29.97 is taken for 30000/1001, and so on."""

    def __post_init__(self) -> None:
        if not 0 < self.duration < math.inf:
            raise GranAlignError(f"duration: got {self.duration!r}, expected seconds above 0")
        if self.frame_rate is not None and not 0.001 <= self.frame_rate <= 10_000:
            raise GranAlignError(
                f"frame_rate: got {self.frame_rate!r}, expected 0.001 to 10000 frames a second"
            )
        if self.captions and len(self.captions) != len(self.moments):
            raise GranAlignError(
                f"captions: got {len(self.captions)} for {len(self.moments)} moments, expected "
                f"one for each, or none at all"
            )
        for number, moment in enumerate(self.moments, start=1):
            if not 0 <= moment.start < moment.end < math.inf or not math.isfinite(moment.score):
                raise GranAlignError(
                    f"moment {number}: got {moment.start} to {moment.end} s, score "
                    f"{moment.score}, expected an end after its start, and numbers"
                )
            if moment.start >= self.duration:
                raise GranAlignError(
                    f"moment {number}: got {moment.start} to {moment.end} s, but the video ends "
                    f"at {self.duration} s"
                )

    @classmethod
    def of_search(
        cls,
        index: VideoIndex,
        result: SearchResult,
        *,
        media: str | os.PathLike[str] | None = None,
        frame_rate: Fraction | float | None = None,
    ) -> Timeline:
        """From a search; every moment is described by the caption of its best clip.

        Args:
            index: the video that was searched.
            result: what the search returned.
            media: the video file, or its address; by default the one the index was made from.
            frame_rate: frames per second, such as `VideoInfo.frame_rate`.
        """
        if media is None and index.frames is not None:
            media = index.frames.path
        return cls(
            title=result.vid,
            query=result.query,
            moments=result.moments,
            duration=index.seconds(len(index.video.captions)),
            captions=tuple(peak_caption(index, result, moment) for moment in result.moments),
            media=media,
            frame_rate=frame_rate,
        )

    @property
    def name(self) -> str:
        """The file's name, or the title where there is no file."""
        if self.media is None:
            return _line(self.title)
        return _line(re.split(r"[/\\]", os.fspath(self.media))[-1])

    @property
    def heading(self) -> str:
        """The query in one line."""
        return _line(self.query)

    def text(self, number: int) -> str:
        """What moment `number`, from 0, shows, in one line."""
        caption = self.captions[number] if self.captions else ""
        return _line(caption) or self.heading

    def label(self, number: int) -> str:
        """Rank, score and text of moment `number`, from 0: ``#1 0.93 a red car``."""
        return f"#{number + 1} {self.moments[number].score:.2f} {self.text(number)}".rstrip()

    def milliseconds(self) -> list[tuple[int, int]]:
        """Start and end of each moment, at least 1 ms apart, best first."""
        return [self._range(moment, Fraction(1000)) for moment in self.moments]

    def frames(self) -> list[tuple[int, int]]:
        """First frame of each moment, and the first after it, best first.

        Raises:
            GranAlignError: the frame rate is not known.
        """
        return [self._range(moment, self.rate) for moment in self.moments]

    @property
    def rate(self) -> Fraction:
        """The frame rate, exact.

        Raises:
            GranAlignError: it is not known.
        """
        if self.frame_rate is None:
            raise GranAlignError(
                f"frame rate of {self.name!r}: got none, but cuts lie between frames; give the "
                f"frames per second of the video"
            )
        return exact_rate(self.frame_rate)

    def _range(self, moment: Moment, per_second: Fraction) -> tuple[int, int]:
        last = max(1, nearest(Fraction(float(self.duration)) * per_second))
        start = min(nearest(Fraction(float(moment.start)) * per_second), last - 1)
        end = min(nearest(Fraction(float(moment.end)) * per_second), last)
        return start, max(end, start + 1)


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


def _line(text: str) -> str:
    """In one line and fit for UTF-8: no control characters, no halves of surrogate pairs."""
    return " ".join(
        "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text).split()
    )
