"""Evaluation of the search of a whole library: is the right video found, and the right moment?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from granalign_fast.datasets import AnnotatedQuery
from granalign_fast.metrics.corpus import MOMENT_RANKS, VIDEO_RANKS, score_corpus

from .library import Library

_CHUNK = 256
"""Queries that are searched at a time, which bounds the curves in memory."""


@dataclass(frozen=True, slots=True)
class CorpusEvaluation:
    """The measures of a library's search.

    Attributes:
        metrics: in percent, as `score_corpus` returns them.
        seconds: the duration of each stage, for all queries together.
        counts: the numbers of queries, videos and clips.
    """

    metrics: dict[str, float]
    seconds: dict[str, float]
    counts: dict[str, int]


def evaluate_corpus(
    library: Library,
    queries: Sequence[AnnotatedQuery],
    *,
    refine: int = MOMENT_RANKS[-1],
    progress: Callable[[int, int], None] | None = None,
) -> CorpusEvaluation:
    """Search a library for every query, and score the videos and the moments that are found.

    Args:
        library: all its videos are searched for each query.
        queries: each has the video that shows it, and the windows in which it does.
        refine: how many videos of a query the second stage searches.
        progress: called with the number of queries searched since the last call, and of all.

    Raises:
        GranAlignError: there is no query, or as `Library.search`.
    """
    videos: list[list[str]] = []
    moments: list[list[tuple[str, float, float]]] = []
    seconds: dict[str, float] = {}
    for first in range(0, len(queries), _CHUNK):
        some = queries[first : first + _CHUNK]
        begin = time.perf_counter()
        results = library.search_many(
            [query.rewrites for query in some],
            top=MOMENT_RANKS[-1],
            refine=refine,
            overlapping=True,
        )
        elapsed = time.perf_counter() - begin
        # The queries of a chunk share the first stages; what is left is the second one.
        shared = {name: value for name, value in results[0].seconds.items() if name != "refine"}
        for name, value in (shared | {"refine": elapsed - sum(shared.values())}).items():
            seconds[name] = seconds.get(name, 0.0) + value
        for result in results:
            videos.append([hit.video.vid for hit in result.videos[: VIDEO_RANKS[-1]]])
            moments.append([(one.vid, one.start, one.end) for one in result.moments])
        if progress:
            progress(len(some), len(queries))
    metrics = score_corpus(videos, moments, [(query.vid, query.windows) for query in queries])
    known = library.videos()
    counts = {
        "queries": len(queries),
        "videos": len(known),
        "clips": sum(video.clips for video in known),
    }
    return CorpusEvaluation(metrics, seconds, counts)
