"""The second stage of a search: the best videos of the first one are searched with the method."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.index import VideoIndex
from granalign_fast.index.model_checks import clips_warning
from granalign_fast.models.encoder import cpu_threads
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import SearchResult

from .first_stage import Texts
from .long_videos import VideoSearch, search_videos
from .ordering import Load, ranked_moments
from .results import LibraryResult, VideoHit

_BATCH = 5
"""Videos of a query that are searched between two looks at the clock."""
_PAIRS = 512
"""Pairs of a query and a video in a call of the retriever, which bounds its arrays."""
_WORTH_A_THREAD = 32
"""Pairs that take some milliseconds where captions alone are compared."""


class Refinement:
    """The answer to one query while its videos are searched.

    Args:
        result: of the first stage.
        texts: what the clips were compared with.
        top: most moments of an answer.
        refine: how many videos are searched, the best first.
        overlapping: whether moments of one video may overlap.
    """

    def __init__(
        self, result: LibraryResult, texts: Texts, top: int, refine: int, *, overlapping: bool
    ) -> None:
        self.first = result
        self.hits: list[VideoHit] = list(result.videos)
        self.errors: dict[str, str] = dict(result.errors)
        self.count = min(refine, len(self.hits))
        self.reached = 0
        """How many videos have been searched, or could not be."""
        self.seconds = 0.0
        """How long their searches have taken."""
        self.texts, self._top, self._overlapping = texts, top, overlapping

    def add(
        self, number: int, index: VideoIndex, result: SearchResult, config: RetrieverConfig
    ) -> None:
        """Add the search of a video.

        Args:
            number: of the video in `hits`.
            index: of the video.
            result: of the search.
            config: of the search.
        """
        hit, video = self.hits[number], index.video
        # The index may have been made anew, with other clips, since the catalogue was opened.
        captions = video.captions if video.clip_seconds == hit.video.clip_seconds else None
        warning = clips_warning(index, config)
        self.hits[number] = replace(hit, result=result, captions=captions, warning=warning)

    def answer(self, load: Load) -> LibraryResult:
        """Return the answer with the videos that have been searched so far.

        Args:
            load: reads the index of a video that has not been searched.
        """
        moments = ranked_moments(
            self.hits,
            load,
            self.texts.probe,
            self._top,
            self.errors,
            overlapping=self._overlapping,
        )
        return replace(
            self.first,
            moments=moments,
            videos=tuple(self.hits),
            complete=self.reached == self.count,
            errors=dict(self.errors),
            seconds={**self.first.seconds, "refine": self.seconds},
        )


def refine_in_steps(
    refinement: Refinement, retriever: Retriever, load: Load, until: float | None
) -> Iterator[None]:
    """Search the videos of one query, best first, and yield after each few.

    Args:
        refinement: the query; it receives the searches.
        retriever: searches a video.
        load: reads the index of a video.
        until: the time of `time.monotonic` after which no further video is searched; None for all.
    """
    step = step_of(retriever, limited=until is not None)
    while refinement.reached < refinement.count:
        if until is not None and time.monotonic() >= until:
            return
        refine_together([refinement], retriever, load, step)
        yield


def step_of(retriever: Retriever, *, limited: bool) -> int | None:
    """Return how many videos of a query are searched between two looks at the clock; None for all.

    Args:
        retriever: searches them.
        limited: whether the time of the search is limited.
    """
    # Models that look at frames take seconds for a video; captions alone are one batch.
    if retriever.captioner is not None or retriever.recogniser is not None:
        return 1
    return _BATCH if limited else None


def refine_together(
    refinements: Sequence[Refinement], retriever: Retriever, load: Load, most: int | None = None
) -> None:
    """Search the next videos of many queries.

    A video is read, and its captions are mixed, once for all queries that want it.

    Args:
        refinements: the queries; they receive the searches.
        retriever: searches videos.
        load: reads the index of a video.
        most: how many videos of each query are searched; None for all that are left.
    """
    begin = time.perf_counter()
    ends = [
        one.count if most is None else min(one.reached + most, one.count) for one in refinements
    ]
    pairs = [
        (one, number)
        for one, end in zip(refinements, ends, strict=True)
        for number in range(one.reached, end)
    ]
    shares = _shares(pairs, retriever)
    if len(shares) == 1:
        _search_all(shares[0], retriever, load)
    else:
        with ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(lambda share: _search_all(share, retriever, load), shares))
    each = (time.perf_counter() - begin) / max(len(refinements), 1)
    for one, end in zip(refinements, ends, strict=True):
        one.reached = end
        one.seconds += each


_Pair = tuple[Refinement, int]
"""A query, and the number of one of its videos."""


def _shares(pairs: list[_Pair], retriever: Retriever) -> list[list[_Pair]]:
    """Divide pairs between threads, all of a video for one thread, if there are enough of them.

    Args:
        pairs: of queries and videos.
        retriever: searches them. Where models look at frames, these use all cores by themselves.
    """
    pairs.sort(key=lambda pair: pair[0].hits[pair[1]].video.vid)
    threads = min(cpu_threads(None), len(pairs) // _WORTH_A_THREAD)
    alone = retriever.captioner is None and retriever.recogniser is None
    if threads < 2 or not alone or retriever.device.index is not None:
        return [pairs]
    shares: list[list[_Pair]] = [[] for _ in range(threads)]
    for _, own in itertools.groupby(pairs, key=lambda pair: pair[0].hits[pair[1]].video.vid):
        min(shares, key=len).extend(own)
    return [share for share in shares if share]


def _search_all(pairs: Sequence[_Pair], retriever: Retriever, load: Load) -> None:
    for first in range(0, len(pairs), _PAIRS):
        _search(pairs[first : first + _PAIRS], retriever, load)


def _search(pairs: Sequence[_Pair], retriever: Retriever, load: Load) -> None:
    """Search some videos with the method; a video that cannot be searched costs only itself."""
    searches: list[tuple[Refinement, int, VideoSearch]] = []
    for one, number in pairs:
        hit = one.hits[number]
        try:
            search = VideoSearch(load(hit.video), one.first.query, hit.stretches)
        except GranAlignError as error:
            one.errors[hit.video.vid] = str(error)
        else:
            searches.append((one, number, search))
    known = {text: row for one, *_ in searches for text, row in one.texts.known.items()}
    found = search_videos(retriever, [search for *_, search in searches], known)
    for (one, number, search), result in zip(searches, found, strict=True):
        if isinstance(result, GranAlignError):
            one.errors[one.hits[number].video.vid] = str(result)
        else:
            one.add(number, search.index, result, retriever.config)


def deadline(budget: float | None) -> float | None:
    """Return the time of `time.monotonic` at which a budget of seconds is spent; None for none."""
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget >= 0:
        raise GranAlignError(f"budget: got {short_repr(budget)}, expected seconds from 0")
    return time.monotonic() + budget
