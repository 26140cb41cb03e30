"""Requests as the kernels take them: texts to rows, videos to ragged batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.kernels import Curves
from granalign_fast.types import Rewrites


@dataclass(frozen=True, slots=True)
class Question:
    """A request with all that the kernels compare: rewritten, its key frames captioned."""

    index: VideoIndex
    query: Rewrites
    aware: Mapping[int, str]


Variants = tuple[tuple[str, ...], tuple[str, ...]]


def variants(query: Rewrites, config: RetrieverConfig) -> Variants:
    """Simplified and detailed texts; the query too where it is asked for or is all there is."""
    own = (query.query,)
    if not query.simplified and not query.detailed:
        return own, ()
    return (own if config.use_query else ()) + query.simplified, query.detailed


def alike(asked: Sequence[Variants]) -> Iterator[list[int]]:
    """Requests with equally many variants of each granularity: such a batch is an array."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (simplified, detailed) in enumerate(asked):
        groups.setdefault((len(simplified), len(detailed)), []).append(i)
    yield from groups.values()


def videos_of(
    batch: Sequence[Question], dim: int
) -> tuple[list[VideoIndex], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every video once, where the clips of each begin, and the video of each request.

    Raises:
        GranAlignError: a video was indexed with another encoder.
    """
    number: dict[int, int] = {}
    indices: list[VideoIndex] = []
    videos = np.empty(len(batch), np.int64)
    for i, request in enumerate(batch):
        index = request.index
        if index.embeddings.shape[1] != dim:
            raise GranAlignError(
                f"video {index.video.vid!r}: embeddings of {index.embeddings.shape[1]} numbers, "
                f"expected {dim} as of the query: index it with this encoder"
            )
        if id(index) not in number:
            number[id(index)] = len(indices)
            indices.append(index)
        videos[i] = number[id(index)]
    offsets = np.cumsum([0, *(len(index.embeddings) for index in indices)])
    return indices, offsets, videos


def pack(
    batch: Sequence[Question], dim: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every video's embeddings once, where each begins, and the video of each request.

    Raises:
        GranAlignError: a video was indexed with another encoder.
    """
    indices, offsets, videos = videos_of(batch, dim)
    parts = [index.embeddings for index in indices]
    agnostic = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.ascontiguousarray(agnostic, dtype=np.float32), offsets, videos


def rows_of(row: Mapping[str, int], texts: Sequence[tuple[str, ...]]) -> npt.NDArray[np.int64]:
    """`(requests, variants)`: where each text's embedding is."""
    rows = np.array([[row[text] for text in variant] for variant in texts], dtype=np.int64)
    return rows.reshape(len(texts), -1)


def aware_rows(batch: Sequence[Question], row: Mapping[str, int]) -> npt.NDArray[np.int32] | None:
    """For each clip of each request the row of its aware caption, or -1; None if nobody has any.

    Raises:
        GranAlignError: a caption names no clip.
    """
    if not any(request.aware for request in batch):
        return None
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
    return np.concatenate(rows)


def check_finite(batch: Sequence[Question], curves: Curves) -> None:
    """Raise for the first similarity that is not a number.

    Raises:
        GranAlignError: an embedding holds NaN or infinity.
    """
    wrong = ~np.isfinite(curves.fused)
    if wrong.any():
        at = int(wrong.argmax())
        pair = int(np.searchsorted(curves.offsets, at, side="right")) - 1
        raise GranAlignError(
            f"video {batch[pair].index.video.vid!r}, query {batch[pair].query.query!r}: the "
            f"similarity of clip {at - curves.offsets[pair]} is not a number: an embedding holds "
            "NaN or infinity; embed the captions and the query again"
        )
