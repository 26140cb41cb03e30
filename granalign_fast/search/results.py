"""Moments and curves, in clips, to search results, in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import Curves, Ranked
from granalign_fast.types import SearchResult

from .all_candidates import AllCandidates, moments_of
from .batches import PreparedQuery


def search_results(
    batch: Sequence[PreparedQuery],
    curves: Curves,
    ranked: Ranked,
    config: RetrieverConfig,
    exists: Sequence[float | None] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Iterator[SearchResult]:
    """Yield one result for each query of a batch.

    Args:
        batch: the queries.
        curves: of all queries, one after another.
        ranked: the moments of each query, in clips.
        config: the configuration of the search.
        exists: how likely each video shows its query, 0 to 1; None if no model judged it.
        seconds: the duration of each stage, which every result gets.
    """
    for i, query in enumerate(batch):
        # The query's part of the flat curves.
        part = slice(curves.offsets[i], curves.offsets[i + 1])
        video = query.index.video
        likely = exists[i] if exists else None
        yield SearchResult(
            vid=video.vid,
            query=query.rewrites.query,
            moments=moments_of(video, ranked, i),
            saliency=curves.fused[part],
            curves=curves.variants[:, part],
            exists=likely,
            probably_absent=None if likely is None else likely < config.exists_threshold,
            rewrites=query.rewrites,
            aware=query.aware,
            seconds=seconds or {},
            rank_all=AllCandidates(config, video),
        )
