"""The answer of a library: videos by the first stage, and moments of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from granalign_fast.errors import listed
from granalign_fast.types import Rewrites, SearchResult

from .records import CataloguedVideo


class Stretch(NamedTuple):
    """A stretch of a video that fits a query."""

    begin: int
    """The number of its first clip."""
    end: int
    """The number behind its last clip."""
    score: float
    """By the first stage."""


@dataclass(frozen=True, slots=True)
class VideoHit:
    """A video that fits a query, by the first stage.

    Attributes:
        video: what the catalogue knows about it.
        score: how well its best stretch fits; it can be compared between videos and between
            libraries.
        similarity: of this, the part of the embeddings.
        words: the share of the query's words that the stretch holds, 0 to 1.
        start: of the stretch, in seconds.
        end: of the stretch, in seconds.
        clip: the number of the best clip in it.
        stretches: the best stretches of the video, best first, of those that the first stage ranks.
        result: the search of the video, or of the best stretches of a long one; None if it was not
            reached, or could not be read.
        captions: of all clips, as its index had them when it was searched; None where it was not,
            or has none.
        warning: what is to be said about `result`; None for nothing.
    """

    video: CataloguedVideo
    score: float
    similarity: float
    words: float
    start: float
    end: float
    clip: int
    stretches: tuple[Stretch, ...] = ()
    result: SearchResult | None = None
    captions: tuple[str, ...] | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class LibraryMoment:
    """A moment of a video of a library.

    Attributes:
        vid: id of the video.
        start: in seconds.
        end: in seconds.
        score: higher is better, also between videos.
        refined: whether the method has searched the video. If not, the moment is the surroundings
            of the clip that the first stage found.
        caption: of its best clip; None in a video without captions.
        exists: how likely the video shows the query, 0 to 1; None if no model has judged it.
    """

    vid: str
    start: float
    end: float
    score: float
    refined: bool
    caption: str | None
    exists: float | None = None


@dataclass(frozen=True, slots=True)
class LibraryResult:
    """The answer of a library to one query, of the first stage or of both.

    Attributes:
        query: the query with its rewrites.
        moments: best first.
        videos: by the first stage, best first.
        searched: how many videos the first stage compared.
        left_out: the reasons why others were not, and how many for each.
        complete: whether the second stage has reached all videos that it was to reach.
        errors: the reason for each video that the second stage could not search, by id.
        seconds: the duration of each stage.
    """

    query: Rewrites
    moments: tuple[LibraryMoment, ...]
    videos: tuple[VideoHit, ...]
    searched: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    complete: bool = True
    errors: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be said about searches of videos, each once, with its videos."""
        said: dict[str, list[str]] = {}
        for hit in self.videos:
            if hit.warning is not None:
                said.setdefault(hit.warning, []).append(hit.video.vid)
        return tuple(f"{listed(vids)}: {text}" for text, vids in said.items())

    @property
    def probably_absent(self) -> bool | None:
        """Whether a model judged all videos that were refined, and none shows the query.

        None: no video was judged.
        """
        judged = [hit.result.probably_absent for hit in self.videos if hit.result is not None]
        if all(one is None for one in judged):
            return None
        return all(judged)

    def __repr__(self) -> str:
        best = "None"
        if self.moments:
            first = self.moments[0]
            best = f"{first.vid!r} {first.start:.1f} to {first.end:.1f} s"
        refined = sum(hit.result is not None for hit in self.videos)
        return (
            f"LibraryResult(query={self.query.query!r}, moments={len(self.moments)}, "
            f"best=<{best}>, searched={self.searched}, refined={refined})"
        )
