"""Check the video files of a request, and which of them already have an up-to-date index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.files import remember_sha256, sha256_of
from granalign_fast.video.container import ffmpeg_reason
from granalign_fast.video.frames import VideoInfo, check_clip_seconds, probe

from .known_files import KnownFiles
from .manifest import read_manifest_record
from .models import IndexModels
from .naming import assign_ids, video_name
from .records import VideoSource
from .video_index import VideoIndex
from .walk import OnError, check_is_file_name
from .work_folder import WorkFolder

Reading = Callable[[int, int], None]
"""Called with the number of bytes that were read, and the number of all bytes to read."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video file to index."""

    vid: str
    """Its name, until `name_videos` gives it the id of its index."""
    source: VideoSource
    info: VideoInfo | None
    """None until `probe_unindexed`, if the file was known."""
    modified_ns: int
    """The file's modification time in nanoseconds, taken before the file was read."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object that identifies the file in the request of a run."""
        source = self.source
        return {
            "vid": self.vid,
            "path": str(source.path),
            "bytes": source.bytes,
            "sha256": source.sha256,
        }

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
    videos: Sequence[str | os.PathLike[str]],
    clip_seconds: float,
    known: KnownFiles,
    on_error: OnError | None = None,
    reading: Reading | None = None,
) -> list[VideoFile]:
    """Probe and hash every file that is not known, each once.

    Args:
        videos: paths of the files.
        clip_seconds: length of a clip in seconds.
        known: the files that need not be read; the others are added.
        on_error: as for `index_videos`.
        reading: as for `index_videos`.

    Raises:
        GranAlignError: `videos` is empty; without `on_error`, also if a file is not a video.
    """
    if isinstance(videos, str | os.PathLike):
        raise GranAlignError(f"videos: got {videos!r}, expected a list; pass one as [video]")
    if not videos:
        raise GranAlignError("videos: got none, expected at least one file")
    check_clip_seconds(clip_seconds)
    # 1. Names: a URL or a pipe is no file. A file that is named twice is one video.
    paths: dict[Path, None] = {}
    for video in videos:
        with reporting(Path(video), on_error):
            check_is_file_name(video)
            paths[Path(video).absolute()] = None
    # 2. Probe all files before hashing any: a file that is not a video is reported soon.
    probed: list[tuple[Path, os.stat_result, str | None, VideoInfo | None]] = []
    for path in paths:
        with reporting(path, on_error):
            status = _stat(path)
            sha256 = known.sha256(path, status)
            info = None if sha256 else probe(path, clip_seconds=clip_seconds)
            probed.append((path, status, sha256, info))
    # 3. Hash the files, which reads each of them completely.
    total = sum(status.st_size for _, status, sha256, _ in probed if sha256 is None)
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if reading is not None:
            reading(done, max(done, total))

    files: list[VideoFile] = []
    for path, status, sha256, info in probed:
        with reporting(path, on_error):
            if sha256 is None:
                sha256 = sha256_of(path, advance)
                known.add(path, status, sha256)
                remember_sha256(path, sha256)
            source = VideoSource(path, status.st_size, sha256)
            files.append(VideoFile(video_name(path), source, info, status.st_mtime_ns))
    return files


def probe_unindexed(
    files: Sequence[VideoFile],
    counts: Mapping[str, int],
    clip_seconds: float,
    on_error: OnError | None,
) -> list[VideoFile]:
    """Return the files that have a count, those without an index with their properties.

    Args:
        files: the files.
        counts: as `count_indexed_clips` returns them.
        clip_seconds: length of a clip in seconds.
        on_error: as for `index_videos`; a video that is reported is left out.

    Raises:
        GranAlignError: without `on_error`, a file is not a video any more.
    """
    probed = []
    for file in files:
        if file.vid not in counts:
            continue
        with reporting(file.source.path, on_error):
            if file.info is None and not counts[file.vid]:
                info = probe(file.source.path, clip_seconds=clip_seconds)
                file = replace(file, info=info)
            probed.append(file)
    return probed


@contextmanager
def reporting(path: Path, on_error: OnError | None) -> Iterator[None]:
    """Pass an error of the block to `on_error`, which ends the block; without it, raise the error.

    A missing extra is not the fault of one file, and is always raised.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except GranAlignError as error:
        if on_error is None:
            raise
        on_error(path, error)


def name_videos(
    files: Sequence[VideoFile], library: Mapping[str, VideoSource]
) -> dict[Path, VideoFile]:
    """Return, by path, the video that each file is, with the id of its index in the library.

    Copies that share an index are one video.
    """
    ids = assign_ids([file.source for file in files], library)
    by_path = {file.source.path: file for file in files}
    owners: dict[str, VideoFile] = {}
    for path, vid in ids.items():
        owners.setdefault(vid, replace(by_path[path], vid=vid))
    return {path: owners[ids[path]] for path in by_path}


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise GranAlignError(f"{path}: cannot be read ({ffmpeg_reason(error)})") from None


def count_indexed_clips(
    videos: Sequence[VideoFile],
    work: WorkFolder,
    models: IndexModels,
    clip_seconds: float,
    on_error: OnError | None = None,
    *,
    frames_per_clip: int = 1,
) -> dict[str, int]:
    """Return, by video id, the clip count of every video's index; 0 if it is to be indexed.

    An index is up to date if the file's content, the models' fingerprints, `clip_seconds` and
    `frames_per_clip` are the same. Models that write no captions leave an index with captions as it
    is. If only the file's path has changed, the new path is written to the index.

    Args:
        videos: the files.
        work: the folder of indexes.
        models: that are to describe the frames.
        clip_seconds: length of a clip in seconds.
        on_error: as for `index_videos`; a video that is reported has no count.
        frames_per_clip: the number of frames of each clip.

    Raises:
        GranAlignError: without `on_error`, the folder of an index holds something that is not the
            index of a video, or captions that these models would lose.
    """
    counts: dict[str, int] = {}
    for video in videos:
        with reporting(video.source.path, on_error):
            wanted = clip_seconds, frames_per_clip
            counts[video.vid] = _indexed_clips(video, work, models, wanted)
    return counts


def _indexed_clips(
    video: VideoFile, work: WorkFolder, models: IndexModels, wanted: tuple[float, int]
) -> int:
    """Return the clip count of a video's index; 0 if there is none or it is out of date.

    `wanted` is the length of a clip in seconds, and its number of frames.
    """
    folder = work.out / video.vid
    if not folder.exists():
        return 0
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
        return 0
    source = None if index.frames is None else index.frames.source
    if source is None or (source.bytes, source.sha256) != (
        video.source.bytes,
        video.source.sha256,
    ):
        return 0
    clips = index.video.clip_seconds, index.frames_per_clip
    if clips != wanted or not _are_made_by(index, models):
        if index.video.captions is not None and models.captioner is None:
            raise GranAlignError(
                f"{folder}: got an index with captions, which these models would lose; give the "
                f"models that made it, or index into another folder"
            )
        return 0
    if source.path != video.source.path:
        work.update_source(video.vid, video.source)
    return index.video.clips


def _are_made_by(index: VideoIndex, models: IndexModels) -> bool:
    """Return whether an index holds what the models would make of the same file."""
    made, wanted = dict(index.models), dict(models.fingerprints)
    if models.captioner is not None:
        return made == wanted and index.video.captions is not None
    # Captions may be there too, of whatever models.
    has_frames = index.frames is not None and index.frames.embeddings is not None
    return has_frames and made == made | wanted
