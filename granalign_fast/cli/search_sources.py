"""The source of `granalign search`: an index, captions, or a video that is indexed now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from granalign_fast.errors import GranAlignError
from granalign_fast.storage import Address

from .index import index_progress

if TYPE_CHECKING:
    from granalign_fast.config import RetrieverConfig
    from granalign_fast.index import CaptionedVideo, VideoIndex
    from granalign_fast.pipeline import ModelFolder


_CAPTIONS = (".jsonl", ".ndjson", ".json")


def holds_captions(source: Path) -> bool:
    """Return whether a file is one of captions, by its name in upper or lower case."""
    return source.name.lower().removesuffix(".gz").endswith(_CAPTIONS)


def check_source(source: Path) -> None:
    """Raise unless there is such a file or folder; an object store is asked when it is opened."""
    if Address.find(source) is not None:
        return
    from granalign_fast.index.walk import check_is_file_name

    if not holds_captions(source):
        check_is_file_name(source)
    if not source.exists():
        raise GranAlignError(
            f"{source}: no such file or folder; expected an index, a video or captions"
        )


def fetch_source(source: Path, vid: str | None) -> tuple[Path, str | None]:
    """Return a local copy of an index in an object store, and no name; other sources as they are.

    Args:
        source: of the search.
        vid: the name of one of its videos, or None for all of them.

    Raises:
        GranAlignError: the store cannot be read, or has no such video.
    """
    if (address := Address.find(source)) is None:
        return source, vid
    from granalign_fast.library.remote import fetch_index

    folder = fetch_index(address, vid)
    return (source, vid) if folder is None else (folder, None)


def load_index(folder: Path, vid: str | None) -> VideoIndex:
    """Read an index, or the index of a video in a folder of indexes.

    Raises:
        GranAlignError: there is no such index, it is damaged, or it is that of another video.
    """
    from granalign_fast.index import VideoIndex
    from granalign_fast.index.manifest import MANIFEST
    from granalign_fast.index.naming import find_index

    if not (folder / MANIFEST).exists():
        return VideoIndex.load(find_index(folder, vid))
    index = VideoIndex.load(folder)
    _check_name(folder, None if index.frames is None else index.frames.path, index.video.vid, vid)
    return index


def read_captioned(source: Path, vid: str | None) -> CaptionedVideo:
    """Read the captions of a video.

    Raises:
        GranAlignError: the file is damaged, has no such video, or has several and none is named.
    """
    from granalign_fast.datasets import read_captions

    videos = read_captions(source)
    if vid is None and len(videos) > 1:
        raise GranAlignError(
            f"{source}: holds {len(videos)} videos; name one with --vid, such as "
            f"{next(iter(videos))!r}"
        )
    video = videos.get(vid if vid is not None else next(iter(videos)))
    if video is None:
        raise GranAlignError(
            f"{source}: has no video {vid!r}; expected one of its {len(videos)}, such as "
            f"{next(iter(videos))!r}"
        )
    return video


def check_video_source(source: Path, vid: str | None, models: ModelFolder | None) -> None:
    """Raise before any work unless this is the video that is named, and models can index it."""
    from granalign_fast.index.naming import video_name

    _check_name(source, source.absolute(), video_name(source), vid)
    if models is None:
        raise GranAlignError(
            f"{source}: got a video and no models, expected --models DIR with a "
            f"vision-language model or a frame encoder, or --vlm-url; or give captions as .jsonl"
        )


def index_video(
    source: Path, models: ModelFolder, config: RetrieverConfig, *, hidden: bool
) -> VideoIndex:
    """Index a video for this search, and for the next ones; show progress unless `hidden`.

    It is indexed in clips for which the configuration is made.
    """
    from granalign_fast.index import CLIP_SECONDS
    from granalign_fast.index.once import index_once

    with index_progress(hidden=hidden) as (progress, reading):
        return index_once(
            source,
            models,
            clip_seconds=config.clip_seconds or CLIP_SECONDS,
            frames_per_clip=config.frames_per_clip or 1,
            progress=progress,
            reading=reading,
        )


def choose_preset(
    source: Path, index: VideoIndex, named: str | None, *, captions_only: bool
) -> str:
    """Return the preset of a search: the one that is named, or the one that suits the index.

    Raises:
        GranAlignError: captions are to be compared, and the index has none.
    """
    from granalign_fast.config import resolve_config

    if index.video.captions is not None:
        return "tuned" if named is None else named
    if captions_only:
        raise GranAlignError(
            f"{source}: got an index without captions, expected captions; leave --captions-only out"
        )
    if named is not None and resolve_config(named).scorer == "captions":
        raise GranAlignError(
            f"{source}: got an index without captions, which the preset {named!r} compares; leave "
            f"--preset out to search by frames, or add captions: granalign index VIDEO --out DIR "
            f"--models DIR with a vision-language model"
        )
    return "visual" if named is None else named


def _check_name(source: Path, path: Path | None, vid: str, name: str | None) -> None:
    """Raise if a name is not that of the only video there is."""
    from granalign_fast.index.naming import is_named

    if name is not None and not is_named(path, vid, name):
        of = f" of {path}" if path is not None and path != source.absolute() else ""
        raise GranAlignError(
            f"--vid {name}: got {source}, which is the video {vid!r}{of}; leave --vid out, or name "
            f"a folder of indexes"
        )
