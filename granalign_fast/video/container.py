"""Open video files: refuse other files, choose the video stream, read display matrix and aspect."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.parsing.limits import MOST_CLIPS, MOST_PIXELS, MOST_STREAMS
from granalign_fast.reading import open_file
from granalign_fast.storage.address import path_text

from .demuxers import FORMAT_WHITELIST

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

_SHORTEST_CLIP = 0.002
"""Seconds: a shorter rest after the last whole clip does not count as a clip. It can come from
rounding alone, because Matroska and FLV round time stamps to milliseconds."""

_FLOAT_ERROR = Fraction(1, 1_000_000)
"""Seconds by which a float, or a sum of floats, may miss the time that is meant."""


_DECODING = {"max_pixels": str(MOST_PIXELS)}
"""Options of decoders, which refuse a larger frame before they allocate it. They apply both to the
frames that FFmpeg decodes to find a stream's properties and to all others."""


class DamagedVideoWarning(UserWarning):
    """A video is damaged or truncated. The frames that were returned are right; no others follow.

    The message names the file and the time of the damage.
    """


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The properties of a video that `probe` returns.

    Attributes:
        duration: seconds from the container's start to the end of the last frame's presentation.
        width: width of the displayed picture: upright, and scaled to square pixels.
        height: height of the displayed picture, upright.
        frame_rate: average frames per second; None if the file has no frame rate.
        codec: FFmpeg's name of the codec, such as ``h264``.
        rotation: degrees counter-clockwise that turn a stored frame upright: 0, 90, 180 or 270.
        clips: number of frames that `read_frames` returns if the video is not damaged.
        start: presentation time of the container's start in the file, in seconds: that of its
            earliest stream. All other times are relative to it, as in players and ``ffmpeg -ss``.
        first_frame: seconds from the container's start to the presentation of the first frame. It
            is above 0 if the picture begins later than the audio.
    """

    duration: float
    width: int
    height: int
    frame_rate: float | None
    codec: str
    rotation: int
    clips: int
    start: float
    first_frame: float


@dataclass(frozen=True, slots=True)
class Video:
    """An open video file and its video stream."""

    path: Path
    container: InputContainer
    stream: VideoStream
    time_base: Fraction
    start: Fraction | None
    """Presentation time of the container's start in seconds; None if the file has none."""

    @property
    def format_name(self) -> str:
        """FFmpeg's name of the container format, such as ``mov,mp4,m4a,3gp,3g2,mj2``."""
        return self.container.format.name

    @property
    def has_packet_numbers(self) -> bool:
        """True if the file numbers its packets in decoding order and has no presentation times.

        AVI does so. FFmpeg derives the PTS from the codec, and it may be late by some frames.
        """
        return self.format_name == "avi"

    @property
    def is_reordered(self) -> bool:
        """True if packets have numbers alone, and frames are shown in another order."""
        return self.has_packet_numbers and bool(self.stream.codec_context.has_b_frames)

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a pixel divided by its height as players see it; None if it is unknown."""
        stream = self.stream
        # MPEG streams have no aspect of their own, and that of their frames can change.
        if self.format_name.startswith("mpeg"):
            return stream.codec_context.sample_aspect_ratio
        return stream.sample_aspect_ratio

    def ticks(self, seconds: Fraction) -> Fraction:
        """Convert seconds to units of the stream's time base."""
        return seconds / self.time_base

    def exact_seconds(self, seconds: float) -> Fraction:
        """Return the seconds that a float stands for.

        Near a multiple of the time base they are that multiple: 3.9 is a little less than 390/100.
        """
        nearest = round(Fraction(seconds) / self.time_base) * self.time_base
        return nearest if abs(nearest - Fraction(seconds)) < _FLOAT_ERROR else Fraction(seconds)


@contextmanager
def open_video(path: str | os.PathLike[str], *, threads: int | None = None) -> Iterator[Video]:
    """Open a file's best video stream for reading; cover art does not count as video.

    Args:
        path: a local file. No other file is opened for it: no URL, and no entry of a playlist.
        threads: decoder threads; None lets FFmpeg choose.

    Raises:
        GranAlignError: the file does not exist, cannot be read, or has no video stream.
    """
    path = Path(path)
    _check_file(path)
    # Without "file:", FFmpeg would read a name such as "http:x.mp4" as a URL.
    with _opened(f"file:{path}", path, threads, {}) as video:
        yield video


@contextmanager
def open_video_stream(stream: Any, path: Path, *, buffer_bytes: int) -> Iterator[Video]:
    """Open the best video stream of a file-like object, as `open_video` does of a file.

    Args:
        stream: has `read`, `seek` and `tell`.
        path: the name of the video in messages.
        buffer_bytes: the bytes that FFmpeg reads at a time.

    Raises:
        GranAlignError: as for `open_video`.
    """
    with _opened(stream, path, None, {"buffer_size": buffer_bytes}) as video:
        yield video


