"""Moments and curves, in clips, to search results, in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import Curves, Ranked
from granalign_fast.types import SearchResult

from .all_candidates import AllCandidates, moments_of
from .batches import PreparedQuery, Variants, group_by_variant_counts
from .clock import Clock
from .frame_curves import FrameCurve
from .ranker import Ranker, TextEmbeddings


def rank_groups(
    ranker: Ranker,
    config: RetrieverConfig,
    prepared: Sequence[PreparedQuery],
    variants: Sequence[Variants],
    texts: TextEmbeddings,
    clock: Clock,
    exists: Sequence[float | None] | None = None,
    frames: Sequence[FrameCurve | None] | None = None,
) -> list[SearchResult]:
    """Rank prepared queries, and return one result for each, in order.

    Stages: those of the ranker, ``results``.

    Args:
        ranker: turns embeddings into curves and moments.
        config: the configuration of the search.
        prepared: the queries.
        variants: of each query.
        texts: the embeddings of all variants and all query-aware captions.
        clock: receives a lap for each stage.
        exists: as for `search_results`.
        frames: the curve of each query's frames, which joins those of the captions with the
            configured weight; None where there is none.

    Raises:
        GranAlignError: as `Ranker.rank`.
    """
    results: list[SearchResult | None] = [None] * len(prepared)
    # A batch needs equal numbers of variants, so that its embeddings form one array.
    groups = group_by_variant_counts(variants)
    for members in groups if frames is None else _split_by_frames(groups, frames):
        batch = [prepared[i] for i in members]
        texts_of = [variants[i] for i in members]
        added = [curve for i in members if frames and (curve := frames[i]) is not None]
        curves, ranked = ranker.rank(batch, texts_of, texts, clock, frames=added)
        likely = [exists[i] for i in members] if exists else None
        found = search_results(batch, curves, ranked, config, likely, clock.seconds)
        for i, result in zip(members, found, strict=True):
            results[i] = result
        clock.lap("results")
    return [result for result in results if result is not None]


def _split_by_frames(
    groups: Iterable[list[int]], frames: Sequence[FrameCurve | None]
) -> Iterator[list[int]]:
    """Split each group into the queries that have a curve of frames, and those that have none."""
    for members in groups:
        for without in (False, True):
            if part := [i for i in members if (frames[i] is None) == without]:
                yield part


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
