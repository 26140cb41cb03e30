"""What a library of videos would cost on this machine, on paper, from what the suites measured."""

from __future__ import annotations

from dataclasses import dataclass

from .records import Report

HOURS = (1, 100, 10_000, 1_000_000)
QUERIES_A_SECOND = (0.1, 10.0)
CLIPS_AN_HOUR = 1800
_DIM_BYTES = 384 * 4


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a library of so many hours that is asked so many queries a second.

    Attributes:
        hours: of video.
        queries: a second, each about the whole library.
        index_seconds: of one such machine, to index it all; None where that was not measured.
        index_bytes: on disk.
        memory_bytes: of the captions' embeddings, which a search reads.
        prefix_bytes: of what the vision-language model has made of all frames, if it is to be kept.
        query_seconds: of one query on one machine, without looking at frames.
        machines: that these queries keep busy.
    """

    hours: float
    queries: float
    index_seconds: float | None
    index_bytes: float | None
    memory_bytes: float
    prefix_bytes: float | None
    query_seconds: float | None
    machines: float | None


def cost(report: Report, hours: float, queries: float) -> Cost:
    """Work out one library.

    A query pays once for its own embedding and then for every clip: similarity, proposals and
    suppression grow with them. Indexing grows with the clips too. What a query asks of a model that
    looks at frames is left out: it depends on how many videos are looked at, not on the library.
    """
    clips = hours * CLIPS_AN_HOUR

    def grown(name: str) -> float | None:
        each = report.constant(name)
        return None if each is None else each * clips

    once, growing = report.constant("embed_seconds_per_query"), grown("kernel_seconds_per_clip")
    seconds = None if once is None or growing is None else once + growing
    return Cost(
        hours=hours,
        queries=queries,
        index_seconds=grown("index_seconds_per_clip"),
        index_bytes=grown("index_bytes_per_clip"),
        memory_bytes=clips * _DIM_BYTES,
        prefix_bytes=grown("prefix_bytes_per_clip"),
        query_seconds=seconds,
        machines=None if seconds is None else seconds * queries,
    )


def costs(report: Report) -> list[Cost]:
    """Of `HOURS` at `QUERIES_A_SECOND`; none where nothing was measured that they are made of."""
    found = [cost(report, hours, queries) for hours in HOURS for queries in QUERIES_A_SECOND]
    return [one for one in found if one.index_seconds is not None or one.query_seconds is not None]
