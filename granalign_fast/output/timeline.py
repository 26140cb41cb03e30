"""The moments of one video on its time axis, from which every output format is written."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from fractions import Fraction

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.types import Moment, SearchResult
from granalign_fast.video.frame_rate import exact_rate, round_half_up
from granalign_fast.video.source import Source
from granalign_fast.video.timecode import (
    DROP_FRAME_RATES,
    frames_of_hours,
    parse_timecode,
    timecode,
)

from .tables import peak_caption
from .visible import without_controls


@dataclass(frozen=True, slots=True)
class Timeline:
    """A video, a query and its moments: the content of a file for players or editing programs.

    A moment that ends after the video is shortened to the video's end.

    Example:
        >>> from granalign_fast.output.formats import render
        >>> timeline = Timeline("street", "a red car", (Moment(2.0, 5.5, 0.93),), duration=60.0)
        >>> print(render("srt", timeline), end="")
        1
        00:00:02,000 --> 00:00:05,500
        #1 0.93 a red car

    Raises:
        GranAlignError: a moment is empty, begins before the video or after its end, or is not
            finite; the number of captions differs from that of moments; or the duration or the
            frame rate is out of range.
    """

    title: str
    """The video's name if there is no file."""
    query: str
    moments: tuple[Moment, ...]
    """Best first."""
    duration: float
    """The video's duration in seconds."""
    captions: tuple[str, ...] = ()
    """A caption of each moment; the query replaces an empty caption."""
    media: str | os.PathLike[str] | None = None
    """The video file, or its URL (``https://...``)."""
    frame_rate: Fraction | float | None = None
    """Frames per second, by default those of `source`; cut lists need them. A rounded rate is made
    exact: 29.97 to 30000/1001."""
    source: Source | None = None
    """The result of `read_source`: frame rate, first frame and time code of the file. Without
    it, the first frame is at second 0 and has the time code 00:00:00:00."""

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
        source: Source | None = None,
    ) -> Timeline:
        """Return the timeline of a search; a moment's caption is that of its best clip.

        An index without captions gives a timeline without any.

        Args:
            index: the video that was searched.
            result: the result of the search.
            media: the video file or its URL, which cut lists refer to; by default the name of the
                file that the index was made from, without its folder. An index of somebody else can
                name any path, so compare the file with `VideoSource.check` or `with_media` first.
            frame_rate: frames per second, by default those of `source`.
            source: what `read_source` returns of the video file; cut lists need it for time codes.
        """
        if media is None and index.frames is not None and index.frames.path is not None:
            media = index.frames.path.name
        captions = [peak_caption(index, result, moment) for moment in result.moments]
        return cls(
            title=result.vid,
            query=result.query,
            moments=result.moments,
            duration=index.seconds(index.video.clips),
            captions=tuple(caption for caption in captions if caption is not None),
            media=media,
            frame_rate=frame_rate,
            source=source,
        )

    @property
    def name(self) -> str:
        """The file's name, or the title if there is no file."""
        if self.media is None:
            return without_controls(self.title)
        return without_controls(re.split(r"[/\\]", os.fspath(self.media))[-1])

    @property
    def heading(self) -> str:
        """The query in one line."""
        return without_controls(self.query)

    def caption(self, number: int) -> str:
        """Return the caption of moment `number` (from 0) in one line, or an empty text."""
        return without_controls(self.captions[number]) if self.captions else ""

    def text(self, number: int) -> str:
        """Return the caption of moment `number` (from 0), or the query, in one line."""
        return self.caption(number) or self.heading

    def label(self, number: int) -> str:
        """Return rank, score and text of moment `number` (from 0): ``#1 0.93 a red car``."""
        return f"#{number + 1} {self.moments[number].score:.2f} {self.text(number)}".rstrip()

    def milliseconds(self) -> list[tuple[int, int]]:
        """Return start and end of each moment in ms, at least 1 ms apart, best first."""
        return [self._round_to_units(moment, Fraction(1000)) for moment in self.moments]

    def frames(self) -> list[tuple[int, int]]:
        """Return the first frame of each moment and the first frame after it, best first.

        Frames count from the first frame of the video, which is frame 0.

        Raises:
            GranAlignError: the frame rate is unknown.
        """
        rate, zero = self.rate, self._first_frame
        return [self._round_to_units(moment, rate, zero) for moment in self.moments]

    def frame_count(self) -> int:
        """Return the number of frames of the video, at least 1.

        Raises:
            GranAlignError: the frame rate is unknown.
        """
        return _count_units(self.duration, self.rate, self._first_frame)

    @property
    def rate(self) -> Fraction:
        """The exact frame rate.

        Raises:
            GranAlignError: the frame rate is unknown.
        """
        if self.frame_rate is not None:
            return exact_rate(self.frame_rate)
        if self.source is None or self.source.rate is None:
            raise GranAlignError(
                f"frame rate of {self.name!r}: got none, but cut lists count frames; give the "
                f"frames per second of the video, or write srt instead"
            )
        return self.source.rate

    @property
    def drop_frame(self) -> bool:
        """True if time codes skip numbers: as in the file, otherwise at 29.97 and 59.94."""
        start = self._start
        return self.rate in DROP_FRAME_RATES if start is None else start[1]

    @property
    def start_frame(self) -> int:
        """The number that the time code of the first frame stands for: 0 for 00:00:00:00."""
        start = self._start
        return 0 if start is None else start[0]

    def source_timecode(self, frame: int) -> str:
        """Return the time code of a frame of the video; after 24 hours it begins anew.

        Args:
            frame: the frame's number; the first frame of the video is 0.

        Raises:
            GranAlignError: the frame rate is unknown or outside the limits of time codes, or the
                video is longer than 24 hours.
        """
        rate, drop_frame = self.rate, self.drop_frame
        day = frames_of_hours(24, rate, drop_frame=drop_frame)
        number = self.start_frame + frame
        return timecode(number % day if frame < day else number, rate, drop_frame=drop_frame)

    @property
    def _start(self) -> tuple[int, bool] | None:
        """Number and drop-frame flag of the first frame's time code, or None if it has none."""
        code = None if self.source is None else self.source.timecode
        return None if code is None else parse_timecode(code, self.rate)

    @property
    def _first_frame(self) -> float:
        return 0.0 if self.source is None else self.source.first_frame

    def _round_to_units(
        self, moment: Moment, per_second: Fraction, zero: float = 0.0
    ) -> tuple[int, int]:
        """Round start and end to units of `1 / per_second`, within the video, at least 1 apart.

        Units count from the time `zero` in seconds; what lies before it is left out.
        """
        last = _count_units(self.duration, per_second, zero)
        start, end = (
            round_half_up((Fraction(float(time)) - Fraction(zero)) * per_second)
            for time in (moment.start, moment.end)
        )
        start = max(0, min(start, last - 1))
        return start, max(min(end, last), start + 1)


def _count_units(duration: float, per_second: Fraction, zero: float) -> int:
    """Return the number of units of `1 / per_second` from `zero` to `duration`, at least 1."""
    return max(1, round_half_up((Fraction(float(duration)) - Fraction(zero)) * per_second))
