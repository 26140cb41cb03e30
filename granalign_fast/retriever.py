"""The whole trip from captions and a query to ranked moments, readable from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .config import RetrieverConfig, preset
from .errors import GranAlignError
from .index import CaptionedVideo, VideoIndex
from .kernels import Curves, Ranked, context, nms, proposals, similarity
from .rewrites import Rewriter, RuleRewriter
from .types import Moment, Rewrites, SearchResult

Progress = Callable[[int], None]
"""Called with how many more are done."""


class TextEncoder(Protocol):
    """What the retriever asks of a sentence encoder; `SentenceEncoder` is one."""

    def encode(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """`(texts, dim)`, rows of unit length."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One question about one video."""

    index: VideoIndex
    query: Rewrites
    aware: Mapping[int, str] = field(default_factory=dict)
    """Query-aware captions by clip number; a clip without one is known by its agnostic caption."""


class MomentRetriever:
    """Finds the moments of a captioned video that a sentence describes.

    Example:
        >>> retriever = MomentRetriever()
        >>> index = retriever.index(CaptionedVideo("v", ("a dog runs", "a red car", "a red car")))
        >>> retriever.search(index, "a car on the road").moments[0].start
        2.0
    """

    def __init__(
        self,
        encoder: TextEncoder | None = None,
        config: RetrieverConfig | str = "tuned",
        *,
        rewriter: Rewriter | None = None,
    ) -> None:
        """Put a retriever together.

        Args:
            encoder: by default all-MiniLM-L6-v2 on the CPU.
            config: a preset's name or a configuration of your own.
            rewriter: of queries that come as plain text, by default `RuleRewriter`. A query that
                comes as `Rewrites` is taken as it is.
        """
        if encoder is None:
            from .encoders import SentenceEncoder

            encoder = SentenceEncoder()
        self.encoder = encoder
        self.config = preset(config) if isinstance(config, str) else config
        self.rewriter = RuleRewriter() if rewriter is None else rewriter

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
            GranAlignError: the query is empty, an aware caption names no clip, or an embedding is
                not a number.
        """
        rewrites = self.rewriter.rewrite([query])[0] if isinstance(query, str) else query
        return self.search_many([Request(index, rewrites, aware or {})])[0]

    def search_many(
        self, requests: Sequence[Request], *, seconds: dict[str, float] | None = None
    ) -> list[SearchResult]:
        """The moments of every request, in batches; equal to as many single searches.

        Args:
            requests: any mixture of videos and queries.
            seconds: receives the duration of each stage: ``embed``, ``context``, ``similarity``,
                ``proposals``, ``nms``, ``results``.

        Raises:
            GranAlignError: as `search`; the message names the video.
        """
        clock = _Clock(seconds)
        variants = [_variants(request.query, self.config) for request in requests]
        texts = [text for pair in variants for granularity in pair for text in granularity]
        texts += [caption for request in requests for caption in request.aware.values()]
        embedded = self.encoder.encode(texts) if texts else np.empty((0, 0), np.float32)
        row = {text: number for number, text in reversed(list(enumerate(texts)))}
        clock.lap("embed")

        results: list[SearchResult | None] = [None] * len(requests)
        for members in _alike(variants):
            batch = [requests[i] for i in members]
            agnostic, offsets, videos = _pack(batch, embedded)
            if self.config.context is not None:
                agnostic = context(agnostic, offsets, rules=self.config.context)
            clock.lap("context")
            simplified, detailed = (
                _gather(embedded, row, [variants[i][granularity] for i in members])
                for granularity in (0, 1)
            )
            aware, aware_rows = _aware(batch, embedded, row)
            curves = similarity(
                simplified,
                agnostic,
                offsets,
                videos=videos,
                detailed=detailed,
                aware=aware,
                aware_rows=aware_rows,
                power=self.config.power,
            )
            _check_finite(batch, curves)
            clock.lap("similarity")
            found = proposals(
                curves.variants, curves.fused, curves.offsets, rules=self.config.proposals
            )
            clock.lap("proposals")
            ranked = nms(*found, threshold=self.config.nms_threshold, top=self.config.top)
            clock.lap("nms")
            for i, result in zip(members, results_of(batch, curves, ranked), strict=True):
                results[i] = result
            clock.lap("results")
        return [result for result in results if result is not None]


class _Clock:
    """Adds up the time since the last lap under the name of what was done in it."""

    def __init__(self, seconds: dict[str, float] | None) -> None:
        self.seconds = {} if seconds is None else seconds
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


_Variants = tuple[tuple[str, ...], tuple[str, ...]]


def _variants(query: Rewrites, config: RetrieverConfig) -> _Variants:
    """Simplified and detailed texts; the query too where it is asked for or is all there is."""
    own = (query.query,)
    if not query.simplified and not query.detailed:
        return own, ()
    return (own if config.use_query else ()) + query.simplified, query.detailed


def _alike(variants: Sequence[_Variants]) -> Iterator[list[int]]:
    """Requests with equally many variants of each granularity: such a batch is an array."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (simplified, detailed) in enumerate(variants):
        groups.setdefault((len(simplified), len(detailed)), []).append(i)
    yield from groups.values()


