"""The second stage of a search: short videos whole, and of videos of hours the best stretches.

A video of hours is not searched whole: models would look at thousands of its frames, and one bright
minute would set the scale of all others. Each of its windows is searched as a video of its own. The
order of moments of different windows rests on the first stage, as that of different videos does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.search.known_texts import Known
from granalign_fast.search.request import Request
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Moment, Rewrites, SearchResult

from .ordering import RANK_COST
from .results import Stretch

MARGIN_SECONDS = 30.0
"""How far a window reaches beyond its stretches, so that a moment on their edge is found whole."""


@dataclass(frozen=True, slots=True)
class VideoSearch:
    """A query about one video."""

    index: VideoIndex
    query: str | Rewrites
    stretches: Sequence[Stretch]
    """Its best ones, best first; they count only in a long video."""


class Window(NamedTuple):
    """A part of a video that is searched as a video of its own."""

    begin: int
    """The number of its first clip."""
    end: int
    """The number behind its last clip."""
    score: float
    """The score of its best stretch."""


def is_long(index: VideoIndex, config: RetrieverConfig) -> bool:
    """Return whether a video is so long that only its best stretches are searched.

    A search by frames alone compares embeddings that are there, and takes any video whole.
    """
    if config.scorer == "frames" or index.video.captions is None:
        return False
    return index.seconds(index.video.clips) > config.whole_seconds


def search_videos(
    retriever: Retriever, searches: Sequence[VideoSearch], known: Known | None = None
) -> list[SearchResult | GranAlignError]:
    """Return the moments of every video, searched in one batch, or why one could not be searched.

    Args:
        retriever: that searches.
        searches: of any number of videos.
        known: embeddings of texts, as for `Retriever.search_many`.
    """
    requests: list[Request] = []
    counts = []
    windows = [_windows(search, retriever.config) for search in searches]
    for search, some in zip(searches, windows, strict=True):
        indexes = [search.index.part(one.begin, one.end) for one in some] or [search.index]
        requests += [Request(index, search.query) for index in indexes]
        counts.append(len(indexes))
    found = iter(retriever.search_many(requests, return_errors=True, known=known))
    results: list[SearchResult | GranAlignError] = []
    for search, some, count in zip(searches, windows, counts, strict=True):
        parts: list[SearchResult] = []
        errors: list[GranAlignError] = []
        for part in islice(found, count):
            errors.append(part) if isinstance(part, GranAlignError) else parts.append(part)
        if errors:
            results.append(errors[0])
        else:
            results.append(
                _joined(search.index, retriever.config, some, parts) if some else parts[0]
            )
    return results


def _windows(search: VideoSearch, config: RetrieverConfig) -> list[Window]:
    """Return the windows of a long video, in order of time; none of a video searched whole."""
    if not search.stretches or not is_long(search.index, config):
        return []
    clips = search.index.video.clips
    margin = round(MARGIN_SECONDS / search.index.video.clip_seconds)
    windows: list[Window] = []
    for begin, end, score in sorted(search.stretches[: config.best_stretches]):
        begin, end = max(begin - margin, 0), min(end + margin, clips)
        if windows and begin <= windows[-1].end:
            last = windows.pop()
            begin, score = last.begin, max(last.score, score)
        windows.append(Window(begin, end, score))
    return windows


def _joined(
    index: VideoIndex,
    config: RetrieverConfig,
    windows: Sequence[Window],
    parts: Sequence[SearchResult],
) -> SearchResult:
    """Return the results of windows as one of the whole video.

    Clips outside the windows have a saliency of 0. A moment's score is that of its window, less
    what its place in the window costs.
    """
    clips = index.video.clips
    saliency = np.zeros(clips, np.float32)
    # A window without a detailed caption of its own has fewer curves than others.
    curves = np.zeros((max(len(part.curves) for part in parts), clips), np.float32)
    aware: dict[int, str] = {}
    for window, part in zip(windows, parts, strict=True):
        some = slice(window.begin, window.end)
        saliency[some] = part.saliency
        curves[: len(part.curves), some] = part.curves
        aware |= {window.begin + clip: caption for clip, caption in part.aware.items()}
    likely = [part.exists for part in parts if part.exists is not None]
    exists = max(likely, default=None)
    every = _Candidates(index, tuple(windows), tuple(parts))
    return replace(
        parts[0],
        vid=index.video.vid,
        moments=every.ranked([part.moments for part in parts])[: config.top],
        saliency=saliency,
        curves=curves,
        exists=exists,
        probably_absent=None if exists is None else exists < config.exists_threshold,
        aware=aware,
        rank_all=every,
    )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Ranks all candidates of all windows. It is the `rank_all` of a `SearchResult`."""

    index: VideoIndex
    windows: tuple[Window, ...]
    parts: tuple[SearchResult, ...]

    def __call__(self, result: SearchResult) -> tuple[Moment, ...]:
        """Return all candidates that are left after NMS, best first."""
        return self.ranked(
            [part.moments if part.rank_all is None else part.rank_all(part) for part in self.parts]
        )

    def ranked(self, moments: Sequence[Sequence[Moment]]) -> tuple[Moment, ...]:
        """Return the moments of all windows in one order, on the clock of the whole video."""
        joined = []
        for window, some in zip(self.windows, moments, strict=True):
            start = self.index.seconds(window.begin)
            joined += [
                Moment(start + one.start, start + one.end, window.score - RANK_COST * place)
                for place, one in enumerate(some)
            ]
        return tuple(sorted(joined, key=lambda moment: -moment.score))
