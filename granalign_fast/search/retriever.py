"""The whole trip from a video and a query to ranked moments, readable from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig, preset
from granalign_fast.errors import GranAlignError
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.kernels import Curves, Ranked
from granalign_fast.language.rewriters import RuleRewriter
from granalign_fast.protocols import (
    Captioner,
    ImageTextEncoder,
    Prefiller,
    Progress,
    Recogniser,
    Rewriter,
)
from granalign_fast.protocols import TextEncoder as TextEncoder
from granalign_fast.types import Moment, Rewrites, SearchResult

from .batches import Question, alike, variants
from .clock import Clock, Span
from .key_frames import (
    aware_captions,
    existence,
    frame_embeddings,
    frame_set,
    key_frames,
    mean_of_greatest,
    ways_to_ask,
)
from .ranker import moments_of, ranker_on


@dataclass(frozen=True, slots=True)
class Request:
    """One question about one video."""

    index: VideoIndex
    query: str | Rewrites
    """A plain text is rewritten first."""
    aware: Mapping[int, str] | None = None
    """Query-aware captions by clip number; a clip without one is known by its agnostic caption.
    None for those that the captioner makes, if there is one."""


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
        if self.config.scorer == "recognition" and self.recogniser is None:
            raise GranAlignError(
                "scorer 'recognition': got no captioner that recognises, expected one such as "
                "VlmCaptioner; give it, or take the preset 'tuned'"
            )
        self._ranker = ranker_on(device, self.config)

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
        seconds = {} if seconds is None else seconds
        clock = Clock(seconds, spans)
        if self.config.scorer == "recognition":
            return self._recognised(requests, clock)
        questions, exists = self._asked(requests, clock)
        asked = [variants(question.query, self.config) for question in questions]
        needed = [text for pair in asked for granularity in pair for text in granularity]
        needed += [caption for question in questions for caption in question.aware.values()]
        texts = self._ranker.embed(self.encoder, needed)
        clock.lap("embed")

        results: list[SearchResult | None] = [None] * len(requests)
        for members in alike(asked):
            batch = [questions[i] for i in members]
            curves, ranked = self._ranker.rank(batch, [asked[i] for i in members], texts, clock)
            found = results_of(batch, curves, ranked, [exists[i] for i in members], seconds)
            for i, result in zip(members, found, strict=True):
                results[i] = result
            clock.lap("results")
        return [result for result in results if result is not None]

    def _asked(
        self, requests: Sequence[Request], clock: Clock
    ) -> tuple[list[Question], list[float | None]]:
        """Every query rewritten and its key frames captioned; whether each video shows it."""
        plain = {r.query: None for r in requests if isinstance(r.query, str)}
        rewritten: Mapping[str, Rewrites] = {}
        # Frames can be chosen and looked at before it is known what exactly is asked of them.
        with ThreadPoolExecutor(1) as beside:
            keys = beside.submit(self._key_frames, requests, clock)
            seen = beside.submit(self._prefill, requests, keys, clock) if plain else None
            if plain:
                rewritten = dict(zip(plain, self.rewriter.rewrite(list(plain)), strict=True))
                clock.lap("rewrite")
            clips = keys.result()
            if seen:
                seen.result()
        if any(clips):
            clock.lap("wait")
        else:
            clock.restart()
        queries = [
            request.query if isinstance(request.query, Rewrites) else rewritten[request.query]
            for request in requests
        ]
        aware = [request.aware or {} for request in requests]
        guided = [
            i
            for i, (request, query) in enumerate(zip(requests, queries, strict=True))
            if clips[i] and request.aware is None and query.detailed
        ]
        if guided and self.captioner:
            asked = [(requests[i].index, clips[i], queries[i]) for i in guided]
            for i, captions in zip(guided, aware_captions(self.captioner, asked), strict=True):
                aware[i] = captions
            clock.lap("aware")
        exists: list[float | None] = [None] * len(requests)
        if self.recogniser and any(clips):
            count = self.config.exists_frames
            for i, (request, keyed) in enumerate(zip(requests, clips, strict=True)):
                if keyed:
                    exists[i] = existence(self.recogniser, request.index, keyed, queries[i], count)
            clock.lap("exists")
        indexes = [request.index for request in requests]
        return [Question(*one) for one in zip(indexes, queries, aware, strict=True)], exists

    def _key_frames(self, requests: Sequence[Request], clock: Clock) -> list[list[int]]:
        """The key frames of each request; none where nobody would look at them."""
        watched = [r for r in requests if self.captioner and r.index.frames is not None]
        if not watched:
            return [[] for _ in requests]
        with clock.beside("key_frames"):
            return self._chosen(requests, watched)

    def _chosen(self, requests: Sequence[Request], watched: Sequence[Request]) -> list[list[int]]:
        texts = list(dict.fromkeys(_text(request) for request in watched))
        encode = self.frame_encoder.encode_texts if self.frame_encoder else self.encoder.encode
        row = dict(zip(texts, encode(texts), strict=True))
        found: list[list[int]] = []
        for request in requests:
            index = request.index
            if index.frames is None:
                found.append([])
                continue
            frames = (
                frame_embeddings(index, self.frame_encoder)
                if self.frame_encoder
                else index.embeddings
            )
            found.append(key_frames(index, row[_text(request)], frames, self.config.key_frames))
        return found

    def _prefill(
        self, requests: Sequence[Request], keys: Future[list[list[int]]], clock: Clock
    ) -> None:
        """Let the captioner look at the key frames, as many as it can keep in mind."""
        if not isinstance(self.captioner, Prefiller):
            return
        left, chosen = self.captioner.room, keys.result()
        with clock.beside("prefill"):
            for request, clips in zip(requests, chosen, strict=True):
                left -= len(clips)
                if left < 0:
                    break
                if clips:
                    self.captioner.prefill(frame_set(request.index).take(clips))

    def _recognised(self, requests: Sequence[Request], clock: Clock) -> list[SearchResult]:
        """Moments cut out of the probabilities that a model gives each frame."""
        if self.recogniser is None:
            return []
        asked: dict[int, tuple[VideoIndex, list[int]]] = {}
        for i, request in enumerate(requests):
            asked.setdefault(id(request.index), (request.index, []))[1].append(i)
        found: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(requests)
        for index, members in asked.values():
            ways = [ways_to_ask(_rewrites(requests[i])) for i in members]
            texts = [text for own in ways for text in own]
            curves = self.recogniser.recognise(frame_set(index), texts)
            ends = np.cumsum([len(own) for own in ways]).tolist()
            for i, own, end in zip(members, ways, ends, strict=True):
                found[i] = curves[end - len(own) : end].mean(axis=0)
        clock.lap("recognise")
        fused = np.concatenate([_stretched(curve) for curve in found])
        offsets = np.cumsum([0, *map(len, found)])
        ranked = moments_of(Curves(fused[None], fused, offsets), self.config, clock)
        # The saliency is the probability itself, which the cutting had stretched.
        said = np.concatenate(found)
        exists = [mean_of_greatest(curve, self.config.exists_frames) for curve in found]
        questions = [Question(r.index, _rewrites(r), {}) for r in requests]
        curves_said = Curves(said[None], said, offsets)
        results = list(results_of(questions, curves_said, ranked, exists, clock.seconds))
        clock.lap("results")
        return results


def _text(request: Request) -> str:
    return _rewrites(request).query


def _rewrites(request: Request) -> Rewrites:
    return request.query if isinstance(request.query, Rewrites) else Rewrites(request.query)


def _stretched(curve: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """From 0 to 1, as the curves of captions are; a flat curve becomes 0."""
    low, high = curve.min(), curve.max()
    return (curve - low) / (high - low) if high > low else np.zeros_like(curve)


def results_of(
    batch: Sequence[Question],
    curves: Curves,
    ranked: Ranked,
    exists: Sequence[float | None] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Iterator[SearchResult]:
    """What the kernels found of each request, in seconds."""
    for i, question in enumerate(batch):
        part = slice(curves.offsets[i], curves.offsets[i + 1])
        index = question.index
        count = int(ranked.counts[i])
        moments = tuple(
            Moment(index.seconds(start), index.seconds(end), score)
            for start, end, score in zip(
                ranked.starts[i, :count].tolist(),
                ranked.ends[i, :count].tolist(),
                ranked.scores[i, :count].tolist(),
                strict=True,
            )
        )
        yield SearchResult(
            vid=index.video.vid,
            query=question.query.query,
            moments=moments,
            saliency=curves.fused[part],
            curves=curves.variants[:, part],
            exists=exists[i] if exists else None,
            rewrites=question.query,
            aware=question.aware,
            seconds=seconds or {},
        )
