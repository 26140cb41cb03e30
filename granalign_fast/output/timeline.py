"""The moments of one video on its time axis, from which every output format is written."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.types import Moment, SearchResult

from .frame_rate import exact_rate, round_half_up
from .tables import peak_caption


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
    """Frames per second; cut lists need it. A rounded rate is made exact: 29.97 to 30000/1001."""

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
        """Return the timeline of a search; a moment's caption is that of its best clip.

        Args:
            index: the video that was searched.
            result: the result of the search.
            media: the video file or its URL; by default the file that the index was made from.
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
        """The file's name, or the title if there is no file."""
        if self.media is None:
            return _to_line(self.title)
        return _to_line(re.split(r"[/\\]", os.fspath(self.media))[-1])

    @property
    def heading(self) -> str:
        """The query in one line."""
        return _to_line(self.query)

    def text(self, number: int) -> str:
        """Return the caption of moment `number` (from 0), or the query, in one line."""
        caption = self.captions[number] if self.captions else ""
        return _to_line(caption) or self.heading

    def label(self, number: int) -> str:
        """Return rank, score and text of moment `number` (from 0): ``#1 0.93 a red car``."""
        return f"#{number + 1} {self.moments[number].score:.2f} {self.text(number)}".rstrip()

    def milliseconds(self) -> list[tuple[int, int]]:
        """Return start and end of each moment in ms, at least 1 ms apart, best first."""
        return [self._round_to_units(moment, Fraction(1000)) for moment in self.moments]

    def frames(self) -> list[tuple[int, int]]:
        """Return the first frame of each moment and the first frame after it, best first.

        Raises:
            GranAlignError: the frame rate is unknown.
        """
        return [self._round_to_units(moment, self.rate) for moment in self.moments]

    @property
    def rate(self) -> Fraction:
        """The exact frame rate.

        Raises:
            GranAlignError: the frame rate is unknown.
        """
        if self.frame_rate is None:
            raise GranAlignError(
                f"frame rate of {self.name!r}: got none, but cut lists count frames; give the "
                f"frames per second of the video"
            )
        return exact_rate(self.frame_rate)

    def _round_to_units(self, moment: Moment, per_second: Fraction) -> tuple[int, int]:
        """Round start and end to units of `1 / per_second`, within the video, at least 1 apart."""
        last = max(1, round_half_up(Fraction(float(self.duration)) * per_second))
        start = min(round_half_up(Fraction(float(moment.start)) * per_second), last - 1)
        end = min(round_half_up(Fraction(float(moment.end)) * per_second), last)
        return start, max(end, start + 1)


def _to_line(text: str) -> str:
    """Join a text to one line of valid UTF-8, without control characters and lone surrogates."""
    return " ".join(
        "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text).split()
    )
