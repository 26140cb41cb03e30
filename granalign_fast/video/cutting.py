"""Cut a moment out of a video file: copy its packets, or encode it for an exact cut."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing

from .container import Video, ffmpeg_reason, open_video
from .cut_containers import FORMATS, add_copy, check_copy
from .cut_encoding import add_encoder
from .cut_tracks import plan_tracks, stream_name
from .display_order import DisplayOrder
from .frames import probe
from .key_frames import decode_or_skip, key_frame_before, packets_from_key_frame
from .track_clock import raise_dts, shift_timestamps

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_REORDERING = 1
"""Seconds by which a frame may precede, in the file, another that is shown before it."""

_INTERLEAVING = 2
"""Seconds by which audio may lie behind the video of the same time in a file."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The file that `cut` wrote.

    Attributes:
        path: the file.
        start: second of the source at which the file begins, counted as in `read_frames`. It is
            below 0 where a copy begins with pictures that an edit list hides, as in a trimmed MP4.
        end: second of the source at which the file ends.
        copied: True if the video was copied, False if it was encoded.
        left_out: a line for each stream of the source that the file lacks, with the reason, and
            for each of which damaged packets were skipped.
    """

    path: Path
    start: float
    end: float
    copied: bool
    left_out: tuple[str, ...] = ()


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
    `end`. With `exact` the video is encoded, from the frame that is shown at `start` to the last
    one that begins before `end`: to H.264, or to VP9 in WebM; more than 8 bits stay at least 10.

    All readable sound and text subtitles are copied in both cases, sound as whole packets of some
    hundredths of a second. Text is converted where the container does not take its codec, and in
    an exact cut so is sound. Other streams are left out, and `Cut.left_out` names them.

    Args:
        path: the video.
        start: start of the moment, in seconds from the container's start.
        end: end of the moment, in the same seconds; a value beyond the video's end means its end.
        out: a path that ends in .mp4, .mov, .mkv or .webm. An existing file is replaced when the
            new one is complete; on an error nothing is changed.
        exact: encode the video, so that the cut begins and ends exactly at `start` and `end`.

    Raises:
        GranAlignError: the moment is empty, outside the video or before its first picture; `out`
            is the video itself, has another suffix or cannot be written; its container does not
            take the codec of the picture or any of the sound; the video has no presentation times
            to copy; or it cannot be read.
    """
    from av.error import FFmpegError

    path, out = Path(path), Path(out)
    check_cut(path, out, exact=exact)
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise GranAlignError(
            f"{path}: got a moment from {start} to {end} s, expected 0 <= start < end"
        )
    info = probe(path)
    if start >= info.duration:
        raise GranAlignError(
            f"{path}: got a moment from {start} s on, but the video ends at {info.duration:.3f} s"
        )
    if end <= info.first_frame:
        raise GranAlignError(
            f"{path}: got a moment that ends at {end} s, but the first picture is shown at "
            f"{info.first_frame:.3f} s"
        )
    end = min(end, info.duration)
    with open_video(path) as video, replacing(out) as sink:
        try:
            origin = round(video.ticks(Fraction(info.start)))
            begin, finish = video.exact_seconds(start), video.exact_seconds(end)
            key = key_frame_before(video, info, begin, exact=exact)
            cutter = _Cutter(video, out, origin, key, begin, finish, exact=exact)
            first, last = cutter.encode(sink) if exact else cutter.copy(sink)
            return Cut(out, first, last, not exact, cutter.left_out)
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


def check_cut(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, exact: bool = False
) -> None:
    """Raise if `cut` cannot write a cut of the video to `out`, whatever the moment.

    Raises:
        GranAlignError: `out` has no suffix of a cut, or is the video itself; or, without `exact`,
            its container does not take the codecs of the video, or the video cannot be copied.
    """
    path, out = Path(path), Path(out)
    if out.suffix.lower() not in FORMATS:
        raise GranAlignError(f"{out}: got suffix {out.suffix!r}, expected one of {list(FORMATS)}")
    if out.exists() and path.exists() and out.samefile(path):
        raise GranAlignError(f"{out}: got the video itself, expected another file to cut it to")
    if not exact:
        with open_video(path) as video:
            check_copy(video, out)


