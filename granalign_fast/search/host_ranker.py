"""A ranker on the CPU: the NumPy twins of the kernels."""

from __future__ import annotations

from collections.abc import Sequence

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import Curves, Ranked, context, nms, proposals, similarity
from granalign_fast.protocols import TextEncoder

from .batches import (
    PreparedQuery,
    Variants,
    aware_rows,
    check_finite,
    embedding_rows,
    first_rows,
    stack_videos,
)
from .clock import Clock
from .ranker import TextEmbeddings


class HostRanker:
    """Runs the NumPy kernels one after another, each a stage of its own. A `Ranker`."""

    def __init__(self, config: RetrieverConfig) -> None:
        self.config = config

    def embed(self, encoder: TextEncoder, texts: Sequence[str]) -> TextEmbeddings:
        """Embed texts; some may be equal."""
        return TextEmbeddings(encoder.encode(texts), first_rows(texts))

    def rank(
        self,
        batch: Sequence[PreparedQuery],
        variants: Sequence[Variants],
        texts: TextEmbeddings,
        clock: Clock,
    ) -> tuple[Curves, Ranked]:
        """Return the curves and the moments of queries; arguments and errors as in `Ranker`.

        Stages: ``context``, ``similarity``, ``proposals``, ``nms``.
        """
        embeddings, row = texts

        # Mix each clip's caption embedding with those of its neighbours.
        agnostic, offsets, videos = stack_videos(batch, embeddings.shape[1])
        if self.config.context is not None:
            agnostic = context(agnostic, offsets, rules=self.config.context)
        clock.lap("context")

        # Compare: simplified texts with agnostic captions, detailed texts with aware captions.
        aware = aware_rows(batch, row)
        curves = similarity(
            embeddings[embedding_rows(row, [simplified for simplified, _ in variants])],
            agnostic,
            offsets,
            videos=videos,
            detailed=embeddings[embedding_rows(row, [detailed for _, detailed in variants])],
            aware=None if aware is None else embeddings,
            aware_rows=aware,
            power=self.config.power,
        )
        check_finite(batch, curves)
        clock.lap("similarity")

        # Cut candidates out of the curves, and keep the best that do not overlap.
        return curves, cut_moments(curves, self.config, clock)


def cut_moments(
    curves: Curves, config: RetrieverConfig, clock: Clock, *, every: bool = False
) -> Ranked:
    """Cut candidates out of curves, score them, and suppress those that overlap better ones.

    Stages: ``proposals``, ``nms``.

    Args:
        curves: of all queries, float32 in [0, 1].
        config: the rules of candidates, and the threshold and number of moments.
        clock: receives a lap for each stage.
        every: keep all moments, not the configured number.
    """
    candidates = proposals(curves.variants, curves.fused, curves.offsets, rules=config.proposals)
    clock.lap("proposals")
    top = max(1, len(candidates.starts)) if every else config.top
    ranked = nms(*candidates, threshold=config.nms_threshold, top=top)
    clock.lap("nms")
    return ranked
