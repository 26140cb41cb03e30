"""Find the video file of an index where its owner says that it is, and not where the index says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from granalign_fast.errors import GranAlignError

from .records import VideoSource
from .video_index import VideoIndex


def with_media(index: VideoIndex, media: str | os.PathLike[str]) -> VideoIndex:
    """Return an index whose video file is the one that is named, after a look at its content.

    Args:
        index: of a video.
        media: the file, or a folder in which it lies at the end of its path in the index: the file
            ``/old/disk/trip/a.mp4`` is ``trip/a.mp4`` or ``a.mp4`` in the folder.

    Raises:
        GranAlignError: the index has captions alone, or no such file has the content that was
            indexed.
    """
    frames = index.frames
    if frames is None or frames.source is None:
        raise GranAlignError(
            f"{media}: got an index without a video file, expected one of a video; leave the "
            f"media out"
        )
    path = find_media(frames.source, Path(media))
    return replace(index, frames=replace(frames, source=replace(frames.source, path=path)))


def find_media(source: VideoSource, media: Path) -> Path:
    """Return the absolute path of the indexed file: the one that is named, or one in a folder.

    Raises:
        GranAlignError: as for `with_media`.
    """
    media = media.absolute()
    if not media.is_dir():
        return source.check(media)
    parts = source.path.parts[1:]
    for start in range(len(parts)):
        path = media.joinpath(*parts[start:])
        # The index names the path: it must not lead out of the folder.
        if ".." in parts[start:] or not path.is_file():
            continue
        try:
            return source.check(path)
        except GranAlignError:  # another file of that name
            continue
    raise GranAlignError(
        f"{media}: got no file {source.path.name!r} with the content that was indexed, expected "
        f"one of {source.bytes:,} bytes; name the file itself, or another folder"
    )
