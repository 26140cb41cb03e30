"""Turn frames and what models say of them into rows, and the rows of a video into its index.

Every way to make an index goes through these functions: on this machine and on many.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.storage.address import path_text
from granalign_fast.video.frames import Frame

from .models import Descriptions
from .records import CaptionedVideo, FrameTable, IndexedVideo, UncaptionedVideo, VideoSource
from .video_index import VideoIndex
from .work_folder import ClipRows


def clips_in_batch(rows: int, frames_per_clip: int) -> int:
    """Return the number of clips in a batch of `rows` frames, at least one."""
    return max(1, rows // frames_per_clip)


def clip_rows(frames: Sequence[Frame], hashes: Sequence[str], described: Descriptions) -> ClipRows:
    """Return the rows of consecutive frames of one video.

    Args:
        frames: the frames, at least one.
        hashes: of each frame, by `granalign_fast.types.frame_hash`.
        described: what the models say of these frames.
    """
    return ClipRows(
        first=frames[0].clip,
        times=np.array([frame.time for frame in frames], np.float64),
        hashes=tuple(hashes),
        captions=described.captions,
        embeddings=described.embeddings,
        frame_embeddings=described.frame_embeddings,
        missing=np.array([frame.missing for frame in frames], np.bool_),
        later=np.array([frame.later for frame in frames], np.float64) if frames[0].later else None,
    )


def join_rows(
    parts: Sequence[ClipRows],
    vid: str,
    source: VideoSource,
    *,
    duration: float,
    clip_seconds: float,
    fingerprints: Mapping[str, str],
) -> VideoIndex:
    """Return the index of a video from the rows of all its clips.

    Args:
        parts: the rows in order, from clip 0 without a gap.
        vid: id of the video.
        source: its file.
        duration: in seconds, as `probe` says. A damaged header may announce a duration that is
            shorter than the video: it is dropped.
        clip_seconds: length of a clip in seconds.
        fingerprints: of the models that made the rows, by kind.

    Raises:
        GranAlignError: the parts hold embeddings of different types.
    """
    path, clips = source.path, parts[-1].end
    lengths = clip_seconds, duration if duration > (clips - 1) * clip_seconds else None
    described: IndexedVideo = UncaptionedVideo(vid, clips, *lengths)
    if parts[0].captions is not None:
        captions = itertools.chain.from_iterable(part.captions or () for part in parts)
        described = CaptionedVideo(vid, tuple(captions), *lengths)
    return VideoIndex(
        described,
        concatenate([part.embeddings for part in parts], path),
        FrameTable(
            np.concatenate([part.times for part in parts]),
            tuple(itertools.chain.from_iterable(part.hashes for part in parts)),
            concatenate([part.frame_embeddings for part in parts], path),
            source,
            stretches(np.concatenate([part.missing for part in parts]), clip_seconds),
            later=concatenate([part.later for part in parts], path),
        ),
        dict(fingerprints),
    )


def stretches(
    missing: npt.NDArray[np.bool_], clip_seconds: float
) -> tuple[tuple[float, float], ...]:
    """Return the stretches of clips, in seconds, whose picture is missing."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]]).astype(np.int8)))
    return tuple(
        (float(begin * clip_seconds), float(end * clip_seconds))
        for begin, end in edges.reshape(-1, 2).tolist()
    )


def concatenate(parts: Iterable[npt.NDArray[Any] | None], path: Path) -> npt.NDArray[Any] | None:
    """Join the embeddings of batches along their rows; None if no batch has any.

    Raises:
        GranAlignError: their widths or types differ; the message names the video's `path`.
    """
    arrays = [part for part in parts if part is not None]
    if not arrays:
        return None
    types = {(array.shape[1:], array.dtype) for array in arrays}
    if len(types) != 1:
        raise GranAlignError(
            f"{path_text(path)}: got embeddings of {len(types)} types, expected one: a model "
            f"changed under the same fingerprint; delete the folder .indexing and index again"
        )
    return np.concatenate(arrays)
