"""Queries and videos as the kernels take them: flat arrays, offsets and row numbers.

A kernel call takes a ragged batch. The embeddings of all videos are one array `(clips, dim)`, and
``offsets[v]:offsets[v + 1]`` are the rows of video *v*. The query variants of a batch are one array
`(queries, variants, dim)`, so a batch holds queries with equal numbers of variants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.kernels import Curves
from granalign_fast.types import Rewrites


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A request that is ready for the kernels: rewritten, and its key frames captioned."""

    index: VideoIndex
    rewrites: Rewrites
    aware: Mapping[int, str]
    """Query-aware captions by clip number."""
    frames: npt.NDArray[Any] | None = None
    """Embeddings of the frames, `(clips, dim)`, if they are compared in place of the captions."""

    @property
    def embeddings(self) -> npt.NDArray[Any]:
        """The embeddings of the clips that the query is compared with, `(clips, dim)`.

        Raises:
            GranAlignError: these are the captions', and the index has none.
        """
        return self.index.caption_embeddings if self.frames is None else self.frames


Variants = tuple[tuple[str, ...], tuple[str, ...]]
"""The simplified and the detailed texts of a query."""


def query_variants(query: Rewrites, config: RetrieverConfig) -> Variants:
    """Return the texts of a query that are compared with captions, by granularity.

    The query itself counts as simplified if the configuration says so, or if there is no rewrite.
    """
    query_itself = (query.query,)
    if not query.simplified and not query.detailed:
        return query_itself, ()
    return (query_itself if config.use_query else ()) + query.simplified, query.detailed


def group_by_variant_counts(variants: Sequence[Variants]) -> Iterator[list[int]]:
    """Yield the positions of queries with equally many variants of each granularity.

    The embeddings of such a group stack into one array.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (simplified, detailed) in enumerate(variants):
        groups.setdefault((len(simplified), len(detailed)), []).append(i)
    yield from groups.values()


def distinct_videos(
    batch: Sequence[PreparedQuery], dim: int
) -> tuple[list[npt.NDArray[Any]], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the embeddings of each video of a batch once.

    Args:
        batch: the queries.
        dim: numbers of a query's embedding.

    Returns:
        The embeddings of each video, `(clips, dim)`; the offsets of their clips, `(videos + 1,)`;
        the number of the video that each query is about, `(queries,)`.

    Raises:
        GranAlignError: a video was indexed with another encoder.
    """
    number: dict[int, int] = {}
    rows: list[npt.NDArray[Any]] = []
    videos = np.empty(len(batch), np.int64)
    for i, query in enumerate(batch):
        index, embeddings = query.index, query.embeddings
        if embeddings.shape[1] != dim:
            what = "caption" if query.frames is None else "frame"
            raise GranAlignError(
                f"video {index.video.vid!r}: got {what} embeddings of "
                f"{embeddings.shape[1]} numbers, expected {dim} as in the query's; index the "
                "video with this encoder"
            )
        if id(index) not in number:
            number[id(index)] = len(rows)
            rows.append(embeddings)
        videos[i] = number[id(index)]
    offsets = np.cumsum([0, *map(len, rows)])
    return rows, offsets, videos


def first_rows(texts: Sequence[str]) -> dict[str, int]:
    """Map each text to the first position at which it stands."""
    return {text: number for number, text in reversed(list(enumerate(texts)))}


def embedding_rows(
    row: Mapping[str, int], texts: Sequence[tuple[str, ...]]
) -> npt.NDArray[np.int64]:
    """Return the row of each text's embedding, `(queries, variants)`.

    Args:
        row: the row of each text.
        texts: the variants of each query, equally many for all.
    """
    rows = np.array([[row[text] for text in variant] for variant in texts], dtype=np.int64)
    return rows.reshape(len(texts), -1)


def aware_rows(
    batch: Sequence[PreparedQuery], row: Mapping[str, int]
) -> npt.NDArray[np.int32] | None:
    """Return the row of the query-aware caption of each clip of each query, or -1 for no caption.

    Args:
        batch: the queries.
        row: the row of each text.

    Returns:
        `(clips of all queries,)`; None if the batch has no query-aware caption.

    Raises:
        GranAlignError: a caption's clip number is not a clip of the video.
    """
    if not any(query.aware for query in batch):
        return None
    parts = []
    for query in batch:
        clips = query.index.video.clips
        rows = np.full(clips, -1, np.int32)
        for clip, caption in query.aware.items():
            if not 0 <= clip < clips:
                raise GranAlignError(
                    f"aware caption of clip {clip} in {query.index.video.vid!r}: expected a clip "
                    f"from 0 to {clips - 1}"
                )
            rows[clip] = row[caption]
        parts.append(rows)
    return np.concatenate(parts)


def check_finite(batch: Sequence[PreparedQuery], curves: Curves) -> None:
    """Raise for the first similarity that is not a finite number.

    Raises:
        GranAlignError: an embedding holds NaN or infinity; the message names video, query and clip.
    """
    wrong = ~np.isfinite(curves.fused)
    if wrong.any():
        position = int(wrong.argmax())
        pair = int(np.searchsorted(curves.offsets, position, side="right")) - 1
        query = batch[pair]
        raise GranAlignError(
            f"video {query.index.video.vid!r}, query {query.rewrites.query!r}: the similarity of "
            f"clip {position - curves.offsets[pair]} is not a number: an embedding holds NaN or "
            "infinity; embed the captions and the query again"
        )
