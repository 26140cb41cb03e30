"""Moments and curves, in clips, to search results, in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from granalign_fast.kernels import Curves, Ranked
from granalign_fast.types import Moment, SearchResult

from .batches import PreparedQuery


def search_results(
    batch: Sequence[PreparedQuery],
    curves: Curves,
    ranked: Ranked,
    exists: Sequence[float | None] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Iterator[SearchResult]:
    """Yield one result for each query of a batch.

    Args:
        batch: the queries.
        curves: of all queries, one after another.
        ranked: the moments of each query, in clips.
        exists: how likely each video shows its query, 0 to 1; None if no model judged it.
        seconds: the duration of each stage, which every result gets.
    """
    for i, query in enumerate(batch):
        # The query's part of the flat curves.
        part = slice(curves.offsets[i], curves.offsets[i + 1])
        index = query.index
        # Unused slots follow the moments of a query: only the first `count` are read.
        count = int(ranked.counts[i])
        moments = tuple(
            Moment(index.seconds(start), index.seconds(end), score)
            for start, end, score in zip(
                ranked.starts[i, :count].tolist(),
                ranked.ends[i, :count].tolist(),
                ranked.scores[i, :count].tolist(),
                strict=True,
            )
        )
        yield SearchResult(
            vid=index.video.vid,
            query=query.rewrites.query,
            moments=moments,
            saliency=curves.fused[part],
            curves=curves.variants[:, part],
            exists=exists[i] if exists else None,
            rewrites=query.rewrites,
            aware=query.aware,
            seconds=seconds or {},
        )
