"""The retriever: a video and a query to ranked moments, by one of three scorers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, overload

import numpy as np

from granalign_fast.config import RetrieverConfig, resolve_config
from granalign_fast.errors import GranAlignError, short_repr
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
from .frame_scorer import FrameScorer
from .host_ranker import CAPTION_CACHE_BYTES, HostRanker
from .isolation import search_each
from .known_texts import Known
from .ranker import Ranker
from .recognition_scorer import RecognitionScorer
from .request import Request, check_requests
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
        cache_bytes: int = CAPTION_CACHE_BYTES,
    ) -> None:
        """Put a retriever together.

        Args:
            encoder: embeds captions, queries and rewrites.
            config: a preset's name or a configuration of your own.
            rewriter: rewrites queries that come as plain text; by default `RuleRewriter`. A query
                that comes as `Rewrites` is taken as it is.
            captioner: writes query-aware captions of key frames. If it is a `Recogniser` too, it
                also gives the score `exists`. By default there are neither.
            frame_encoder: chooses the key frames; by default the agnostic captions do. The preset
                ``visual`` compares its texts with the frames; it uses no other model but the
                rewriter.
            device: compares captions with queries and cuts out moments; named as for `Session`. On
                a GPU the embeddings of an encoder on that GPU stay there, and so do the captions of
                the videos last searched; only results come back.
            cache_bytes: on a CPU, how many bytes of what is derived from the captions of the videos
                last searched stay in memory.

        Raises:
            GranAlignError: an argument is of the wrong type, there is no such preset or device, or
                the preset needs a captioner that recognises, or a frame encoder.
            MissingExtraError: the device is a GPU, and CuPy is not installed.
        """
        _check_model("encoder", encoder, "encode", "SentenceEncoder")
        _check_model("rewriter", rewriter, "rewrite", "LlmRewriter")
        _check_model("captioner", captioner, "aware", "VlmCaptioner")
        _check_model("frame_encoder", frame_encoder, "encode_texts", "FrameEncoder")
        self.encoder = encoder
        self.config = resolve_config(config)
        self.rewriter = RuleRewriter() if rewriter is None else rewriter
        self.captioner = captioner
        self.recogniser = captioner if isinstance(captioner, Recogniser) else None
        self.frame_encoder = frame_encoder
        # The device's name is checked for all scorers, so that a wrong one never goes unnoticed.
        self.device = ArrayDevice.of(device)
        self._scorer = self._make_scorer(self.device, cache_bytes)

    def _make_scorer(self, device: ArrayDevice, cache_bytes: int) -> Scorer:
        """Return the scorer of the configuration.

        Raises:
            GranAlignError: the model that it needs is missing.
        """
        config = self.config
        if config.scorer == "recognition":
            if self.recogniser is None:
                raise GranAlignError(
                    "scorer 'recognition': got no captioner that recognises, expected one such as "
                    "VlmCaptioner; give it, or take the preset 'tuned'; without captions, 'visual'"
                )
            return RecognitionScorer(self.recogniser, config)
        ranker: Ranker = (
            HostRanker(config, cache_bytes)
            if device.index is None
            else DeviceRanker(config, device)
        )
        if config.scorer == "frames":
            if self.frame_encoder is None:
                raise GranAlignError(
                    "scorer 'frames': got no frame encoder, expected one such as FrameEncoder; "
                    "give it, or models of which one is of kind 'clip', without captions_only"
                )
            return FrameScorer(self.frame_encoder, config, ranker, rewriter=self.rewriter)
        return CaptionScorer(
            self.encoder,
            config,
            ranker,
            rewriter=self.rewriter,
            captioner=self.captioner,
            frame_encoder=self.frame_encoder,
        )

    def index(self, video: CaptionedVideo) -> VideoIndex:
        """Embed the captions of one video.

        Raises:
            GranAlignError: it is no `CaptionedVideo`.
        """
        _check_video("video", video)
        return self.index_many([video])[0]

    def index_many(
        self, videos: Sequence[CaptionedVideo], *, progress: Progress | None = None
    ) -> list[VideoIndex]:
        """Embed the captions of several videos in common batches, equal captions once.

        Args:
            videos: in any number.
            progress: called with the number of captions embedded since the last call.

        Raises:
            GranAlignError: it is no list of `CaptionedVideo`.
        """
        if isinstance(videos, str) or not isinstance(videos, Collection):
            remedy = "; put the video into a list" if isinstance(videos, CaptionedVideo) else ""
            raise GranAlignError(
                f"videos: got a {type(videos).__name__}, expected a list of CaptionedVideo{remedy}"
            )
        for i, video in enumerate(videos):
            _check_video(f"videos[{i}]", video)
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
        """Return the moments of one video for one query.

        Args:
            index: of the video.
            query: a plain text, which is rewritten first, or `Rewrites`.
            aware: query-aware captions by clip number; None: the captioner writes them, if there is
                one.

        Raises:
            GranAlignError: an argument is of the wrong type, the query is empty, an aware caption
                names no clip, an embedding is not a number, or a frame is needed and the video file
                is gone.
        """
        return self.search_many([Request(index, query, aware)])[0]

    @overload
    def search_many(
        self,
        requests: Sequence[Request],
        *,
        return_errors: Literal[False] = False,
        seconds: dict[str, float] | None = None,
        spans: list[Span] | None = None,
        known: Known | None = None,
    ) -> list[SearchResult]: ...

    @overload
    def search_many(
        self,
        requests: Sequence[Request],
        *,
        return_errors: Literal[True],
        seconds: dict[str, float] | None = None,
        spans: list[Span] | None = None,
        known: Known | None = None,
    ) -> list[SearchResult | GranAlignError]: ...

    def search_many(
        self,
        requests: Sequence[Request],
        *,
        return_errors: bool = False,
        seconds: dict[str, float] | None = None,
        spans: list[Span] | None = None,
        known: Known | None = None,
    ) -> list[SearchResult] | list[SearchResult | GranAlignError]:
        """Return the moments of every request, in batches; the results equal single searches.

        Args:
            requests: any mixture of videos and queries.
            return_errors: whether a request that fails fails alone: its error takes the place of
                its result, and the others are searched without it.
            seconds: receives the duration of each stage that ran: ``rewrite``, ``key_frames``,
                ``prefill``, ``wait``, ``aware``, ``exists``, ``embed``, ``frames``, ``context``,
                ``similarity``, ``recognise``, ``proposals``, ``nms``, ``results``. Stages
                ``key_frames`` and ``prefill`` run concurrently with ``rewrite``; ``wait`` is the
                time that they take longer. On a GPU one stage ``rank`` takes the place of all from
                ``context`` to ``nms``, because the host does not wait in between. Every result has
                the durations too.
            spans: receives the beginning and the end of each stage.
            known: embeddings of texts, in the space of the captions or, for the preset ``visual``,
                of the frames. These texts are not embedded again.

        Raises:
            GranAlignError: as in `search`; the message names the video. With `return_errors` only
                for what is no list of requests.
        """
        check_requests(requests)
        if not requests:
            return []
        clock = Clock({} if seconds is None else seconds, spans)
        if return_errors:
            return search_each(requests, lambda some: self._scorer.score(some, clock, known))
        return self._scorer.score(requests, clock, known)


def _check_model(name: str, model: object, method: str, example: str) -> None:
    """Raise unless a model has the method that the retriever calls, or is None.

    Raises:
        GranAlignError: it has not. A text has a method `encode` too, and is refused all the same.
    """
    if model is None and name != "encoder":
        return
    if isinstance(model, str) or not callable(getattr(model, method, None)):
        raise GranAlignError(
            f"{name}: got {short_repr(model)}, expected an object with a method {method!r}, such "
            f"as {example}"
        )


def _check_video(name: str, video: object) -> None:
    """Raise unless this is a captioned video."""
    if not isinstance(video, CaptionedVideo):
        raise GranAlignError(
            f"{name}: got {short_repr(video)}, expected a CaptionedVideo; write "
            f"CaptionedVideo(vid, captions)"
        )
