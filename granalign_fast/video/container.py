"""Opens video files: what is refused, which stream is meant, and how its frames stand upright."""

from __future__ import annotations

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

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# What FFmpeg opens although it is no video file: text drawn as pictures, lists, still images.
_NO_VIDEOS = {"tty", "concat", "hls", "dash", "lavfi", "bin", "xbin", "adf", "idf", "image2"}

# FFmpeg would open the files that these name.
_LISTS = (b"ffconcat", b"#EXTM3U")

# What is left of a video behind its last whole clip counts from here on: Matroska and FLV round
# times to milliseconds.
_ROUNDING = 0.002


class DamagedVideoWarning(UserWarning):
    """A video is broken or cut short; the frames that were given are right, and are all there is.

    The message names the file and the time.
    """


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What `probe` finds out about a video.

    Attributes:
        duration: seconds from the first frame's presentation to the end of the last frame's.
        width: pixels of an upright frame. Where pixels are not square they are left so.
        height: pixels of an upright frame.
        frame_rate: average frames per second; None where the file does not say.
        codec: FFmpeg's name, such as ``h264``.
        rotation: degrees counter-clockwise that turn a stored frame upright: 0, 90, 180 or 270.
        clips: how many frames `read_frames` gives, if the video is whole.
        start: the presentation time of the first frame inside the file, in seconds; all other
            times are relative to it.
    """

    duration: float
    width: int
    height: int
    frame_rate: float | None
    codec: str
    rotation: int
    clips: int
    start: float


@dataclass(frozen=True, slots=True)
class Video:
    """An open file and the stream in it that is meant."""

    path: Path
    container: InputContainer
    stream: VideoStream
    time_base: Fraction

    @property
    def kind(self) -> str:
        """FFmpeg's name of the container format."""
        return self.container.format.name

    def ticks(self, seconds: Fraction) -> Fraction:
        """A time in units of the stream's presentation times."""
        return seconds / self.time_base


@contextmanager
def open_video(path: str | os.PathLike[str], *, threads: int | None = None) -> Iterator[Video]:
    """Open a file's best video stream for reading; cover art is no video.

    Args:
        path: a local file. Nothing else is opened on its behalf: no URL, no file of a playlist.
        threads: of the decoder; None for as many as FFmpeg thinks fit.

    Raises:
        GranAlignError: there is no such file, it may not be read, or it holds no video.
    """
    import av
    from av.error import FFmpegError

    path = Path(path)
    _check_file(path)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise GranAlignError(f"threads: got {threads!r}, expected an integer from 1, or None")
    try:
        container = av.open(
            # Without "file:" a name such as "http:x.mp4" would be a protocol.
            f"file:{path}",
            container_options={"protocol_whitelist": "file"},
            **_tolerate_bad_metadata(av.__version__),
        )
    except (FFmpegError, ValueError, IndexError) as error:
        raise GranAlignError(
            f"{path}: not a video that can be read ({short(error)}); "
            f"expected a whole file such as MP4, Matroska or MPEG-TS"
        ) from None
    with container:
        stream = _video_stream(path, container)
        stream.thread_type = "AUTO"
        stream.thread_count = threads or 0
        yield Video(path, container, stream, Fraction(stream.time_base or 0))


def _tolerate_bad_metadata(pyav: str) -> dict[str, Any]:
    """The option by which PyAV opens a file whose metadata are not UTF-8: 19 needs none."""
    return {"metadata_errors": "replace"} if int(pyav.split(".")[0]) < 19 else {}


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise GranAlignError(f"{path}: got a folder, expected a video file")
        # Opening a pipe would wait for someone to write to it.
        if path.exists() and not path.is_file():
            raise GranAlignError(f"{path}: expected a regular file; save the video to one")
        with path.open("rb") as file:
            head = file.read(16)
            if not head:
                raise GranAlignError(f"{path}: the file is empty, expected a video")
            if head.startswith(_LISTS):
                raise GranAlignError(f"{path}: got a list of other files, expected a video")
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a null character
        raise GranAlignError(f"{path}: not a file name ({error})") from None


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    from av.stream import Disposition

    kind = container.format.name
    if kind in _NO_VIDEOS or kind.endswith("_pipe"):
        raise GranAlignError(f"{path}: got a file of the kind {kind!r}, expected a video")
    best = container.streams.best("video")
    pictured = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not pictured:
        found = ", ".join(sorted({stream.type for stream in container.streams}))
        raise GranAlignError(f"{path}: no video in it, only {found or 'nothing'}")
    stream = next((s for s in pictured if best is not None and s.index == best.index), pictured[0])
    if stream.codec_context is None:
        raise GranAlignError(f"{path}: no decoder for its video; convert it, for example to H.264")
    if not stream.time_base:
        raise GranAlignError(f"{path}: its video has no presentation times; remux it to Matroska")
    return stream


def short(error: BaseException) -> str:
    """An error of FFmpeg without its number and the file's name, which stand elsewhere."""
    return getattr(error, "strerror", None) or one_line(error)


def clip_count(duration: float, clip_seconds: float) -> int:
    """How many clips a video has: the last one may be short, but not by rounding alone."""
    return max(1, math.ceil((duration - _ROUNDING) / clip_seconds))


def display_matrix(frame: av.VideoFrame) -> npt.NDArray[np.int32] | None:
    """The nine numbers by which a player turns and mirrors the frame; None where it need not."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)


def upright(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """The frame as a player shows it: RGB (height, width, 3), turned and mirrored by its metadata.

    Angles are taken to the nearest quarter turn.
    """
    image: npt.NDArray[Any] = frame.to_ndarray(format="rgb24")
    matrix = display_matrix(frame)
    if matrix is not None:
        # x' = a x + c y and y' = b x + d y; only signs matter in quarter turns.
        a, b, _, c, d = (int(value) for value in matrix[:5])
        if abs(b) + abs(c) > abs(a) + abs(d):
            image, a, d = image.swapaxes(0, 1), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def quarter_turns(frame: av.VideoFrame) -> int:
    """How often a stored frame is turned counter-clockwise by 90 degrees to stand upright."""
    return round(frame.rotation / 90) % 4
