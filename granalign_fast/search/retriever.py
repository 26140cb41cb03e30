"""The retriever: a video and a query to ranked moments, by one of two scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from granalign_fast.config import RetrieverConfig, preset
from granalign_fast.errors import GranAlignError
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.language.rewriters import RuleRewriter
from granalign_fast.protocols import (
    Captioner,
    ImageTextEncoder,
    Progress,
    Recogniser,
    Rewriter,
    TextEncoder,
)
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.types import Rewrites, SearchResult

from .caption_scorer import CaptionScorer
from .clock import Clock, Span
from .device_ranker import DeviceRanker
from .host_ranker import HostRanker
from .ranker import Ranker
from .recognition_scorer import RecognitionScorer
from .request import Request
from .scorer import Scorer


class Retriever:
    """Finds the moments of a video that a sentence describes.

    Example:
        >>> retriever = MomentRetriever()
        >>> index = retriever.index(CaptionedVideo("v", ("a dog runs", "a red car", "a red car")))
        >>> retriever.search(index, "a car on the road").moments[0].start
        2.0
    """

    def __init__(
        self,
        encoder: TextEncoder,
        config: RetrieverConfig | str = "tuned",
        *,
        rewriter: Rewriter | None = None,
        captioner: Captioner | None = None,
        frame_encoder: ImageTextEncoder | None = None,
        device: str = "cpu",
    ) -> None:
        """Put a retriever together.

        Args:
            encoder: of captions, queries and rewrites.
            config: a preset's name or a configuration of your own.
            rewriter: of queries that come as plain text, by default `RuleRewriter`. A query that
                comes as `Rewrites` is taken as it is.
            captioner: gives query-aware captions of key frames and, where it recognises as well,
                the score `exists`; by default there are neither.
            frame_encoder: chooses the key frames; by default the agnostic captions do.
            device: where captions and queries are compared and moments are cut out, as for
                `Session`. On a GPU embeddings that an encoder there has made stay there, and the
                captions of the videos last searched as well; only results come back.

        Raises:
            GranAlignError: there is no such preset or device, or the preset needs a captioner that
                recognises.
            MissingExtraError: the device is a GPU, and CuPy is not installed.
        """
        self.encoder = encoder
        self.config = preset(config) if isinstance(config, str) else config
        self.rewriter = RuleRewriter() if rewriter is None else rewriter
        self.captioner = captioner
        self.recogniser = captioner if isinstance(captioner, Recogniser) else None
        self.frame_encoder = frame_encoder
        # The device's name is checked for both scorers, so that a wrong one never goes unnoticed.
        array_device = ArrayDevice.of(device)
        self._scorer: Scorer
        if self.config.scorer == "captions":
            ranker: Ranker = (
                HostRanker(self.config)
                if array_device.index is None
                else DeviceRanker(self.config, array_device)
            )
            self._scorer = CaptionScorer(
                encoder,
                self.config,
                ranker,
                rewriter=self.rewriter,
                captioner=captioner,
                frame_encoder=frame_encoder,
            )
        elif self.recogniser is not None:
            self._scorer = RecognitionScorer(self.recogniser, self.config)
        else:
            raise GranAlignError(
                "scorer 'recognition': got no captioner that recognises, expected one such as "
                "VlmCaptioner; give it, or take the preset 'tuned'"
            )

    def index(self, video: CaptionedVideo) -> VideoIndex:
        """Embed the captions of one video."""
        return self.index_many([video])[0]

    def index_many(
        self, videos: Sequence[CaptionedVideo], *, progress: Progress | None = None
    ) -> list[VideoIndex]:
        """Embed the captions of several videos in common batches, equal captions once."""
        texts = [caption for video in videos for caption in video.captions]
        embeddings = self.encoder.encode(texts, progress=progress)
        ends = np.cumsum([len(video.captions) for video in videos])
        return [
            VideoIndex(video, embeddings[end - len(video.captions) : end])
            for video, end in zip(videos, ends.tolist(), strict=True)
        ]

    def search(
        self, index: VideoIndex, query: str | Rewrites, *, aware: Mapping[int, str] | None = None
    ) -> SearchResult:
        """The moments of one video for one query.

        Raises:
            GranAlignError: the query is empty, an aware caption names no clip, an embedding is not
                a number, or a frame is needed and the video file is gone.
        """
        return self.search_many([Request(index, query, aware)])[0]

    def search_many(
        self,
        requests: Sequence[Request],
        *,
        seconds: dict[str, float] | None = None,
        spans: list[Span] | None = None,
    ) -> list[SearchResult]:
        """The moments of every request, in batches; equal to as many single searches.

        Args:
            requests: any mixture of videos and queries.
            seconds: receives the duration of each stage that there was: ``rewrite`` (beside it
                ``key_frames`` and ``prefill``; ``wait`` is what these take longer), ``aware``,
                ``exists``, ``embed``, ``context``, ``similarity``, ``recognise``, ``proposals``,
                ``nms``, ``results``. Every result has them too. On a GPU, where nothing waits in
                between, ``rank`` stands for all from ``context`` to ``nms``.
            spans: receives when each of them began and ended.

        Raises:
            GranAlignError: as `search`; the message names the video.
        """
        if not requests:
            return []
        clock = Clock({} if seconds is None else seconds, spans)
        return self._scorer.score(requests, clock)
