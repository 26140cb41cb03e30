"""The frames of a video in a search: which are key, what they show, whether they show the query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.protocols import (
    BatchCaptioner,
    BatchRecogniser,
    Captioner,
    ImageTextEncoder,
    Recogniser,
)
from granalign_fast.types import FrameSet, Image, Rewrites


def frame_set(index: VideoIndex) -> FrameSet:
    """Return the frames of the clips of an indexed video; they are decoded when they are loaded.

    Raises:
        GranAlignError: the index has captions alone; on loading, the video file is gone or
            another one.
    """
    table = index.frames
    if table is None:
        raise GranAlignError(
            f"video {index.video.vid!r}: got an index of captions alone, expected one of a video "
            f"file; make it with `granalign index`"
        )

    def load(clips: Sequence[int]) -> list[Image]:
        if table.source is None:
            raise GranAlignError(
                f"video {index.video.vid!r}: its frames are needed, and its index names no video "
                f"file; index the file"
            )
        try:
            address = table.source.address()
            path = table.source.path if address else table.source.check()
        except GranAlignError as error:
            raise GranAlignError(
                f"video {index.video.vid!r}: its frames are needed; {error}"
            ) from None
        # In the file the clips of a part of an index have other numbers.
        numbers = [table.first + clip for clip in clips]
        if address is not None:
            from granalign_fast.video.remote_frames import read_remote_clips

            return read_remote_clips(
                address,
                numbers,
                times=[table.times_of(clip) for clip in clips],
                hashes=[table.hashes[clip] for clip in clips],
                sha256=table.source.sha256,
                clip_seconds=index.video.clip_seconds,
            )
        from granalign_fast.video.frames import read_clips

        return read_clips(
            path,
            numbers,
            clip_seconds=index.video.clip_seconds,
            frames_per_clip=table.frames_per_clip,
        )

    return FrameSet(table.hashes, load, table.frames_per_clip, index.frame_seconds)


def frame_embeddings(index: VideoIndex, frame_encoder: ImageTextEncoder) -> npt.NDArray[Any]:
    """Return the frame embeddings of an indexed video, `(clips, dim)`, rows of unit length.

    Raises:
        GranAlignError: the index has none, or those of another model.
    """
    if index.frames is None:
        raise GranAlignError(
            f"video {index.video.vid!r}: got an index of captions alone, expected one of a video "
            f"file; make it with `granalign index`"
        )
    embeddings = index.frames.embeddings
    fingerprint = None if embeddings is None else index.models.get("clip")
    if embeddings is None or fingerprint != frame_encoder.fingerprint:
        raise GranAlignError(
            f"video {index.video.vid!r}: got frames embedded by {fingerprint}, expected "
            f"{frame_encoder.fingerprint}; index it with this model"
        )
    return embeddings


def key_frames(
    index: VideoIndex,
    query: npt.NDArray[np.float32],
    frames: npt.NDArray[np.floating],
    share: float,
) -> list[int]:
    """Return the clips whose frames are nearest to the query, in order of time.

    Args:
        index: of the video.
        query: embedding `(dim,)`, unit length.
        frames: embeddings of the clips, `(clips, dim)`, in the same space.
        share: how many of the clips, above 0 and at most 1; rounded up. Of two equally near clips
            the earlier one is taken.

    Raises:
        GranAlignError: the embeddings are of different models.
    """
    if frames.shape[1] != query.shape[0]:
        raise GranAlignError(
            f"video {index.video.vid!r}: got embeddings of {frames.shape[1]} numbers, expected "
            f"{query.shape[0]} as in the query's; index the video with this model"
        )
    count = max(1, math.ceil(share * len(frames)))
    order = np.argsort(-(frames.astype(np.float32) @ query), kind="stable")
    return sorted(order[:count].tolist())


def aware_captions(
    captioner: Captioner, targets: Sequence[tuple[VideoIndex, Sequence[int], Rewrites]]
) -> list[dict[int, str]]:
    """Caption key frames with a query in mind.

    Args:
        captioner: writes the captions; a `BatchCaptioner` is called once for all targets.
        targets: each a video, the clips whose frames are captioned, and the query.

    Returns:
        The captions of each target by clip number, without those that are empty.
    """
    # The focus of a caption: what the query names, or else the query itself.
    prompts = [
        (frame_set(index).take(clips), query.entities + query.actions or (query.query,))
        for index, clips, query in targets
    ]
    if isinstance(captioner, BatchCaptioner):
        captions = captioner.aware_many(prompts)
    else:
        captions = [captioner.aware(frames, focus) for frames, focus in prompts]
    return [
        {clip: text for clip, text in zip(clips, texts, strict=True) if text.strip()}
        for (_, clips, _), texts in zip(targets, captions, strict=True)
    ]


def equivalent_phrasings(query: Rewrites) -> tuple[str, ...]:
    """Return the query and its detailed rewrites; recognition averages over them.

    Simplified rewrites leave details out: they are true of more frames than the query is.
    """
    return tuple(dict.fromkeys((query.query, *query.detailed)))


def probabilities(
    recogniser: Recogniser, targets: Sequence[tuple[FrameSet, Sequence[str]]]
) -> list[npt.NDArray[np.float32]]:
    """Return how likely each clip of each target shows each of its queries.

    Args:
        recogniser: a `BatchRecogniser` is called once for all targets.
        targets: clips, and queries about each of them.

    Returns:
        For each target `(queries, clips)`, 0 to 1.
    """
    if isinstance(recogniser, BatchRecogniser):
        return recogniser.recognise_many(targets)
    return [recogniser.recognise(frames, queries) for frames, queries in targets]


def existence(
    recogniser: Recogniser,
    targets: Sequence[tuple[VideoIndex, Sequence[int], Rewrites]],
    frames: int,
) -> list[float]:
    """Return how likely each video shows its query at all, 0 to 1, judged by its key frames.

    Args:
        recogniser: judges the frames.
        targets: each a video, its key frames, and the query, of which all equivalent phrasings are
            judged.
        frames: a result is the mean of so many frames, those with the greatest probability.
    """
    found = probabilities(
        recogniser,
        [
            (frame_set(index).take(clips), equivalent_phrasings(query))
            for index, clips, query in targets
        ],
    )
    return [mean_of_greatest(some.mean(axis=0), frames) for some in found]


def mean_of_greatest(values: npt.NDArray[np.float32], count: int) -> float:
    """Return the mean of the `count` greatest values, or of all if there are fewer."""
    return float(np.sort(values)[-count:].mean())
