"""Check the video files of a request, and which of them already have an up-to-date index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.video.container import ffmpeg_reason
from granalign_fast.video.frames import VideoInfo, probe

from .manifest import read_manifest_record
from .records import VideoSource
from .video_index import VideoIndex
from .work_folder import WorkFolder


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video file to index."""

    vid: str
    source: VideoSource
    info: VideoInfo
    modified_ns: int
    """The file's modification time in nanoseconds, taken before the file was read."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object that identifies the file in the request of a run."""
        source = self.source
        return {"path": str(source.path), "bytes": source.bytes, "sha256": source.sha256}

    def check_unchanged(self) -> None:
        """Check that the file is still the one that was probed and hashed.

        Raises:
            GranAlignError: the file has changed or is gone.
        """
        path = self.source.path
        status = _stat(path)
        if (status.st_size, status.st_mtime_ns) != (self.source.bytes, self.modified_ns):
            raise GranAlignError(f"{path}: changed while it was being indexed; index it again")


def inspect_videos(
    videos: Sequence[str | os.PathLike[str]], clip_seconds: float
) -> list[VideoFile]:
    """Probe and hash every file. A video's id is the file's name without suffix.

    Raises:
        GranAlignError: `videos` is empty, a file is not a video, two files have the same name, or
            a name cannot be that of a folder.
    """
    if isinstance(videos, str | os.PathLike):
        raise GranAlignError(f"videos: got {videos!r}, expected a list; pass one as [video]")
    paths = [Path(video).absolute() for video in videos]
    if not paths:
        raise GranAlignError("videos: got none, expected at least one file")
    # 1. Names: each becomes the name of an index folder.
    by_name: dict[str, Path] = {}
    for path in paths:
        if path.stem.startswith(".") or not path.stem.isprintable() or not path.stem:
            raise GranAlignError(
                f"{path}: its name cannot be that of its index: got {path.stem!r}, expected "
                f"printable characters, the first no dot; rename the file"
            )
        if (other := by_name.setdefault(path.stem, path)) is not path:
            raise GranAlignError(
                f"{path}: got the name {path.stem!r} twice, also of {other}; rename one, or index "
                f"them into different folders"
            )
    # 2. Probe all files before hashing any: a file that is not a video is reported soon.
    probed = [(_stat(path), probe(path, clip_seconds=clip_seconds)) for path in paths]
    # 3. Hash the files, which reads each of them completely.
    return [
        VideoFile(
            path.stem,
            VideoSource(path, status.st_size, sha256_of(path)),
            info,
            status.st_mtime_ns,
        )
        for path, (status, info) in zip(paths, probed, strict=True)
    ]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise GranAlignError(f"{path}: cannot be read ({ffmpeg_reason(error)})") from None


def count_indexed_clips(
    videos: Sequence[VideoFile],
    work: WorkFolder,
    fingerprints: Mapping[str, str],
    clip_seconds: float,
) -> dict[str, int]:
    """Return, by video id, the clip count of every video that has an up-to-date index.

    An index is up to date if the file's content, the models' fingerprints and `clip_seconds` are
    the same. If only the file's path has changed, the new path is written to the index.

    Raises:
        GranAlignError: the folder of an index holds something that is not the index of a video.
    """
    counts = {}
    for video in videos:
        folder = work.out / video.vid
        if not folder.exists():
            continue
        # A folder that is not the index of a video is never overwritten.
        try:
            record = read_manifest_record(folder).get("source")
        except GranAlignError as error:
            raise GranAlignError(
                f"{folder}: got something else, expected the index of a video or nothing; move it "
                f"away, or index into another folder ({error})"
            ) from None
        if record is None:
            raise GranAlignError(
                f"{folder}: got an index of captions without a video file, expected one of a "
                f"video; move it away, or index into another folder"
            )
        try:
            index = VideoIndex.load(folder)
        except GranAlignError:  # torn, or of another format: the video is indexed again
            continue
        source = None if index.frames is None else index.frames.source
        if (
            source is not None
            and (source.bytes, source.sha256) == (video.source.bytes, video.source.sha256)
            and dict(index.models) == dict(fingerprints)
            and index.video.clip_seconds == clip_seconds
        ):
            counts[video.vid] = len(index.video.captions)
            if source.path != video.source.path:
                work.update_source(video.vid, video.source)
    return counts