def _pack(
    batch: Sequence[Request], embedded: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every video's embeddings once, where each begins, and the video of each request."""
    number: dict[int, int] = {}
    indices: list[VideoIndex] = []
    videos = np.empty(len(batch), np.int64)
    for i, request in enumerate(batch):
        index = request.index
        if index.embeddings.shape[1] != embedded.shape[1]:
            raise GranAlignError(
                f"video {index.video.vid!r}: embeddings of {index.embeddings.shape[1]} numbers, "
                f"expected {embedded.shape[1]} as of the query: index it with this encoder"
            )
        if id(index) not in number:
            number[id(index)] = len(indices)
            indices.append(index)
        videos[i] = number[id(index)]
    offsets = np.cumsum([0, *(len(index.embeddings) for index in indices)])
    parts = [index.embeddings for index in indices]
    agnostic = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.ascontiguousarray(agnostic, dtype=np.float32), offsets, videos


def _gather(
    embedded: npt.NDArray[np.float32], row: Mapping[str, int], texts: Sequence[tuple[str, ...]]
) -> npt.NDArray[np.float32]:
    """`(requests, variants, dim)`."""
    rows = np.array([[row[text] for text in variant] for variant in texts], dtype=np.int64)
    return embedded[rows.reshape(len(texts), -1)]


def _aware(
    batch: Sequence[Request], embedded: npt.NDArray[np.float32], row: Mapping[str, int]
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.int32] | None]:
    """The embeddings of the aware captions, and for each clip of each pair its row in them."""
    if not any(request.aware for request in batch):
        return None, None
    rows = []
    for request in batch:
        clips = len(request.index.video.captions)
        own = np.full(clips, -1, np.int32)
        for clip, caption in request.aware.items():
            if not 0 <= clip < clips:
                raise GranAlignError(
                    f"aware caption of clip {clip} in {request.index.video.vid!r}: expected a clip "
                    f"from 0 to {clips - 1}"
                )
            own[clip] = row[caption]
        rows.append(own)
    return embedded, np.concatenate(rows)


def _check_finite(batch: Sequence[Request], curves: Curves) -> None:
    wrong = ~np.isfinite(curves.fused)
    if wrong.any():
        at = int(wrong.argmax())
        pair = int(np.searchsorted(curves.offsets, at, side="right")) - 1
        raise GranAlignError(
            f"video {batch[pair].index.video.vid!r}, query {batch[pair].query.query!r}: the "
            f"similarity of clip {at - curves.offsets[pair]} is not a number: an embedding holds "
            "NaN or infinity; embed the captions and the query again"
        )


def results_of(batch: Sequence[Request], curves: Curves, ranked: Ranked) -> Iterator[SearchResult]:
    """What the kernels found of each request, in seconds."""
    for i, request in enumerate(batch):
        part = slice(curves.offsets[i], curves.offsets[i + 1])
        index = request.index
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
            query=request.query.query,
            moments=moments,
            saliency=curves.fused[part],
            curves=curves.variants[:, part],
        )
