"""What a search asks of a video's frames: which are key, what they show, whether it is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.protocols import BatchCaptioner, Captioner, ImageTextEncoder, Recogniser
from granalign_fast.types import FrameSet, Image, Rewrites


def frame_set(index: VideoIndex) -> FrameSet:
    """The frames of an indexed video, which are decoded only where that is needed.

    Raises:
        GranAlignError: the index has captions alone; on loading, the video file is gone.
    """
    table = index.frames
    if table is None:
        raise GranAlignError(
            f"video {index.video.vid!r}: got an index of captions alone, expected one of a video "
            f"file; make it with `granalign index`"
        )

    def load(clips: Sequence[int]) -> list[Image]:
        if table.path is None or not table.path.is_file():
            raise GranAlignError(
                f"video {index.video.vid!r}: its frames are needed, and {table.path} is not there; "
                f"put the file back, or index it where it is now"
            )
        from granalign_fast.video.frames import read_clips

        return read_clips(table.path, clips, clip_seconds=index.video.clip_seconds)

    return FrameSet(table.hashes, load)


def frame_embeddings(index: VideoIndex, frame_encoder: ImageTextEncoder) -> npt.NDArray[Any]:
    """What this model made of the video's frames, (clips, dim).

    Raises:
        GranAlignError: the index has none, or another model's.
    """
    embeddings = None if index.frames is None else index.frames.embeddings
    made_by = index.models.get("clip")
    if embeddings is None or made_by != frame_encoder.fingerprint:
        raise GranAlignError(
            f"video {index.video.vid!r}: got frames embedded by {made_by}, expected "
            f"{frame_encoder.fingerprint}; index it with this model"
        )
    return embeddings


def key_frames(
    index: VideoIndex,
    query: npt.NDArray[np.float32],
    frames: npt.NDArray[np.floating],
    share: float,
) -> list[int]:
    """The clips whose frames are nearest to the query, in order of time.

    Args:
        index: of the video.
        query: embedding (dim,), unit length.
        frames: of the clips, (clips, dim), in the same space.
        share: of the clips, at least one; the earlier of two equally near ones is taken.

    Raises:
        GranAlignError: the embeddings are of different models.
    """
    if frames.shape[1] != query.shape[0]:
        raise GranAlignError(
            f"video {index.video.vid!r}: embeddings of {frames.shape[1]} numbers, expected "
            f"{query.shape[0]} as of the query: index it with this model"
        )
    count = max(1, math.ceil(share * len(frames)))
    order = np.argsort(-(frames.astype(np.float32) @ query), kind="stable")
    return sorted(order[:count].tolist())


def aware_captions(
    captioner: Captioner, asked: Sequence[tuple[VideoIndex, Sequence[int], Rewrites]]
) -> list[dict[int, str]]:
    """Captions of these clips, guided by what the query is about; empty ones are left out."""
    sets = [
        (frame_set(index).take(clips), query.entities + query.actions or (query.query,))
        for index, clips, query in asked
    ]
    if isinstance(captioner, BatchCaptioner):
        found = captioner.aware_many(sets)
    else:
        found = [captioner.aware(frames, focus) for frames, focus in sets]
    return [
        {clip: text for clip, text in zip(clips, captions, strict=True) if text.strip()}
        for (_, clips, _), captions in zip(asked, found, strict=True)
    ]


def ways_to_ask(query: Rewrites) -> tuple[str, ...]:
    """The query and its detailed rewrites: what says the same, of which recognition takes the mean.

    Simplified rewrites leave details out, and would be true of more than was asked for.
    """
    return tuple(dict.fromkeys((query.query, *query.detailed)))


def existence(
    recogniser: Recogniser, index: VideoIndex, clips: Sequence[int], query: Rewrites, frames: int
) -> float:
    """How likely the video shows the query at all, judged by its key frames, 0 to 1."""
    found = recogniser.recognise(frame_set(index).take(clips), ways_to_ask(query))
    return mean_of_greatest(found.mean(axis=0), frames)


def mean_of_greatest(values: npt.NDArray[np.float32], count: int) -> float:
    """The mean of the `count` greatest values, or of all if there are fewer."""
    return float(np.sort(values)[-count:].mean())
