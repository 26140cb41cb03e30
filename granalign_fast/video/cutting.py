"""Cut a moment out of a video file: copy its packets, or encode it to H.264 for an exact cut."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing

from .container import Video, display_matrix, ffmpeg_reason, open_video
from .frames import probe
from .key_frames import (
    decode_or_skip,
    find_key_frame,
    is_decodable_alone,
    packets_from_key_frame,
)

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""FFmpeg's name of the container format for each suffix that a cut may have."""

_CRF = "18"
"""x264's constant rate factor: at 18 the result can hardly be told from the original."""

_REORDERING = 1
"""Seconds by which a frame may precede, in the file, another that is shown before it."""

_INTERLEAVING = 2
"""Seconds by which audio may lie behind the video of the same time in a file."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The file that `cut` wrote.

    Attributes:
        path: the file.
        start: second of the source at which the file begins, counted as in `read_frames`.
        end: second of the source at which the file ends.
        copied: True if the video was copied, False if it was encoded.
    """

    path: Path
    start: float
    end: float
    copied: bool


def cut(
    path: str | os.PathLike[str],
    start: float,
    end: float,
    out: str | os.PathLike[str],
    *,
    exact: bool = False,
) -> Cut:
    """Write the moment from `start` to `end` of a video to a new file.

    Without `exact` nothing is encoded. The file begins at the last key frame up to half a frame
    after `start`, which is seconds early if the GOPs are long, and it ends within a few frames of
    `end`. With `exact` the video is encoded to H.264, from the frame that is shown at `start` to
    the last one that begins before `end`. Audio is copied in both cases, as whole packets of some
    hundredths of a second. Subtitles and data are left out.

    Args:
        path: the video.
        start: start of the moment, in seconds from the video's first frame.
        end: end of the moment, in the same seconds; a value beyond the video's end means its end.
        out: a path that ends in .mp4, .mkv or .mov. An existing file is replaced when the new one
            is complete; on an error nothing is changed.
        exact: encode the video, so that the cut begins and ends exactly at `start` and `end`.

    Raises:
        GranAlignError: the moment is empty or outside the video; `out` is the video itself, has
            another suffix or cannot be written; its format does not support the codec of the video
            or the audio; or the video cannot be read.
    """
    from av.error import FFmpegError

    path, out = Path(path), Path(out)
    if out.suffix.lower() not in _FORMATS:
        raise GranAlignError(f"{out}: got suffix {out.suffix!r}, expected one of {list(_FORMATS)}")
    if out.exists() and path.exists() and out.samefile(path):
        raise GranAlignError(f"{out}: got the video itself, expected another file to cut it to")
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise GranAlignError(
            f"{path}: got a moment from {start} to {end} s, expected 0 <= start < end"
        )
    info = probe(path)
    if start >= info.duration:
        raise GranAlignError(
            f"{path}: got a moment from {start} s on, but the video ends at {info.duration:.3f} s"
        )
    end = min(end, info.duration)
    with open_video(path) as video, replacing(out) as sink:
        try:
            origin = round(video.ticks(Fraction(info.start)))
            # 1. Find the key frame at which decoding or copying starts. A copy may begin up to half
            # a frame late, so that rounding of `start` does not cost a whole GOP.
            rate = None if exact else video.stream.average_rate
            limit = Fraction(start) + Fraction(1, 2) / rate if rate else Fraction(start)
            with open_video(path) as other:
                key = find_key_frame(other, origin + video.ticks(limit))
            if exact and not is_decodable_alone(path, key):
                # Decode from the first key frame instead, to be safe.
                with open_video(path) as other:
                    key = find_key_frame(other, Fraction(origin))
            # 2. Write the cut.
            cutter = _Cutter(video, out, origin, key, Fraction(start), Fraction(end))
            first, last = cutter.encode(sink) if exact else cutter.copy(sink)
            return Cut(out, first, last, not exact)
        except (FFmpegError, ValueError, IndexError) as error:
            if isinstance(error, GranAlignError):
                raise
            # If the disk is full, closing the file fails again and hides the first error.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise GranAlignError(
                f"{out}: cannot be cut from {path} ({ffmpeg_reason(error)}); get the video again, "
                f"or convert it to MP4"
            ) from None