@contextmanager
def _opened(source: Any, path: Path, threads: int | None, more: dict[str, Any]) -> Iterator[Video]:
    """Open a video that FFmpeg reads from `source`; `path` names it in messages."""
    import av
    from av.error import FFmpegError

    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise GranAlignError(f"threads: got {threads!r}, expected an integer from 1, or None")
    try:
        container = av.open(
            source,
            options=_DECODING,
            container_options={
                "protocol_whitelist": "file",
                "format_whitelist": FORMAT_WHITELIST,
                "max_streams": str(MOST_STREAMS + 1),
            },
            **_tolerate_bad_metadata(av.__version__),
            **more,
        )
    except (FFmpegError, ValueError, IndexError) as error:
        # FFmpeg has no error of its own for a format that is not on the list.
        is_listed = getattr(error, "errno", None) != errno.EINVAL
        reason = ffmpeg_reason(error) if is_listed else "no format of videos"
        raise GranAlignError(
            f"{path_text(path)}: not a video that can be read ({reason}); "
            f"expected a whole file such as MP4, Matroska or MPEG-TS"
        ) from None
    with container:
        if len(container.streams) > MOST_STREAMS:
            raise GranAlignError(
                f"{path}: got more than {MOST_STREAMS} streams, expected at most so many; remux "
                f"the video alone"
            )
        stream = _video_stream(path, container)
        stream.thread_type = "AUTO"
        stream.thread_count = threads or 0
        stream.codec_context.options = dict(_DECODING)
        yield Video(path, container, stream, Fraction(stream.time_base or 0), _start(container))


def _tolerate_bad_metadata(pyav: str) -> dict[str, Any]:
    """Return the option for PyAV before 19 to open a file whose metadata are not UTF-8."""
    return {"metadata_errors": "replace"} if int(pyav.split(".")[0]) < 19 else {}


def _check_file(path: Path) -> None:
    with open_file(path, remedy="name a video file") as file:
        if not os.fstat(file.fileno()).st_size:
            raise GranAlignError(f"{path}: the file is empty, expected a video")


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    from av.stream import Disposition

    best = container.streams.best("video")
    # Cover art is a video stream with one attached picture.
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        types = ", ".join(sorted({stream.type for stream in container.streams}))
        raise GranAlignError(f"{path}: no video in it, only {types or 'nothing'}")
    stream = next((s for s in videos if best is not None and s.index == best.index), videos[0])
    if stream.codec_context is None:
        raise GranAlignError(f"{path}: no decoder for its video; convert it, for example to H.264")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MOST_PIXELS:
        raise GranAlignError(
            f"{path}: got frames of {width} x {height} pixels, expected at most {MOST_PIXELS:,} "
            f"pixels; scale the video down"
        )
    if not stream.time_base:
        raise GranAlignError(f"{path}: its video has no presentation times; remux it to Matroska")
    return stream


def _start(container: InputContainer) -> Fraction | None:
    """Return the presentation time of the container's start, in seconds, or None.

    FFmpeg rounds it to microseconds. The start of the stream that it comes from is exact.
    """
    if container.start_time is None:
        return None
    rounded = Fraction(container.start_time, 1_000_000)
    for stream in container.streams:
        if stream.start_time is not None and stream.time_base:
            exact = stream.start_time * Fraction(stream.time_base)
            if abs(exact - rounded) <= Fraction(1, 1_000_000):
                return exact
    return rounded


def ffmpeg_reason(error: BaseException) -> str:
    """Return an FFmpeg error's text without its number and the file's name."""
    return getattr(error, "strerror", None) or one_line(error)


def check_clip_count(path: Path, clips: int) -> None:
    """Raise if a video has more clips than an index may have.

    Raises:
        GranAlignError: it has.
    """
    if clips > MOST_CLIPS:
        raise GranAlignError(
            f"{path}: got {clips:,} clips, expected at most {MOST_CLIPS:,}; take longer clips, or "
            f"cut the video if it is as long as its times say"
        )


def clip_count(duration: float, clip_seconds: float) -> int:
    """Return the number of clips, at least 1; a rest of up to 2 ms does not count as a clip."""
    return max(1, math.ceil((duration - _SHORTEST_CLIP) / clip_seconds))


def display_matrix(frame: av.VideoFrame) -> npt.NDArray[np.int32] | None:
    """Return the 3 x 3 matrix, flat, by which a player turns and mirrors the frame, or None."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)
