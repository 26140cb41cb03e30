"""All candidates of a search, ranked again from its curves when somebody asks for them.

A ranker returns the configured number of moments. Distinct moments are chosen from the whole list,
which most searches never need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.index import IndexedVideo
from granalign_fast.kernels import Curves, Ranked
from granalign_fast.types import Moment, SearchResult

from .clock import Clock
from .host_ranker import cut_moments


@dataclass(frozen=True, slots=True)
class AllCandidates:
    """Ranks all candidates of one search. It is the `rank_all` of a `SearchResult`."""

    config: RetrieverConfig
    video: IndexedVideo

    def __call__(self, result: SearchResult) -> tuple[Moment, ...]:
        """Return all candidates that are left after NMS, best first.

        They are ranked on the CPU, which from equal curves gives what a GPU gives, to the bit.
        """
        variants, fused = result.curves, result.saliency
        if self.config.scorer == "recognition":
            fused = rescaled(fused)
            variants = fused[None]
        curves = Curves(
            np.ascontiguousarray(variants), np.ascontiguousarray(fused), np.array([0, len(fused)])
        )
        ranked = cut_moments(curves, self.config, Clock({}), every=True)
        return moments_of(self.video, ranked, 0)


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
