"""The video files that are to be indexed, and the indexes they have: checked before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.video.container import short
from granalign_fast.video.frames import VideoInfo, probe

from .manifest import read_record
from .records import VideoSource
from .video_index import VideoIndex
from .work_folder import WorkFolder


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file to index."""

    vid: str
    source: VideoSource
    info: VideoInfo
    changed: int
    """When, in nanoseconds, before it was looked at."""

    def record(self) -> dict[str, Any]:
        """What names it in the request of a run, as JSON."""
        source = self.source
        return {"path": str(source.path), "bytes": source.bytes, "sha256": source.sha256}

    def check_unchanged(self) -> None:
        """Raise if the file is not the one that was probed and hashed.

        Raises:
            GranAlignError: it has changed, or is gone.
        """
        path = self.source.path
        status = _status(path)
        if (status.st_size, status.st_mtime_ns) != (self.source.bytes, self.changed):
            raise GranAlignError(f"{path}: changed while it was being indexed; index it again")


def examine(videos: Sequence[str | os.PathLike[str]], clip_seconds: float) -> list[VideoFile]:
    """Probe and hash every file; each index will have the file's name without suffix.

    Raises:
        GranAlignError: there is none, one is no video, or a name is twice there or cannot be used.
    """
    if isinstance(videos, str | os.PathLike):
        raise GranAlignError(f"videos: got {videos!r}, expected a list; pass one as [video]")
    paths = [Path(video).absolute() for video in videos]
    if not paths:
        raise GranAlignError("videos: got none, expected at least one file")
    first: dict[str, Path] = {}
    for path in paths:
        if path.stem.startswith(".") or not path.stem.isprintable() or not path.stem:
            raise GranAlignError(
                f"{path}: its name cannot be that of its index: got {path.stem!r}, expected "
                f"printable characters, the first no dot; rename the file"
            )
        if (other := first.setdefault(path.stem, path)) is not path:
            raise GranAlignError(
                f"{path}: got the name {path.stem!r} twice, as of {other}; rename one, or index "
                f"them into different folders"
            )
    # All before the first is read whole: what is no video is found soon.
    probed = [(_status(path), probe(path, clip_seconds=clip_seconds)) for path in paths]
    return [
        VideoFile(
            path.stem,
            VideoSource(path, status.st_size, sha256_of(path)),
            info,
            status.st_mtime_ns,
        )
        for path, (status, info) in zip(paths, probed, strict=True)
    ]


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # the latter of a null character
        raise GranAlignError(f"{path}: cannot be read ({short(error)})") from None


def finished(
    videos: Sequence[VideoFile], work: WorkFolder, models: Mapping[str, str], clip_seconds: float
) -> dict[str, int]:
    """The clips of every video that has an index of its present content by these models.

    Raises:
        GranAlignError: something else lies in the place of an index.
    """
    clips = {}
    for video in videos:
        folder = work.out / video.vid
        if not folder.exists():
            continue
        try:
            source = read_record(folder).get("source")
        except GranAlignError as error:
            raise GranAlignError(
                f"{folder}: got something else, expected the index of a video or nothing; move it "
                f"away, or index into another folder ({error})"
            ) from None
        if source is None:
            raise GranAlignError(
                f"{folder}: got an index of captions that were given, expected one of a video; "
                f"move it away, or index into another folder"
            )
        try:
            index = VideoIndex.load(folder)
        except GranAlignError:  # torn, or of another format: it is made again
            continue
        found = None if index.frames is None else index.frames.source
        if (
            found is not None
            and (found.bytes, found.sha256) == (video.source.bytes, video.source.sha256)
            and dict(index.models) == dict(models)
            and index.video.clip_seconds == clip_seconds
        ):
            clips[video.vid] = len(index.video.captions)
            if found.path != video.source.path:
                work.relocate(video.vid, video.source)
    return clips
