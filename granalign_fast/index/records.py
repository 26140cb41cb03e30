"""The records of a video index: its captions, its video file, and its frames."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.files import known_sha256
from granalign_fast.parsing.limits import (
    LEAST_CLIP_SECONDS,
    MOST_CAPTION,
    MOST_CLIP_SECONDS,
    MOST_CLIPS,
    MOST_NAME,
)
from granalign_fast.storage.address import Address, address_of, path_text

CLIP_SECONDS = 2.0
"""Length of a clip in seconds: QVHighlights annotates clips of two seconds."""


def frame_seconds(clip_seconds: float, frames_per_clip: int) -> float:
    """Return the seconds from a frame of a clip to the next; 0 for one frame per clip."""
    return 0.0 if frames_per_clip == 1 else clip_seconds / frames_per_clip


_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CaptionedVideo:
    """The query-agnostic captions of a video, one for each clip of `clip_seconds`.

    Raises:
        GranAlignError: a field has the wrong type, or a caption's clip begins after the video's
            end.
    """

    vid: str
    captions: tuple[str, ...]
    clip_seconds: float = CLIP_SECONDS
    duration: float | None = None
    """Seconds; None if unknown, then all clips count as whole. The last clip may be shorter."""

    def __repr__(self) -> str:
        return (
            f"CaptionedVideo(vid={self.vid!r}, clips={len(self.captions)}, "
            f"clip_seconds={self.clip_seconds}, duration={self.duration})"
        )

    def __post_init__(self) -> None:
        _check_vid(self.vid)
        if not isinstance(self.captions, list | tuple):
            raise GranAlignError(
                f"captions of {self.vid!r}: got {short_repr(self.captions)}, expected a list of "
                f"texts"
            )
        object.__setattr__(self, "captions", tuple(self.captions))
        if not self.captions:
            raise GranAlignError(
                f"captions of {self.vid!r}: got none, expected a text for each clip"
            )
        _check_clips(self.vid, len(self.captions))
        for clip, caption in enumerate(self.captions):
            if not isinstance(caption, str):
                raise GranAlignError(
                    f"caption {clip} of {self.vid!r}: got {short_repr(caption)}, expected a text"
                )
            if len(caption) > MOST_CAPTION:
                raise GranAlignError(
                    f"caption {clip} of {self.vid!r}: got {len(caption):,} characters, expected at "
                    f"most {MOST_CAPTION:,}; shorten it"
                )
        _check_length(self, "captions", "drop the later captions")

    @property
    def clips(self) -> int:
        """The number of clips."""
        return len(self.captions)

    def seconds(self, clip: int) -> float:
        """Return the second at which clip number `clip` begins.

        For the number after the last clip this is the end of the video.
        """
        return _seconds(self, clip)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], location: str) -> CaptionedVideo:
        """Build from a JSON record: `vid`, `captions`, and optionally `clip_seconds`, `duration`.

        Args:
            record: the JSON object.
            location: the file and line of the record, for error messages.

        Raises:
            GranAlignError: a field has the wrong type; the message begins with `location`.
        """
        captions = record["captions"]
        if not isinstance(captions, list):
            raise GranAlignError(
                f"{location}: captions: got {short_repr(captions)}, expected a list of texts"
            )
        try:
            return cls(
                record["vid"],
                tuple(captions),
                record.get("clip_seconds", CLIP_SECONDS),
                record.get("duration"),
            )
        except GranAlignError as error:
            raise GranAlignError(f"{location}: {error}") from None


@dataclass(frozen=True, slots=True)
class UncaptionedVideo:
    """A video whose frames are embedded, and whose clips have no captions.

    Raises:
        GranAlignError: a field has the wrong type, or a clip begins after the video's end.
    """

    vid: str
    clips: int
    """The number of clips."""
    clip_seconds: float = CLIP_SECONDS
    duration: float | None = None
    """Seconds; None if unknown, then all clips count as whole. The last clip may be shorter."""
    captions: ClassVar[None] = None
    """There are none; `CaptionedVideo` has them in a field of this name."""

    def __post_init__(self) -> None:
        _check_vid(self.vid)
        if isinstance(self.clips, bool) or not isinstance(self.clips, int) or self.clips < 1:
            raise GranAlignError(
                f"clips of {self.vid!r}: got {short_repr(self.clips)}, expected an integer from 1"
            )
        _check_clips(self.vid, self.clips)
        _check_length(self, "clips", "drop the later clips")

    def seconds(self, clip: int) -> float:
        """Return the second at which clip number `clip` begins.

        For the number after the last clip this is the end of the video.
        """
        return _seconds(self, clip)


IndexedVideo = CaptionedVideo | UncaptionedVideo
"""The video of an index, with or without captions."""


def _check_vid(vid: object) -> None:
    if not isinstance(vid, str) or not vid.strip():
        raise GranAlignError(f"vid: got {short_repr(vid)}, expected a string that is not empty")
    if len(vid) > MOST_NAME:
        raise GranAlignError(
            f"vid: got {len(vid):,} characters, expected at most {MOST_NAME:,}; shorten it"
        )


def _check_clips(vid: str, clips: int) -> None:
    """Raise if a video has more clips than an index may have."""
    if clips > MOST_CLIPS:
        raise GranAlignError(
            f"clips of {vid!r}: got {clips:,}, expected at most {MOST_CLIPS:,}; take longer clips"
        )


def _check_length(video: IndexedVideo, what: str, remedy: str) -> None:
    """Check the lengths in seconds, and that each clip begins before the video's end.

    Args:
        video: the record.
        what: the name of the field that gives the number of clips.
        remedy: what to do if there are too many.
    """
    for name, least, most in (
        ("clip_seconds", LEAST_CLIP_SECONDS, MOST_CLIP_SECONDS),
        ("duration", 0.0, 1e9),
    ):
        value = getattr(video, name)
        if value is None and name == "duration":
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= most or value < least:
            raise GranAlignError(
                f"{name} of {video.vid!r}: got {short_repr(value)}, expected seconds "
                f"{f'from {least:g}' if least else 'above 0'} to {most:g}"
            )
    last = (video.clips - 1) * video.clip_seconds
    if video.duration is not None and last >= video.duration:
        raise GranAlignError(
            f"{what} of {video.vid!r}: got {video.clips} clips of {video.clip_seconds} s, but the "
            f"video ends at {video.duration} s; {remedy}"
        )


def _seconds(video: IndexedVideo, clip: int) -> float:
    time = clip * video.clip_seconds
    return time if video.duration is None else min(time, video.duration)


@dataclass(frozen=True, slots=True)
class VideoSource:
    """The video file that an index was made from.

    Attributes:
        path: the absolute path at the time of indexing; the file may have moved since. Of a file in
            an object store it stands for the address, see `Address.to_path`.
        bytes: size of the file.
        sha256: SHA-256 of the content, in hex.
        store: the bucket from which the user lets the file be read, with the options of the
            connection; None for no bucket. It is not saved.

    Raises:
        GranAlignError: a field has the wrong type, or the path is relative.
    """

    path: Path
    bytes: int
    sha256: str
    store: Address | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return (
            f"VideoSource(path={path_text(self.path)!r}, bytes={self.bytes}, "
            f"sha256='{self.sha256[:12]}...')"
        )

    def __post_init__(self) -> None:
        if not isinstance(self.path, Path) or not self.path.is_absolute():
            raise GranAlignError(f"source: got path {str(self.path)!r}, expected an absolute one")
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 0:
            raise GranAlignError(
                f"source: got {short_repr(self.bytes)} bytes, expected an integer from 0"
            )
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise GranAlignError(
                f"source: got SHA-256 {short_repr(self.sha256)}, expected 64 hex digits"
            )

    def address(self) -> Address | None:
        """Return the address of a file in an object store; None for a file of this machine.

        An index that somebody else made could name any bucket. To ask for it takes the keys of the
        user, who must have named it: by the address of the library, or as the media.

        Raises:
            GranAlignError: the user has not named the bucket.
        """
        if (address := address_of(self.path)) is None:
            return None
        bucket = replace(address, path=address.bucket)
        if self.store is None or not address.is_below(replace(self.store, path=self.store.bucket)):
            raise GranAlignError(
                f"{address}: got a video in a bucket that the index alone names, expected one that "
                f"you name; give --media {bucket} if your keys may be used there"
            )
        return replace(address, options=self.store.options)

    def check(self, path: Path | None = None, *, again: bool = False) -> Path:
        """Return the path of the file if its content is the one that was indexed.

        An index that somebody else made could name any file of this machine. A large file is read
        once; its hash is remembered in the user's cache as long as the file stays unchanged.

        Args:
            path: where the file is now; by default where it was.
            again: read the file even if its hash is remembered.

        Raises:
            GranAlignError: there is no such file, or it is another one.
        """
        path = self.path if path is None else path
        if (address := address_of(path)) is not None:
            raise GranAlignError(
                f"{address}: got a video in an object store, expected a local file; copy it to "
                f"this machine, and name the copy"
            )
        remedy = "put the file back, name its place with --media, or index it again"
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None
        if size is None:
            raise GranAlignError(f"{path}: got no such file, expected the indexed video; {remedy}")
        if size != self.bytes or known_sha256(path, self.sha256, again=again) != self.sha256:
            raise GranAlignError(
                f"{path}: got another file than the one that was indexed; {remedy}"
            )
        return path


@dataclass(frozen=True, slots=True)
class FrameTable:
    """The frames of a video index: for each clip one, or several.

    Raises:
        GranAlignError: the fields differ in length or have the wrong type, or the times decrease.
    """

    times: npt.NDArray[np.float64]
    """`(clips,)`, seconds from the container's start at which the first frame of each clip appears;
    two clips may share a frame and a time."""
    hashes: tuple[str, ...]
    """The hash of the frames of each clip, by `granalign_fast.types.frame_hash`."""
    embeddings: npt.NDArray[Any] | None = None
    """`(clips, dim)`, float32 or float16, rows of unit length, see
    `granalign_fast.index.models.embed_frames`; None without a frame encoder."""
    source: VideoSource | None = None
    """The video file; None if unknown."""
    missing: tuple[tuple[float, float], ...] = ()
    """Stretches of clips, from second to second, whose picture the file lacks: the good frame
    before takes its place."""
    first: int = 0
    """The number of the first clip in the file: above 0 only in a part of an index."""
    later: npt.NDArray[np.float64] | None = None
    """`(clips, frames - 1)`, the times of the frames of each clip after the first; None for one
    frame per clip."""

    @property
    def frames_per_clip(self) -> int:
        """The number of frames of each clip."""
        return 1 if self.later is None else 1 + self.later.shape[1]

    def times_of(self, clip: int) -> tuple[float, ...]:
        """Return the seconds at which the frames of a clip appear."""
        later = () if self.later is None else self.later[clip].tolist()
        return (float(self.times[clip]), *later)

    @property
    def pictured(self) -> int:
        """Which frame of a clip stands for it in pictures: the first of its second half, from 0."""
        return self.frames_per_clip // 2

    def pictured_at(self, clip: int) -> float:
        """Return the second at which the frame that stands for a clip in pictures appears."""
        return self.times_of(clip)[self.pictured]

    def __repr__(self) -> str:
        dim = None if self.embeddings is None else self.embeddings.shape[1]
        missing = f", missing={self.missing}" if self.missing else ""
        several = "" if self.later is None else f", frames_per_clip={self.frames_per_clip}"
        return (
            f"FrameTable(frames={len(self.hashes)}, embedding_dim={dim}, source={self.source!r}"
            f"{several}{missing})"
        )

    def __post_init__(self) -> None:
        clips, times = len(self.hashes), self.times
        if times.dtype != np.float64 or times.shape != (clips,):
            raise GranAlignError(
                f"times of frames: got {times.dtype} {times.shape}, expected float64 ({clips},), "
                f"one for each hash"
            )
        if self.later is not None:
            if self.later.dtype != np.float64 or self.later.shape[:-1] != (clips,):
                raise GranAlignError(
                    f"later times of frames: got {self.later.dtype} {self.later.shape}, expected "
                    f"float64 ({clips}, frames - 1)"
                )
            times = np.column_stack([times, self.later]).reshape(-1)
        if not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) < 0).any():
            raise GranAlignError("times of frames: expected seconds from 0 that never decrease")
        for clip, name in enumerate(self.hashes):
            if not isinstance(name, str) or not name:
                raise GranAlignError(f"hash of frame {clip}: got {name!r}, expected a string")
        if self.embeddings is not None:
            check_rows(self.embeddings, clips, "embeddings of frames", "a row for each frame")
        edges = [edge for stretch in self.missing for edge in stretch]
        if any(len(stretch) != 2 for stretch in self.missing) or not all(
            before < after for before, after in pairwise(edges)
        ):
            raise GranAlignError(
                f"missing: got {self.missing}, expected pairs of seconds in ascending order"
            )

    @property
    def path(self) -> Path | None:
        """The path of the video file at the time of indexing."""
        return None if self.source is None else self.source.path


def check_rows(rows: npt.NDArray[Any], count: int, what: str, why: str) -> None:
    """Check that `rows` has `count` rows of float32 or float16; `what` and `why` word the error."""
    shape, dtype = rows.shape, np.dtype(rows.dtype)
    if len(shape) != 2 or shape[0] != count or dtype not in (np.float32, np.float16):
        raise GranAlignError(
            f"{what}: got {dtype} {shape}, expected float32 or float16 ({count}, dim), {why}"
        )
