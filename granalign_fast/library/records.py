"""The records of the catalogue: one for each video."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.files import escape_undecodable, is_sha256_cheap
from granalign_fast.index import VideoIndex, VideoSource
from granalign_fast.index.columns import is_text
from granalign_fast.index.manifest import MANIFEST, check_holds_indexes, path_record, read_path
from granalign_fast.models.manifest import CLIP, SENTENCE_ENCODER
from granalign_fast.parsing.json_types import matches, wrong_field
from granalign_fast.parsing.limits import (
    FRAMES_PER_CLIP,
    LEAST_CLIP_SECONDS,
    MOST_CLIP_SECONDS,
    MOST_CLIPS,
)
from granalign_fast.video.container import open_video

LEAST_DATE, MOST_DATE = -62_000_000_000, 253_000_000_000
"""Seconds since 1970 of the years 5 and 9987. What lies outside has no date in most languages, and
comes from a clock that was never set or a damaged disk."""


@dataclass(frozen=True, slots=True)
class CataloguedVideo:
    """A video of a library.

    Attributes:
        vid: its id, the name of its index folder.
        stamp: changes whenever its index does.
        clips: how many it has.
        clip_seconds: their length.
        duration: seconds; None if unknown.
        path: its file; None for an index of captions alone.
        sha256: of the file; None for an index of captions alone.
        date: when it was made, in seconds since 1970: the creation time in the file, or else the
            date of the file. None if neither is known.
        models: fingerprints of the models that made the index, by kind.
        captioned: whether its clips have captions.
        frames_per_clip: the number of frames of each clip.
    """

    vid: str
    stamp: str
    clips: int
    clip_seconds: float
    duration: float | None
    path: Path | None
    sha256: str | None
    date: float | None
    models: Mapping[str, str]
    captioned: bool = True
    frames_per_clip: int = 1

    @property
    def encoder(self) -> str | None:
        """The fingerprint of the sentence encoder; None if unknown."""
        return self.models.get(SENTENCE_ENCODER)

    @property
    def frame_encoder(self) -> str | None:
        """The fingerprint of the frame encoder; None without one."""
        return self.models.get(CLIP)

    @property
    def seconds(self) -> float:
        """The length of the video: its duration, or that of all its clips."""
        return self.clips * self.clip_seconds if self.duration is None else self.duration

    def second(self, clip: int) -> float:
        """Return the second at which a clip begins; for the number after the last one, the end."""
        return min(clip * self.clip_seconds, self.seconds)

    def is_of(self, index: VideoIndex) -> bool:
        """Return whether an index has the clips and the models that were catalogued."""
        own = self.clips, self.clip_seconds, self.frames_per_clip, dict(self.models)
        clips, clip_seconds = index.video.clips, index.video.clip_seconds
        return own == (clips, clip_seconds, index.frames_per_clip, dict(index.models))

    def to_record(self) -> dict[str, Any]:
        """Return the video as JSON; `from_record` reads it."""
        path = None if self.path is None else path_record(self.path)
        record = asdict(self) | {"path": path, "models": dict(self.models)}
        if self.frames_per_clip == 1:  # left out: older versions read such a record
            del record["frames_per_clip"]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> CataloguedVideo:
        """Read what `to_record` returned; another record raises exceptions of many types."""
        if not isinstance(record, dict):
            raise ValueError(f"got {short_repr(record)}, expected an object")
        plain = {key: value for key, value in record.items() if key not in ("path", "models")}
        wrong = wrong_field(cls, plain)
        if wrong is None and not matches(dict[str, str], record["models"]):
            wrong = "models"
        if wrong is None and not 0 < record["clips"] <= MOST_CLIPS:
            wrong = "clips"
        if wrong is None and not LEAST_CLIP_SECONDS <= record["clip_seconds"] <= MOST_CLIP_SECONDS:
            wrong = "clip_seconds"
        if wrong is None and record.get("frames_per_clip", 1) not in FRAMES_PER_CLIP:
            wrong = "frames_per_clip"
        if wrong is None and not 0 <= (record["duration"] or 0) < math.inf:
            wrong = "duration"
        if wrong is None and not LEAST_DATE <= (record["date"] or 0) <= MOST_DATE:
            wrong = "date"
        if wrong is not None:
            raise ValueError(f"got {wrong} {short_repr(record[wrong])}")
        path = None if record["path"] is None else read_path(record["path"])
        return cls(**{**record, "path": path})


@dataclass(frozen=True, slots=True)
class VideoRows:
    """A video with its rows of the catalogue."""

    video: CataloguedVideo
    captions: tuple[str, ...]
    """The caption of each clip; none if the index has none."""
    embeddings: npt.NDArray[np.float16]
    """`(clips, dim)`, of the captions; `dim` is 0 without any."""
    frames: npt.NDArray[np.float16] | None
    """`(clips, dim)`, of the frames; None without a frame encoder."""


def index_stamp(folder: Path) -> str | None:
    """Return the stamp of an index folder, or None if the folder is no index.

    The manifest of an index is replaced whenever anything in the folder is, and its time with it.
    """
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return f"{status.st_mtime_ns}-{status.st_size}"


def index_stamps(library: Path) -> dict[str, str]:
    """Return the stamp of each index in a library, by video id.

    Raises:
        GranAlignError: the folder cannot be read, or is itself the index of one video.
    """
    check_holds_indexes(library)
    try:
        names = sorted(entry.name for entry in os.scandir(library) if entry.name[0] != ".")
    except OSError as error:
        raise GranAlignError(
            f"{library}: cannot be read ({error.strerror or error}); name a folder that "
            f"`granalign index` wrote"
        ) from None
    stamps = ((name, index_stamp(library / name)) for name in names)
    return {name: stamp for name, stamp in stamps if stamp is not None}


def read_rows(folder: Path, stamp: str, known: CataloguedVideo | None) -> VideoRows:
    """Read an index folder, and check each of its files.

    Args:
        folder: of the index.
        stamp: of the folder, taken before it is read.
        known: what an earlier catalogue says about the video; its date is kept if the file is the
            same, because the file may lie on a disk that is not connected now.

    Raises:
        GranAlignError: the index is damaged, or an embedding is not a number.
    """
    if not is_text(folder.name):
        raise GranAlignError(
            f"{escape_undecodable(str(folder))}: got a name that is not UTF-8; rename the folder"
        )
    return rows_of(VideoIndex.load(folder), folder.name, stamp, known)


def rows_of(
    index: VideoIndex, vid: str, stamp: str = "", known: CataloguedVideo | None = None
) -> VideoRows:
    """Return the rows of an index; arguments as for `read_rows`.

    Raises:
        GranAlignError: an embedding is not a number.
    """
    source = None if index.frames is None else index.frames.source
    sha256 = None if source is None else source.sha256
    date = None if source is None else creation_time(source)
    if date is None and known is not None and known.sha256 == sha256:
        date = known.date
    if date is None and source is not None:
        date = file_date(source)
    frames = None if index.frames is None else index.frames.embeddings
    captions = np.empty((index.video.clips, 0)) if index.embeddings is None else index.embeddings
    video = CataloguedVideo(
        vid=vid,
        stamp=stamp,
        clips=index.video.clips,
        clip_seconds=index.video.clip_seconds,
        duration=index.video.duration,
        path=None if source is None else source.path,
        sha256=sha256,
        date=date,
        models=dict(index.models),
        captioned=index.embeddings is not None,
        frames_per_clip=index.frames_per_clip,
    )
    return VideoRows(
        video,
        index.video.captions or (),
        _halves(vid, captions),
        None if frames is None else _halves(vid, frames),
    )


def _halves(vid: str, rows: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        halves = rows.astype(np.float16)
    if not np.isfinite(halves).all():
        raise GranAlignError(
            f"video {vid!r}: got embeddings that are no numbers of float16, expected rows of unit "
            f"length; delete its index and index the video again"
        )
    return halves


def creation_time(source: VideoSource) -> float | None:
    """Return the time that a camera wrote into a video, in seconds since 1970; None without one.

    Only the file that was indexed is opened. A large file whose hash is not known any more would
    have to be read for that, so it is not opened.
    """
    if not is_sha256_cheap(source.path, source.sha256):
        return None
    try:
        with open_video(source.check()) as video:
            text = video.container.metadata.get("creation_time", "")
        created = datetime.fromisoformat(text).timestamp()
    except (GranAlignError, ValueError, OverflowError, OSError):
        return None
    return created if 0 < created <= MOST_DATE else None  # 0 of a camera whose clock was never set


def file_date(source: VideoSource) -> float | None:
    """Return when a video file was changed last, in seconds since 1970; None if it is not there."""
    try:
        status = source.path.stat()
    except (OSError, ValueError):
        return None
    date = status.st_mtime
    return date if status.st_size == source.bytes and LEAST_DATE <= date <= MOST_DATE else None


def is_plain_name(name: str) -> bool:
    """Return whether a name is that of a file or folder, and leads to no other folder."""
    return name not in ("", ".", "..") and not {"/", "\0"} & set(name)
