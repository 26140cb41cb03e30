"""The search of one video of whatever length."""

from __future__ import annotations

from dataclasses import replace

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Rewrites, SearchResult

from .library import Library
from .long_videos import is_long


def search_video(retriever: Retriever, index: VideoIndex, query: str | Rewrites) -> SearchResult:
    """Return the moments of one video, of whatever length, as `Retriever.search` does.

    Of a video longer than the configuration's `whole_seconds` the first stage finds the best
    stretches, and only these are searched.

    Raises:
        GranAlignError: as `Retriever.search`.
    """
    if not is_long(index, retriever.config):
        return retriever.search(index, query)
    found = Library.of([index], retriever).search(query, top=1, refine=1)
    if found.errors:
        raise GranAlignError(next(iter(found.errors.values())))
    result = found.videos[0].result if found.videos else None
    if result is None:
        # The first stage cannot compare it: the search names the reason.
        return retriever.search(index, query)
    return replace(result, seconds=dict(found.seconds) | dict(result.seconds))