class _Cutter:
    """The writer of one cut; times are in units of the source's time base unless stated."""

    def __init__(
        self, video: Video, out: Path, origin: int, key: int, start: Fraction, end: Fraction
    ) -> None:
        self._video = video
        self._out = out
        self._origin = origin
        """PTS of the video's first frame."""
        self._key = key
        """PTS of the key frame from which packets are read."""
        self._start = origin + video.ticks(start)
        self._end = origin + video.ticks(end)
        self._audio = list(video.container.streams.audio)

    def copy(self, sink: IO[bytes]) -> tuple[float, float]:
        """Copy packets from the key frame on; return start and end of the cut in seconds."""
        key = self._key
        begin = Fraction(key)
        end = math.ceil(self._end)
        last = key
        with self._open(sink) as target:
            with self._write_header(target):
                stream = target.add_stream_from_template(self._video.stream)
                audio = self._add_audio_streams(target)
            # A frame behind the end is needed if a frame before the end follows it in the file,
            # and so are the frames between the two: hold such packets back until that is known.
            held: list[Packet[Any]] = []
            started = False
            for packet in self._read_packets(key):
                if packet.stream_index != self._video.stream.index:
                    self._mux_audio(target, packet, audio, begin)
                    continue
                started = started or packet.pts == key
                if not started or packet.pts is None or packet.pts < key:
                    continue
                held.append(packet)
                if packet.pts < end:
                    for one in held:
                        end = max(end, one.pts or 0)
                        last = max(last, (one.pts or 0) + self._duration(one))
                        _shift_timestamps(one, key)
                        one.duration = self._duration(one)
                        one.stream = stream
                        target.mux(one)
                    held.clear()
        return self._to_seconds(begin), self._to_seconds(Fraction(last))

    def encode(self, sink: IO[bytes]) -> tuple[float, float]:
        """Encode the frames from start to end; return start and end of the cut in seconds."""
        video = self._video
        begin = math.floor(self._start)
        shown: VideoFrame | None = None
        stream: VideoStream | None = None
        audio: dict[int, Any] = {}
        with self._open(sink) as target:

            def encode_frame(frame: VideoFrame) -> None:
                nonlocal stream, audio
                # The first frame decides size and pixel format, which the header needs.
                if stream is None:
                    with self._write_header(target):
                        stream = _add_h264_stream(target, video, frame)
                        audio = self._add_audio_streams(target)
                converted = frame.reformat(format=stream.pix_fmt)
                converted.pts = max(frame.pts or 0, begin) - begin
                converted.time_base = video.time_base
                converted.pict_type = 0  # the encoder chooses I, P or B
                target.mux(stream.encode(converted))

            # Audio packets wait until the header is written.
            waiting: list[Packet[Any]] = []
            started = False
            for packet in self._read_packets(self._key):
                if packet.stream_index != video.stream.index:
                    if self._is_in_moment(packet, self._start):
                        waiting.append(packet)
                elif started := started or packet.pts == self._key:
                    for frame in decode_or_skip(video, packet):
                        shown = self._advance(shown, frame, encode_frame)
                if stream is not None:
                    for waited in waiting:
                        self._mux_audio(target, waited, audio, self._start)
                    waiting.clear()
            # The decoder returns its last frames when it is flushed.
            for frame in decode_or_skip(video, None):
                shown = self._advance(shown, frame, encode_frame)
            if shown is not None:
                encode_frame(shown)
            if stream is None:
                raise GranAlignError(f"{video.path}: no frame between start and end can be decoded")
            for waited in waiting:
                self._mux_audio(target, waited, audio, self._start)
            target.mux(stream.encode(None))
        return self._to_seconds(self._start), self._to_seconds(self._end)

    def _advance(
        self, shown: VideoFrame | None, frame: VideoFrame, encode_frame: Any
    ) -> VideoFrame | None:
        """Encode the frame before `frame` if it was shown in the moment; return the newest frame.

        A frame is shown until the next one begins, so it is encoded when the next one is known.
        """
        if frame.pts is None or frame.pts >= self._end:
            return shown
        if shown is not None and frame.pts > self._start:
            encode_frame(shown)
        return frame

    def _open(self, sink: IO[bytes]) -> OutputContainer:
        import av

        return av.open(sink, "w", format=_FORMATS[self._out.suffix.lower()])

    @contextmanager
    def _write_header(self, target: OutputContainer) -> Iterator[None]:
        """Write the file's header after the block, which adds the streams.

        Raises:
            GranAlignError: the format does not support the codecs of the streams.
        """
        from av.error import FFmpegError

        try:
            yield
            target.start_encoding()
        except (FFmpegError, ValueError) as error:
            matroska = self._out.suffix.lower() == ".mkv"
            remedy = "convert the video" if matroska else "a name that ends in .mkv takes the most"
            raise GranAlignError(
                f"{self._out}: does not take the codecs of {self._video.path} "
                f"({ffmpeg_reason(error)}); {remedy}"
            ) from None

    def _read_packets(self, key: int) -> Iterator[Packet[Any]]:
        """Yield video and audio packets from the key frame on, until both are behind the end."""
        video, finished = self._video, set()
        streams = [video.stream, *self._audio]
        end = self._end * video.time_base + _REORDERING
        for packet in packets_from_key_frame(video, key, streams):
            timestamp = packet.pts if packet.dts is None else packet.dts
            if timestamp is not None and packet.time_base:
                time = timestamp * packet.time_base
                if time >= end:
                    finished.add(packet.stream_index)
                # An audio stream that ends before the moment never counts as finished.
                late = video.stream.index in finished and time >= end + _INTERLEAVING
                if late or len(finished) == len(streams):
                    return
            yield packet

    def _add_audio_streams(self, target: OutputContainer) -> dict[int, Any]:
        """Add a stream for each audio stream of the source, by the source's stream index."""
        return {stream.index: target.add_stream_from_template(stream) for stream in self._audio}

    def _mux_audio(
        self, target: OutputContainer, packet: Packet[Any], audio: dict[int, Any], begin: Fraction
    ) -> None:
        """Copy an audio packet if it lies in the moment."""
        if self._is_in_moment(packet, begin):
            _shift_timestamps(packet, round(begin * self._video.time_base / packet.time_base))
            packet.stream = audio[packet.stream_index]
            target.mux(packet)

    def _is_in_moment(self, packet: Packet[Any], begin: Fraction) -> bool:
        if packet.pts is None or not packet.time_base:
            return False
        time = packet.pts * packet.time_base / self._video.time_base
        return begin <= time < self._end

    def _duration(self, packet: Packet[Any]) -> int:
        rate = self._video.stream.average_rate
        return packet.duration or (round(self._video.ticks(1 / rate)) if rate else 0)

    def _to_seconds(self, time: Fraction) -> float:
        return float((time - self._origin) * self._video.time_base)


