"""A ranker on the CPU: the NumPy twins of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import Curves, Ranked, nms, proposals, refined_curves
from granalign_fast.protocols import TextEncoder
from granalign_fast.runtime.array_device import Array

from .batches import (
    PreparedQuery,
    Variants,
    aware_rows,
    check_finite,
    distinct_videos,
    embedding_rows,
)
from .clock import Clock
from .derived_cache import DerivedArrayCache
from .frame_curves import FrameCurve, with_frames
from .mixed_captions import is_mixed, matrices_of, mix
from .ranker import TextEmbeddings, embed_roles

CAPTION_CACHE_BYTES = 1 << 27
"""Bytes of mixed caption embeddings that stay in memory, 128 MiB: some 580 videos of 150 seconds,
or 24 hours, by MiniLM and `tuned`."""


class HostRanker:
    """Runs the NumPy kernels one after another, each a stage of its own. A `Ranker`.

    The mixed captions of the videos last searched are kept. `tuned` keeps two arrays of the size of
    a video's embeddings.

    Args:
        config: the constants of the method.
        cache_bytes: how many bytes of mixed captions are kept.
    """

    def __init__(self, config: RetrieverConfig, cache_bytes: int = CAPTION_CACHE_BYTES) -> None:
        self.config = config
        self._captions = DerivedArrayCache(cache_bytes)

    def embed(
        self,
        asking: TextEncoder,
        queries: Sequence[str],
        encoder: TextEncoder | None = None,
        captions: Sequence[str] = (),
    ) -> TextEmbeddings:
        """Embed texts; arguments as in `Ranker`."""

        def encode(model: TextEncoder, texts: Sequence[str]) -> Array:
            return model.encode(texts)

        return embed_roles(encode, np.concatenate, asking, queries, encoder, captions)

    def rank(
        self,
        batch: Sequence[PreparedQuery],
        variants: Sequence[Variants],
        texts: TextEmbeddings,
        clock: Clock,
        *,
        frames: Sequence[FrameCurve] = (),
    ) -> tuple[Curves, Ranked]:
        """Return the curves and the moments of queries; arguments and errors as in `Ranker`.

        Stages: ``context``, ``similarity``, ``proposals``, ``nms``.
        """
        embeddings, row, caption_row = texts

        # Mix each clip's caption embedding with those of its neighbours.
        matrices, offsets, videos = distinct_videos(batch, embeddings.shape[1])
        captions = self._stack(matrices, offsets)
        clock.lap("context")

        # Compare: simplified texts with agnostic captions, detailed texts with aware captions.
        # Feedback moves each text towards the clips that fit it best; compare once more.
        aware = aware_rows(batch, caption_row)
        curves = refined_curves(
            embeddings[embedding_rows(row, [simplified for simplified, _ in variants])],
            captions[0],
            offsets,
            second=captions[1] if len(captions) > 1 else None,
            videos=videos,
            detailed=embeddings[embedding_rows(row, [detailed for _, detailed in variants])],
            aware=None if aware is None else embeddings,
            aware_rows=aware,
            power=self.config.power,
            rules=self.config.feedback,
        )
        check_finite(batch, curves)
        if frames:
            curves = with_frames(curves, frames, self.config.frames_weight)
        clock.lap("similarity")

        # Cut candidates out of the curves, and keep the best that do not overlap.
        return curves, cut_moments(curves, self.config, clock)

    def _stack(
        self, videos: Sequence[npt.NDArray[Any]], offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Mix the captions of each video, and stack them: `(matrices, clips, dim)` float32.

        Args:
            videos: the caption embeddings of each video.
            offsets: of their clips, `(videos + 1,)`.
        """
        if len(videos) == 1:
            return self._mixed(videos[0])
        shape = matrices_of(self.config), int(offsets[-1]), videos[0].shape[1]
        stacked = np.empty(shape, np.float32)
        for embeddings, begin, end in zip(videos, offsets[:-1], offsets[1:], strict=True):
            stacked[:, begin:end] = self._mixed(embeddings)
        return stacked

    def _mixed(self, embeddings: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the matrices of one video, from the cache if they are there."""
        if not is_mixed(self.config):
            return np.ascontiguousarray(embeddings, dtype=np.float32)[None]
        mixed: npt.NDArray[np.float32] = self._captions.get_or_create(
            embeddings,
            lambda rows: np.stack(mix(np.ascontiguousarray(rows, np.float32), self.config)),
        )
        return mixed


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
    most = (candidates.offsets[1:] - candidates.offsets[:-1]).max(initial=1)
    top = int(most) if every else min(config.top, int(most))
    ranked = nms(*candidates, threshold=config.nms_threshold, top=top)
    clock.lap("nms")
    return ranked
