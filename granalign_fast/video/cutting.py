"""Cuts a moment out of a video file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing

from .container import Video, display_matrix, open_video, short
from .frames import probe

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
_CRF = "18"  # hardly told from the original
# Seconds by which a frame may precede another in a file that is shown before it.
_REORDERING = 1
# Seconds by which audio may lie behind its video in a file.
_INTERLEAVING = 2


@dataclass(frozen=True, slots=True)
class Cut:
    """What `cut` wrote.

    Attributes:
        path: the file.
        start: seconds of the source, counted as in `read_frames`, at which it begins.
        end: seconds of the source at which it ends.
        copied: the video was copied; otherwise it was encoded anew.
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
    """Write the moment from `start` to `end` of a video to a file of its own.

    Without `exact` nothing is encoded: the file begins at the last key frame by `start` (or within
    half a frame after it), seconds early if key frames are far apart, and ends within a few frames
    of `end`. With `exact` the video is encoded to H.264, from the frame that is shown at `start` to
    the last one that begins before `end`. Audio is copied in both cases, to the packet, some
    hundredths of a second; subtitles and data are left out.

    Args:
        path: the video.
        start: seconds from the video's first frame.
        end: the same; one beyond the video's end means its end.
        out: a name that ends in .mp4, .mkv or .mov. An existing file is replaced when the new one
            is complete; on an error nothing is changed.
        exact: encode, so that the cut is where it was asked for.

    Raises:
        GranAlignError: the moment is empty or outside the video, `out` is the video itself, has
            another suffix or cannot be written, its format does not take the video's or the audio's
            codec, or the video cannot be read.
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
            rate = None if exact else video.stream.average_rate
            near = Fraction(start) + Fraction(1, 2) / rate if rate else Fraction(start)
            with open_video(path) as other:
                key = _key_frame(other, origin + video.ticks(near))
            if exact and not _stands_alone(path, key):
                with open_video(path) as other:
                    key = _key_frame(other, Fraction(origin))
            job = _Job(video, out, origin, key, Fraction(start), Fraction(end))
            first, last = job.encode(sink) if exact else job.copy(sink)
            return Cut(out, first, last, not exact)
        except (FFmpegError, ValueError, IndexError) as error:
            if isinstance(error, GranAlignError):
                raise
            if isinstance(error.__context__, OSError):  # closing a file that is full fails again
                raise error.__context__ from None
            raise GranAlignError(
                f"{out}: cannot be cut from {path} ({short(error)}); get the video again, "
                f"or convert it to MP4"
            ) from None


class _Job:
    """One cut, in presentation times of the source."""

    def __init__(
        self, video: Video, out: Path, origin: int, key: int, start: Fraction, end: Fraction
    ) -> None:
        self._video = video
        self._out = out
        self._origin = origin
        self._key = key
        self._start = origin + video.ticks(start)
        self._end = origin + video.ticks(end)
        self._sound = list(video.container.streams.audio)

    def copy(self, sink: IO[bytes]) -> tuple[float, float]:
        """Copy packets from a key frame on; when the written video begins and ends, in seconds."""
        key = self._key
        begin = Fraction(key)
        end = math.ceil(self._end)
        last = key
        with self._open(sink) as target:
            with self._adding(target):
                stream = target.add_stream_from_template(self._video.stream)
                sounds = self._add_sounds(target)
            # A frame behind the end is of use if one before the end follows it in the file, and
            # then so are those between the two.
            held: list[Packet[Any]] = []
            started = False
            for packet in self._packets(key):
                if packet.stream_index != self._video.stream.index:
                    self._mux_sound(target, packet, sounds, begin)
                    continue
                started = started or packet.pts == key
                if not started or packet.pts is None or packet.pts < key:
                    continue
                held.append(packet)
                if packet.pts < end:
                    for one in held:
                        end = max(end, one.pts or 0)
                        last = max(last, (one.pts or 0) + self._duration(one))
                        _shift(one, key)
                        one.duration = self._duration(one)
                        one.stream = stream
                        target.mux(one)
                    held.clear()
        return self._seconds(begin), self._seconds(Fraction(last))

    def encode(self, sink: IO[bytes]) -> tuple[float, float]:
        """Encode the frames in between; when the written video begins and ends, in seconds."""
        video = self._video
        begin = math.floor(self._start)
        shown: VideoFrame | None = None
        stream: VideoStream | None = None
        sounds: dict[int, Any] = {}
        with self._open(sink) as target:

            def put(frame: VideoFrame) -> None:
                nonlocal stream, sounds
                if stream is None:
                    with self._adding(target):
                        stream = _encoder(target, video, frame)
                        sounds = self._add_sounds(target)
                turned = frame.reformat(format=stream.pix_fmt)
                turned.pts = max(frame.pts or 0, begin) - begin
                turned.time_base = video.time_base
                turned.pict_type = 0  # the encoder decides
                target.mux(stream.encode(turned))

            early: list[Packet[Any]] = []
            started = False
            for packet in self._packets(self._key):
                if packet.stream_index != video.stream.index:
                    # The file's header must know the video first.
                    if self._is_heard(packet, self._start):
                        early.append(packet)
                elif started := started or packet.pts == self._key:
                    for frame in _decoded(video, packet):
                        shown = self._next(shown, frame, put)
                if stream is not None:
                    for sound in early:
                        self._mux_sound(target, sound, sounds, self._start)
                    early.clear()
            for frame in _decoded(video, None):
                shown = self._next(shown, frame, put)
            if shown is not None:
                put(shown)
            if stream is None:
                raise GranAlignError(f"{video.path}: no frame between start and end can be decoded")
            for sound in early:
                self._mux_sound(target, sound, sounds, self._start)
            target.mux(stream.encode(None))
        return self._seconds(self._start), self._seconds(self._end)

    def _next(self, shown: VideoFrame | None, frame: VideoFrame, put: Any) -> VideoFrame | None:
        """Encode the frame before this one, if it was shown within the moment."""
        if frame.pts is None or frame.pts >= self._end:
            return shown
        if shown is not None and frame.pts > self._start:
            put(shown)
        return frame

    def _open(self, sink: IO[bytes]) -> OutputContainer:
        import av

        return av.open(sink, "w", format=_FORMATS[self._out.suffix.lower()])

    @contextmanager
    def _adding(self, target: OutputContainer) -> Iterator[None]:
        """Streams are added in this block, and then the header tells whether the format has them.

        Raises:
            GranAlignError: it does not.
        """
        from av.error import FFmpegError

        try:
            yield
            target.start_encoding()
        except (FFmpegError, ValueError) as error:
            matroska = self._out.suffix.lower() == ".mkv"
            remedy = "convert the video" if matroska else "a name that ends in .mkv takes the most"
            raise GranAlignError(
                f"{self._out}: does not take the codecs of {self._video.path} ({short(error)}); "
                f"{remedy}"
            ) from None

    def _packets(self, key: int) -> Iterator[Packet[Any]]:
        """Packets of video and audio from the key frame on, until both are behind the end."""
        video, over = self._video, set()
        streams = [video.stream, *self._sound]
        end = self._end * video.time_base + _REORDERING
        for packet in _from_key(video, key, streams):
            mark = packet.pts if packet.dts is None else packet.dts
            if mark is not None and packet.time_base:
                time = mark * packet.time_base
                if time >= end:
                    over.add(packet.stream_index)
                # Audio may end before the moment does, and then never be over.
                late = video.stream.index in over and time >= end + _INTERLEAVING
                if late or len(over) == len(streams):
                    return
            yield packet

    def _add_sounds(self, target: OutputContainer) -> dict[int, Any]:
        return {sound.index: target.add_stream_from_template(sound) for sound in self._sound}

    def _mux_sound(
        self, target: OutputContainer, packet: Packet[Any], sounds: dict[int, Any], begin: Fraction
    ) -> None:
        """Copy a packet of audio that lies in the moment."""
        if self._is_heard(packet, begin):
            _shift(packet, round(begin * self._video.time_base / packet.time_base))
            packet.stream = sounds[packet.stream_index]
            target.mux(packet)

    def _is_heard(self, packet: Packet[Any], begin: Fraction) -> bool:
        if packet.pts is None or not packet.time_base:
            return False
        time = packet.pts * packet.time_base / self._video.time_base
        return begin <= time < self._end

    def _duration(self, packet: Packet[Any]) -> int:
        rate = self._video.stream.average_rate
        return packet.duration or (round(self._video.ticks(1 / rate)) if rate else 0)

    def _seconds(self, time: Fraction) -> float:
        return float((time - self._origin) * self._video.time_base)


def _key_frame(video: Video, limit: Fraction) -> int:
    """When the last key frame by `limit` is shown; leaves the file somewhere behind it."""
    key = None
    for packet in _from_key(video, math.floor(limit), [video.stream]):
        if packet.pts is None:
            continue
        if packet.is_keyframe and not packet.is_discard and packet.pts <= limit:
            key = packet.pts
        elif key is not None and (packet.pts if packet.dts is None else packet.dts) > limit:
            break
    if key is None:
        raise GranAlignError(f"{video.path}: no key frame at the start or before it")
    return key


def _stands_alone(path: Path, key: int) -> bool:
    """Whether a key frame can be decoded without those before it; some are none."""
    with open_video(path, threads=1) as video:
        started = False
        for packet in chain(_from_key(video, key, [video.stream]), [None]):
            if started := started or packet is None or packet.pts == key:
                for frame in _decoded(video, packet):
                    if frame.pts is not None and frame.pts >= key:
                        return frame.pts == key and frame.key_frame and not frame.is_corrupt
    return False


def _from_key(video: Video, time: int, streams: list[Any]) -> Iterator[Packet[Any]]:
    """Packets from the key frame by `time` on, or from the file's beginning."""
    from av.error import FFmpegError

    container, index = video.container, video.stream.index
    begin = container.start_time or 0
    # Other formats have no index of key frames, and are searched wrongly.
    if video.kind.startswith(("mov", "matroska")):
        packets: list[Packet[Any]] = []
        try:
            container.seek(time, stream=video.stream)
            found = container.demux(streams)
            for packet in found:
                packets.append(packet)
                if packet.stream_index == index and packet.size:
                    if packet.is_keyframe and packet.pts is not None and packet.pts <= time:
                        yield from (one for one in packets if one.size)
                        yield from (one for one in found if one.size)
                        return
                    break
        except FFmpegError:
            pass
        container.seek(begin)
    yield from (packet for packet in container.demux(streams) if packet.size)


def _decoded(video: Video, packet: Packet[Any] | None) -> list[VideoFrame]:
    """The frames that a packet, or the end, brings; none where it is damaged."""
    from av.error import FFmpegError

    try:
        return video.stream.codec_context.decode(packet)
    except FFmpegError:
        return []


def _shift(packet: Packet[Any], by: int) -> None:
    packet.pts = None if packet.pts is None else packet.pts - by
    packet.dts = None if packet.dts is None else packet.dts - by


def _encoder(target: OutputContainer, video: Video, frame: VideoFrame) -> VideoStream:
    """An H.264 stream for frames like this one."""
    source = video.stream
    stream = target.add_stream(
        "libx264", rate=source.average_rate or 25, options={"crf": _CRF, "preset": "medium"}
    )
    stream.width, stream.height = frame.width, frame.height
    formats = {one.name for one in stream.codec_context.codec.video_formats or ()}
    # Half the colour samples of an odd number of pixels is no number.
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