class _Cutter:
    """The writer of one cut; times are in units of the source's time base unless stated."""

    def __init__(
        self,
        video: Video,
        out: Path,
        origin: int,
        key: int,
        start: Fraction,
        end: Fraction,
        *,
        exact: bool,
    ) -> None:
        self._video = video
        self._out = out
        self._origin = origin
        """PTS of the container's start."""
        self._key = key
        """PTS of the key frame from which packets are read."""
        self._start = origin + video.ticks(start)
        self._end = origin + video.ticks(end)
        rate = video.stream.average_rate
        half = Fraction(video.ticks(1 / rate)) / 2 if rate else Fraction(0)
        self._key_is_late = key > self._start + half
        """True if the picture begins later than the moment."""
        tracks, self._left_out = plan_tracks(video, out.suffix.lower(), exact=exact)
        self._tracks = {track.source.index: track for track in tracks}
        self._damaged: Counter[int] = Counter()
        """Packets that could not be written, by the number of their stream."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line for each stream that the cut lacks, or of which it lacks packets."""
        return self._left_out + tuple(
            f"{stream_name(self._tracks[index].source)}: {count} damaged packets"
            for index, count in sorted(self._damaged.items())
        )

    def copy(self, sink: IO[bytes]) -> tuple[float, float]:
        """Copy packets from the key frame on; return start and end of the cut in seconds."""
        key = self._key
        # If no picture precedes the start, the cut begins at the start, and its picture later.
        begin = math.floor(self._start) if self._key_is_late else key
        end = math.ceil(self._end)
        last = key
        with self._open(sink) as target:
            with self._write_header(target):
                stream = add_copy(target, self._video.stream)
                self._add_tracks(target)
            # A frame behind the end is needed if a frame before the end follows it in the file,
            # and so are the frames between the two: hold such packets back until that is known.
            held: list[Packet[Any]] = []
            last_dts: int | None = None
            started = False
            for packet in self._read_packets(begin):
                if packet.stream_index != self._video.stream.index:
                    self._mux_track(target, packet, begin)
                    continue
                started = started or packet.pts == key
                if not started or packet.pts is None or packet.pts < key:
                    continue
                held.append(packet)
                if packet.pts < end:
                    for one in held:
                        end = max(end, one.pts or 0)
                        last = max(last, (one.pts or 0) + self._duration(one))
                        shift_timestamps(one, begin)
                        one.duration = self._duration(one)
                        one.stream = stream
                        if raise_dts(one, last_dts):
                            last_dts = one.dts
                            target.mux(one)
                    held.clear()
            self._flush_tracks(target)
        return self._to_seconds(Fraction(begin)), self._to_seconds(Fraction(last))

    def encode(self, sink: IO[bytes]) -> tuple[float, float]:
        """Encode the frames from start to end; return start and end of the cut in seconds."""
        video = self._video
        begin = math.floor(self._start)
        shown: VideoFrame | None = None
        stream: VideoStream | None = None
        order = DisplayOrder() if video.is_reordered else None
        with self._open(sink) as target:

            def encode_frame(frame: VideoFrame) -> None:
                nonlocal stream
                # The first frame decides size and pixel format, which the header needs.
                if stream is None:
                    with self._write_header(target):
                        stream = add_encoder(target, video, frame, self._out.suffix.lower())
                        self._add_tracks(target)
                converted = frame.reformat(format=stream.pix_fmt)
                converted.pts = max(frame.pts or 0, begin) - begin
                converted.time_base = video.time_base
                converted.pict_type = 0  # the encoder chooses I, P or B
                target.mux(stream.encode(converted))

            def decode(packet: Packet[Any] | None) -> None:
                nonlocal shown
                if order is not None and packet is not None:
                    order.send(packet)
                for frame in decode_or_skip(video, packet):
                    if order is not None:
                        order.number(frame)
                    shown = self._advance(shown, frame, encode_frame)

            # Packets of the other tracks wait until the header is written.
            waiting: list[Packet[Any]] = []
            started = False
            for packet in self._read_packets(min(self._key, begin)):
                if packet.stream_index != video.stream.index:
                    waiting.append(packet)
                elif started := started or packet.pts == self._key:
                    decode(packet)
                if stream is not None:
                    for waited in waiting:
                        self._mux_track(target, waited, begin)
                    waiting.clear()
            # The decoder returns its last frames when it is flushed.
            decode(None)
            if shown is not None:
                encode_frame(shown)
            if stream is None:
                raise GranAlignError(f"{video.path}: no frame between start and end can be decoded")
            for waited in waiting:
                self._mux_track(target, waited, begin)
            target.mux(stream.encode(None))
            self._flush_tracks(target)
        return self._to_seconds(self._start), self._to_seconds(self._end)

    def _advance(
        self, shown: VideoFrame | None, frame: VideoFrame, encode_frame: Any
    ) -> VideoFrame | None:
        """Encode the frame before `frame` if it was shown in the moment; return the newest frame.

        A frame is shown until the next one begins, so it is encoded when the next one is known.
        """
        if frame.pts is None or frame.pts >= self._end:
            return shown
        if shown is not None and frame.pts <= (shown.pts or 0):  # damaged, or of an older clock
            return shown
        if shown is not None and frame.pts > self._start:
            encode_frame(shown)
        return frame

    def _open(self, sink: IO[bytes]) -> OutputContainer:
        import av

        return av.open(sink, "w", format=FORMATS[self._out.suffix.lower()])

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
            raise GranAlignError(
                f"{self._out}: does not take the codecs of {self._video.path} "
                f"({ffmpeg_reason(error)}); convert the video, or name a file that ends in .mkv"
            ) from None

    def _read_packets(self, pts: int) -> Iterator[Packet[Any]]:
        """Yield packets of all tracks, from the last key frame up to `pts` on, to the end.

        They end when picture and sound are behind the moment's end; text comes too seldom to wait.
        """
        video, finished = self._video, set()
        sounds = [one.source for one in self._tracks.values() if one.source.type == "audio"]
        timed = {video.stream.index, *(sound.index for sound in sounds)}
        tracks = [track.source for track in self._tracks.values()]
        end = self._end * video.time_base + _REORDERING
        # A seek would go to the first picture, and lose the sound before it.
        seek = not self._key_is_late
        for packet in packets_from_key_frame(video, pts, tracks, seek=seek):
            timestamp = packet.pts if packet.dts is None else packet.dts
            if timestamp is not None and packet.time_base and packet.stream_index in timed:
                time = timestamp * packet.time_base
                if time >= end:
                    finished.add(packet.stream_index)
                # An audio stream that ends before the moment never counts as finished.
                late = video.stream.index in finished and time >= end + _INTERLEAVING
                if late or finished == timed:
                    return
            yield packet

    def _add_tracks(self, target: OutputContainer) -> None:
        for track in self._tracks.values():
            track.add_to(target)

    def _mux_track(self, target: OutputContainer, packet: Packet[Any], begin: int) -> None:
        """Write what a cut that starts at `begin` has of a packet of sound or text.

        Damaged sound must not cost the picture: a packet that is refused is counted and skipped.
        """
        from av.error import FFmpegError, InvalidDataError

        index, base = packet.stream_index, self._video.time_base
        converted: list[Packet[Any]] = []
        try:
            converted += self._tracks[index].convert(packet, begin * base, self._end * base)
        except (FFmpegError, ValueError):
            self._damaged[index] += 1
        try:
            target.mux(converted)
        except (InvalidDataError, ValueError) as error:
            if isinstance(error.__context__, OSError):  # the disk is full, for example
                raise
            self._damaged[index] += 1

    def _flush_tracks(self, target: OutputContainer) -> None:
        for track in self._tracks.values():
            for packet in track.flush():
                target.mux(packet)

    def _duration(self, packet: Packet[Any]) -> int:
        rate = self._video.stream.average_rate
        return packet.duration or (round(self._video.ticks(1 / rate)) if rate else 0)

    def _to_seconds(self, time: Fraction) -> float:
        return float((time - self._origin) * self._video.time_base)
