"""All candidates of a search, ranked again from its curves when somebody asks for them.

A ranker returns the configured number of moments. Distinct moments are chosen from the whole list,
which most searches never need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.index import IndexedVideo
from granalign_fast.kernels import Curves, Ranked
from granalign_fast.types import Moment, SearchResult, distinct_moments

from .clock import Clock
from .host_ranker import cut_moments

_BATCH = 256
"""Searches whose candidates are ranked at a time."""


@dataclass(frozen=True, slots=True)
class AllCandidates:
    """Ranks all candidates of one search. It is the `rank_all` of a `SearchResult`."""

    config: RetrieverConfig
    video: IndexedVideo

    def __call__(self, result: SearchResult) -> tuple[Moment, ...]:
        """Return all candidates that are left after NMS, best first.

        They are ranked on the CPU, which from equal curves gives what a GPU gives, to the bit.
        """
        return _ranked([(self, result)])[0]


def distinct_of_many(results: Sequence[SearchResult], top: int) -> list[tuple[Moment, ...]]:
    """Return what `SearchResult.distinct` returns of each result, ranked in batches.

    Args:
        results: of any searches.
        top: how many moments of each there are at most.
    """
    chosen = [distinct_moments(result.moments, top) for result in results]
    groups: dict[tuple[RetrieverConfig, int], list[tuple[int, AllCandidates]]] = {}
    for number, (result, moments) in enumerate(zip(results, chosen, strict=True)):
        every = result.rank_all
        if len(moments) < top and isinstance(every, AllCandidates):
            groups.setdefault((every.config, len(result.curves)), []).append((number, every))
        elif len(moments) < top:
            chosen[number] = result.distinct(top)
    for members in groups.values():
        for first in range(0, len(members), _BATCH):
            some = members[first : first + _BATCH]
            lists = _ranked([(every, results[number]) for number, every in some])
            for (number, _), moments in zip(some, lists, strict=True):
                chosen[number] = distinct_moments(moments, top)
    return chosen


def _ranked(searches: Sequence[tuple[AllCandidates, SearchResult]]) -> list[tuple[Moment, ...]]:
    """Return all candidates of searches of one configuration with equally many curves."""
    config = searches[0][0].config
    fused = [result.saliency for _, result in searches]
    variants = [result.curves for _, result in searches]
    if config.scorer == "recognition":
        fused = [rescaled(curve) for curve in fused]
        variants = [curve[None] for curve in fused]
    curves = Curves(
        np.ascontiguousarray(np.concatenate(variants, axis=1)),
        np.concatenate(fused),
        np.cumsum([0, *map(len, fused)]),
    )
    ranked = cut_moments(curves, config, Clock({}), every=True)
    return [moments_of(one.video, ranked, number) for number, (one, _) in enumerate(searches)]


def moments_of(video: IndexedVideo, ranked: Ranked, query: int) -> tuple[Moment, ...]:
    """Return the moments of one query of a batch in seconds, best first."""
    # Unused slots follow the moments of a query: only the first `count` are read.
    count = int(ranked.counts[query])
    return tuple(
        Moment(video.seconds(start), video.seconds(end), score)
        for start, end, score in zip(
            ranked.starts[query, :count].tolist(),
            ranked.ends[query, :count].tolist(),
            ranked.scores[query, :count].tolist(),
            strict=True,
        )
    )


def rescaled(curve: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a curve of probabilities rescaled to [0, 1], as moments are cut out of it.

    A flat curve becomes 0.
    """
    low, high = curve.min(), curve.max()
    return (curve - low) / (high - low) if high > low else np.zeros_like(curve)
