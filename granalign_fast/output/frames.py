"""Frames of an indexed video for pictures: one of each moment, and some from the whole video."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as Pillow

from granalign_fast.index import VideoIndex
from granalign_fast.search.key_frames import frame_set
from granalign_fast.types import Image, Moment, SearchResult

from .tables import peak_clip


def moment_frames(
    index: VideoIndex, result: SearchResult, moments: Sequence[Moment]
) -> list[Image]:
    """Return a frame of each moment: that of its clip with the highest saliency.

    Args:
        index: the video that was searched.
        result: the result of the search.
        moments: the moments, such as ``result.distinct()``.

    Returns:
        For each moment an image, uint8 RGB (height, width, 3).

    Raises:
        GranAlignError: the index has captions alone, or the video file is gone.
    """
    return clip_frames(index, [peak_clip(index, result, moment) for moment in moments])


def clip_frames(index: VideoIndex, clips: Sequence[int]) -> list[Image]:
    """Return a frame of each of some clips, in any order; each clip is read once.

    Of a clip of several frames it is the one at `FrameTable.pictured_at`.

    Raises:
        GranAlignError: as `moment_frames`.
    """
    distinct = sorted(set(clips))
    loaded = frame_set(index).load(distinct) if clips else ()
    if index.frames is not None and index.frames.frames_per_clip > 1:
        loaded = [images[index.frames.pictured] for images in loaded]
    pictures = dict(zip(distinct, loaded, strict=True))
    return [pictures[clip] for clip in clips]


def fitted(image: Image, width: int, height: int) -> Pillow.Image:
    """Return an image as large as fits into `width` x `height` pixels, of at least one each."""
    picture = Pillow.fromarray(image)
    scale = min(max(1, width) / picture.width, max(1, height) / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Pillow.Resampling.LANCZOS)
