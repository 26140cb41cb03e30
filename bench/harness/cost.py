"""Estimate what a library of videos would cost on this machine, from the suites' figures."""

from __future__ import annotations

from dataclasses import dataclass

from .records import Report

HOURS = (1, 100, 10_000, 1_000_000)
"""Lengths of video of the libraries whose cost is estimated."""
QUERIES_A_SECOND = (0.1, 10.0)
"""Query rates of each library."""
CLIPS_AN_HOUR = 1800
"""Clips of 2 s."""
_DIM_BYTES = 384 * 4
"""Bytes of a caption's embedding by all-MiniLM-L6-v2, in float32."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one library at one query rate. A figure is None if a suite did not measure it.

    Attributes:
        hours: hours of video.
        queries: queries a second, each about the whole library.
        index_seconds: time in which one machine like this one indexes the library.
        index_bytes: size of the index on disk.
        memory_bytes: size of the captions' embeddings, which a search reads.
        prefix_bytes: size of the vision-language model's key/value caches of all frames, if kept.
        query_seconds: time of one query on one machine, without looking at frames.
        machines: number of machines that these queries keep busy.
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
    """Estimate the cost of one library.

    A query costs one embedding, plus a time for every clip: similarity, proposals and suppression
    grow with the number of clips. Indexing also grows with it. The time of a model that looks at
    frames for a query is left out: it depends on how many videos are looked at, not on the library.
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
    """Return the costs for `HOURS` at `QUERIES_A_SECOND`; empty if no suite measured a part."""
    table = [cost(report, hours, queries) for hours in HOURS for queries in QUERIES_A_SECOND]
    return [one for one in table if one.index_seconds is not None or one.query_seconds is not None]