def _shift_timestamps(packet: Packet[Any], offset: int) -> None:
    packet.pts = None if packet.pts is None else packet.pts - offset
    packet.dts = None if packet.dts is None else packet.dts - offset


def _add_h264_stream(target: OutputContainer, video: Video, frame: VideoFrame) -> VideoStream:
    """Add an H.264 stream for frames of the size, pixel format and colours of `frame`."""
    source = video.stream
    stream = target.add_stream(
        "libx264", rate=source.average_rate or 25, options={"crf": _CRF, "preset": "medium"}
    )
    stream.width, stream.height = frame.width, frame.height
    formats = {one.name for one in stream.codec_context.codec.video_formats or ()}
    # Only 4:4:4 can have an odd width or height: the others share colour between pixels.
    odd = frame.width % 2 or frame.height % 2
    fallback = "yuv444p" if odd else "yuv420p"
    name = frame.format.name
    stream.pix_fmt = name if name in formats and (not odd or "444" in name) else fallback
    stream.codec_context.time_base = video.time_base
    if source.sample_aspect_ratio:
        stream.codec_context.sample_aspect_ratio = source.sample_aspect_ratio
    for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
        setattr(stream.codec_context, name, getattr(source.codec_context, name))
    matrix = display_matrix(frame)
    if matrix is not None:
        stream.set_display_matrix(matrix.tolist())
    return stream
