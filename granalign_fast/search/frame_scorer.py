"""Scores by frames: a query and its rewrites are compared with the embeddings of frames.

Neither captions nor a vision-language model are needed. The frame encoder embeds texts and frames
in one space, as CLIP and SigLIP do; the same kernels as for captions turn cosines into moments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.protocols import ImageTextEncoder, Progress, Rewriter
from granalign_fast.types import SearchResult

from .batches import PreparedQuery
from .clock import Clock
from .frame_curves import frame_variants
from .key_frames import frame_embeddings
from .known_texts import Known, KnownTexts
from .ranker import Ranker
from .request import Request
from .results import rank_groups
from .rewriting import plain_queries, rewrite_requests


class FrameTexts:
    """The text side of a frame encoder, as a `TextEncoder`."""

    def __init__(self, frame_encoder: ImageTextEncoder) -> None:
        self.frame_encoder = frame_encoder

    def encode(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings `(texts, dim)`, rows of unit length."""
        embeddings = self.frame_encoder.encode_texts(texts)
        if progress is not None:
            progress(len(texts))
        return embeddings


class FrameScorer:
    """Scores clips by the cosine of the query and its rewrites with the frames. A `Scorer`.

    Args:
        frame_encoder: embeds the texts; it must be the one that embedded the frames.
        config: the constants of the method.
        ranker: turns embeddings into curves and moments.
        rewriter: rewrites queries that come as plain text.
    """

    def __init__(
        self,
        frame_encoder: ImageTextEncoder,
        config: RetrieverConfig,
        ranker: Ranker,
        *,
        rewriter: Rewriter,
    ) -> None:
        self.frame_encoder = frame_encoder
        self.config = config
        self.ranker = ranker
        self.rewriter = rewriter

    def score(
        self, requests: Sequence[Request], clock: Clock, known: Known | None = None
    ) -> list[SearchResult]:
        """Return one result for each request, in order; `exists` is None.

        Stages: ``rewrite``, ``embed``, those of the ranker, ``results``.

        Raises:
            GranAlignError: a query is empty, an index has no embeddings of frames or those of
                another model, or an embedding is not a number.
        """
        frames = [frame_embeddings(request.index, self.frame_encoder) for request in requests]
        queries = rewrite_requests(requests, self.rewriter)
        if plain_queries(requests):
            clock.lap("rewrite")
        else:
            clock.restart()

        # Embed every text once, in the space of the frames.
        variants = [frame_variants(query) for query in queries]
        needed = [text for simplified, _ in variants for text in simplified]
        encoder = FrameTexts(self.frame_encoder)
        texts = self.ranker.embed(KnownTexts(encoder, known) if known else encoder, needed)
        clock.lap("embed")

        # No model looks at the frames again, so none judges whether the video shows the query.
        prepared = [
            PreparedQuery(request.index, query, {}, rows)
            for request, query, rows in zip(requests, queries, frames, strict=True)
        ]
        return rank_groups(self.ranker, self.config, prepared, variants, texts, clock)
