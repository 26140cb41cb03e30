"""Find the video file of an index where its owner says that it is, and not where the index says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.storage import Address
from granalign_fast.storage.address import address_of, path_text

from .records import VideoSource
from .video_index import VideoIndex


def with_media(index: VideoIndex, media: str | os.PathLike[str]) -> VideoIndex:
    """Return an index whose video file is the one that is named, after a look at its content.

    Args:
        index: of a video.
        media: the file, or a folder in which it lies at the end of its path in the index: the file
            ``/old/disk/trip/a.mp4`` is ``trip/a.mp4`` or ``a.mp4`` in the folder. Or an address in
            an object store, at or below which the index says that its file is. Nothing is asked of
            the store yet: each frame is compared with its hash when it is read.

    Raises:
        GranAlignError: the index has captions alone, no such file has the content that was indexed,
            or the index names another address.
    """
    frames = index.frames
    if frames is None or frames.source is None:
        raise GranAlignError(
            f"{media}: got an index without a video file, expected one of a video; leave the "
            f"media out"
        )
    if (address := Address.find(media)) is not None:
        named = with_store(index, address)
        if not _is_below(frames.source, address):
            raise GranAlignError(
                f"{address}: got an index of {path_text(frames.source.path)}, expected one of a "
                f"video there; name another place"
            )
        return named
    path = find_media(frames.source, Path(media))
    return replace(index, frames=replace(frames, source=replace(frames.source, path=path)))


def with_store(index: VideoIndex, place: Address) -> VideoIndex:
    """Return an index whose video may be read from the bucket of an address, which the user named.

    An index of a video in another place is returned as it is.
    """
    frames = index.frames
    if frames is None or frames.source is None:
        return index
    if not _is_below(frames.source, replace(place, path=place.bucket)):
        return index
    return replace(index, frames=replace(frames, source=replace(frames.source, store=place)))


def _is_below(source: VideoSource, place: Address) -> bool:
    address = address_of(source.path)
    return address is not None and address.is_below(place)


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
