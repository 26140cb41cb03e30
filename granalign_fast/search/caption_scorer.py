"""Scores by captions: the method, from a query to ranked moments, readable from top to bottom.

A query is rewritten at two granularities. The key frames of the video get captions that are written
with the query in mind. Simplified rewrites are compared with the query-agnostic captions, detailed
rewrites with the query-aware ones; a ranker turns the cosines into curves and moments
(GranAlign, arXiv 2601.00584, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.protocols import (
    Captioner,
    ImageTextEncoder,
    Prefiller,
    Recogniser,
    Rewriter,
    TextEncoder,
    query_encoder,
)
from granalign_fast.types import Rewrites, SearchResult

from .batches import PreparedQuery, query_variants
from .clock import Clock
from .frame_curves import frame_curves
from .key_frames import aware_captions, existence, frame_embeddings, frame_set, key_frames
from .known_texts import Known, KnownTexts
from .ranker import Ranker
from .request import Request, query_text
from .results import rank_groups
from .rewriting import plain_queries, rewrite_requests

KeyFrames = list[list[int]]
"""The clip numbers of the key frames of each request; empty where no model looks at them."""


class CaptionScorer:
    """Scores clips by the cosine of rewrites with captions. A `Scorer`.

    Args:
        encoder: embeds captions, queries and rewrites.
        config: the constants of the method.
        ranker: turns embeddings into curves and moments.
        rewriter: rewrites queries that come as plain text.
        captioner: writes query-aware captions and, if it is a `Recogniser`, judges whether the
            video shows the query; None for neither.
        frame_encoder: chooses the key frames; None: the query-agnostic captions do.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        config: RetrieverConfig,
        ranker: Ranker,
        *,
        rewriter: Rewriter,
        captioner: Captioner | None,
        frame_encoder: ImageTextEncoder | None,
    ) -> None:
        self.encoder = encoder
        self.config = config
        self.ranker = ranker
        self.rewriter = rewriter
        self.captioner = captioner
        self.frame_encoder = frame_encoder

    def score(
        self, requests: Sequence[Request], clock: Clock, known: Known | None = None
    ) -> list[SearchResult]:
        """Return one result for each request, in order.

        Stages: ``rewrite``, concurrently ``key_frames`` and ``prefill``; ``wait``, ``aware``,
        ``exists``, ``embed``, ``frames``, those of the ranker, ``results``.

        Raises:
            GranAlignError: a query is empty, an aware caption names no clip, an embedding is not a
                number, or a frame is needed and the video file is gone.
        """
        # Refuse an index without captions before any model runs.
        for request in requests:
            _ = request.index.caption_embeddings
        # Rewrite the queries. Meanwhile choose the key frames and prefill their prompts.
        queries, clips = self._rewrite(requests, clock)
        # Caption the key frames with the queries in mind.
        aware = self._caption(requests, queries, clips, clock)
        # Judge by the key frames whether each video shows its query at all.
        exists = self._judge_existence(requests, queries, clips, clock)
        prepared = [
            PreparedQuery(request.index, query, captions)
            for request, query, captions in zip(requests, queries, aware, strict=True)
        ]

        # Embed every variant of every query and every query-aware caption: in one call, unless the
        # model has a prompt for queries, or some queries are known.
        variants = [query_variants(query, self.config) for query in queries]
        needed = [text for pair in variants for granularity in pair for text in granularity]
        captions = [caption for captions in aware for caption in captions.values()]
        asking = query_encoder(self.encoder)
        if known:
            asking = KnownTexts(asking, known)
        texts = self.ranker.embed(asking, needed, self.encoder, captions)
        clock.lap("embed")

        frames = None
        if self.frame_encoder is not None and self.config.frames_weight:
            frames = frame_curves(requests, queries, self.frame_encoder, self.config.power)
            clock.lap("frames")
        return rank_groups(
            self.ranker, self.config, prepared, variants, texts, clock, exists, frames
        )

    def _rewrite(
        self, requests: Sequence[Request], clock: Clock
    ) -> tuple[list[Rewrites], KeyFrames]:
        """Rewrite plain queries, and concurrently choose and prefill the key frames."""
        plain = plain_queries(requests)
        if self.captioner is None:  # there are no key frames, and a thread would cost a millisecond
            queries = rewrite_requests(requests, self.rewriter)
            if plain:
                clock.lap("rewrite")
            else:
                clock.restart()
            return queries, [[] for _ in requests]
        # Key frames depend on the query's own text alone, so they need not wait for its rewrites.
        with ThreadPoolExecutor(1) as pool:
            chosen = pool.submit(self._key_frames, requests, clock)
            prefilled = pool.submit(self._prefill, requests, chosen, clock) if plain else None
            queries = rewrite_requests(requests, self.rewriter)
            if plain:
                clock.lap("rewrite")
            clips = chosen.result()
            if prefilled:
                prefilled.result()
        # With key frames, the time since the rewrites is a wait; without, it is not a stage.
        if any(clips):
            clock.lap("wait")
        else:
            clock.restart()
        return queries, clips

    def _key_frames(self, requests: Sequence[Request], clock: Clock) -> KeyFrames:
        """Choose the key frames of each request; none if no captioner would look at them."""
        watched = [r for r in requests if self.captioner and r.index.frames is not None]
        if not watched:
            return [[] for _ in requests]
        with clock.concurrent("key_frames"):
            # Embed each query once, in the space of the frames or else of the captions.
            texts = list(dict.fromkeys(query_text(request) for request in watched))
            frames = self.frame_encoder
            encode = frames.encode_texts if frames else query_encoder(self.encoder).encode
            row = dict(zip(texts, encode(texts), strict=True))
            return [self._nearest_clips(request, row) for request in requests]

    def _nearest_clips(
        self, request: Request, row: Mapping[str, npt.NDArray[np.float32]]
    ) -> list[int]:
        """Return the clips that are nearest to the query; none if the index has no frames."""
        index = request.index
        if index.frames is None:
            return []
        clips = (
            frame_embeddings(index, self.frame_encoder)
            if self.frame_encoder
            else index.caption_embeddings
        )
        return key_frames(index, row[query_text(request)], clips, self.config.key_frames)

    def _prefill(
        self, requests: Sequence[Request], chosen: Future[KeyFrames], clock: Clock
    ) -> None:
        """Let the captioner prefill the prompts of the key frames, as many as its cache holds."""
        if not isinstance(self.captioner, Prefiller):
            return
        capacity, clips = self.captioner.frame_capacity, chosen.result()
        with clock.concurrent("prefill"):
            for request, keys in zip(requests, clips, strict=True):
                # The prefix of a clip is about as long as those of its frames together, at most.
                capacity -= len(keys) * request.index.frames_per_clip
                if capacity < 0:
                    break
                if keys:
                    self.captioner.prefill(frame_set(request.index).take(keys))

    def _caption(
        self,
        requests: Sequence[Request],
        queries: Sequence[Rewrites],
        clips: KeyFrames,
        clock: Clock,
    ) -> list[Mapping[int, str]]:
        """Return the query-aware captions of each request: the caller's, or the captioner's."""
        aware = [request.aware or {} for request in requests]
        # Only detailed rewrites are compared with query-aware captions.
        guided = [
            i
            for i, (request, query) in enumerate(zip(requests, queries, strict=True))
            if clips[i] and request.aware is None and query.detailed
        ]
        if guided and self.captioner:
            targets = [(requests[i].index, clips[i], queries[i]) for i in guided]
            for i, captions in zip(guided, aware_captions(self.captioner, targets), strict=True):
                aware[i] = captions
            clock.lap("aware")
        return aware

    def _judge_existence(
        self,
        requests: Sequence[Request],
        queries: Sequence[Rewrites],
        clips: KeyFrames,
        clock: Clock,
    ) -> list[float | None]:
        """Return how likely each video shows its query; None if no model has judged it."""
        exists: list[float | None] = [None] * len(requests)
        if isinstance(self.captioner, Recogniser) and any(clips):
            judged = [i for i, keys in enumerate(clips) if keys]
            targets = [(requests[i].index, clips[i], queries[i]) for i in judged]
            found = existence(self.captioner, targets, self.config.exists_frames)
            for i, likely in zip(judged, found, strict=True):
                exists[i] = likely
            clock.lap("exists")
        return exists
