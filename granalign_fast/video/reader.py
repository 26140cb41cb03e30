"""Choose the frames of clips in an open video, and decode as few packets as these frames need.

PTS is a presentation time stamp in units of the stream's time base.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.parsing.limits import MOST_PIXELS

from .container import DamagedVideoWarning, Video, check_clip_count, clip_count
from .display_order import DisplayOrder
from .packets import LONGEST_STILL, PacketReader
from .picture import displayed_picture

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

_RESTARTABLE = {
    *("h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "theora"),
    *("mjpeg", "prores", "dnxhd", "ffv1", "rawvideo", "ffvhuff", "huffyuv", "utvideo"),
}
"""Codecs whose decoding can restart at a key frame. This is an allow list because a codec's key
flags can be wrong: GIF marks every packet as a key frame."""


ClipNumbers = range | tuple[int, ...]
"""Clip numbers in ascending order."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame that represents a clip, or the frames of a clip of several.

    Attributes:
        clip: the clip's number k; the clip covers ``[k * clip_seconds, (k + 1) * clip_seconds)``.
        time: seconds from the container's start to the presentation of this frame, of several the
            first; 0 for the black frame of a clip before the first picture.
        image: uint8 RGB (height, width, 3), C-contiguous: the picture that a player shows,
            upright, in square pixels and in BT.709. Of several frames (frames, height, width, 3).
        missing: True if the file lacks a picture that belongs to the clip: its packets are
            missing or damaged, and the last good frame before takes its place.
        later: the times of the clip's frames after the first, in seconds; they never decrease.
    """

    clip: int
    time: float
    image: npt.NDArray[np.uint8]
    missing: bool = False
    later: tuple[float, ...] = ()


class FalseKeyFrame(Exception):
    """A packet is marked as a key frame, but decoding cannot start at it."""


class FrameReader:
    """A reader of the frames of clips; with `skip`, it does not decode unneeded packets.

    A clip has as many equal parts as frames; each frame is the one shown at the middle of its part.
    For each clip, packets are read up to the clip's end before they are decoded. Their time stamps
    tell which packets are shown at these times, and at which key frame decoding can start.

    Seeking to every clip was measured as an alternative and is nowhere better: reading packets
    without decoding takes a hundredth of the time, so a seek saves little, and it goes back to
    frames that are already decoded. The table has the processor time relative to decoding
    everything, on two cores, for 640 x 360 H.264 with three B-frames at 25 frames a second and
    clips of 2 s; "no frame skipping" is this reader without skipping frames that
    no other frame refers to:

    ==================  ====  ====  ====  =====
    frames per GOP        12    50   250   2500
    ==================  ====  ====  ====  =====
    this reader         0.26  0.63  0.70   0.72
    no frame skipping   0.30  0.78  0.96   1.03
    one seek per clip   0.34  0.76  2.83  23.61
    reading only        0.01  0.01  0.01   0.02
    ==================  ====  ====  ====  =====
    """

    def __init__(
        self, video: Video, clip_seconds: Fraction, *, skip: bool, frames_per_clip: int = 1
    ) -> None:
        self._video = video
        self._decoder = video.stream.codec_context
        self._codec = self._decoder.codec.canonical_name
        self._clip_seconds = clip_seconds
        self._per_clip = frames_per_clip
        self._packets = PacketReader(video, clip_seconds)
        # The number of a packet in decoding order is not that of its frame: decode everything.
        self._in_display_order = not video.is_reordered
        self._skip = skip and self._codec in _RESTARTABLE and self._in_display_order
        # Every H.264 packet states whether other frames refer to its frame. In other codecs the
        # statement may not hold across layers.
        self._skip_unreferenced = self._skip and self._codec == "h264"
        # Packets flow from `_pending` through the decoder to `_ready`, and one frame is current.
        self._pending: deque[Packet[Any]] = deque()
        self._ready: deque[VideoFrame] = deque()
        self._current: VideoFrame | None = None
        self._drained = False
        # PTS: the highest one sent to the decoder, and that of the last frame in `_ready`.
        self._sent_pts: int | None = None
        self._last_pts: int | None = None
        # PTS of the key frame at which decoding will restart, and of the key frame at which it has
        # restarted while its frame is not decoded yet.
        self._restart_pts: int | None = None
        self._unverified_pts: int | None = None
        self._display_order = DisplayOrder()
        # Behind a gap, frames from this PTS on are distrusted until a key frame from the second on.
        self._gap_pts: tuple[int, int] | None = None
        # Frames are distrusted until a key frame behind this PTS. The first damage is reported.
        self._distrusted_pts: int | None = None
        self._first_damage_pts: int | None = None

    def decode_first(self) -> tuple[Fraction, VideoFrame]:
        """Return the container's start, in units of the time base, and the first frame.

        Where the container has no start, or one more than an hour before the first frame, times
        count from the first frame.

        Raises:
            GranAlignError: no frame can be decoded.
        """
        packets, earliest = self._packets, None
        # A transport stream may be cut anywhere; players show it from its first key frame on.
        begun = not self._video.format_name.startswith("mpeg")
        while not self._ready and not self._drained:
            packet = packets.next_packet()
            if packet is not None and not packet.is_discard and packet.pts is not None:
                begun = begun or packet.is_keyframe
                if begun and (earliest is None or packet.pts < earliest):
                    earliest = packet.pts
            self._decode(packet)
        if not self._ready:
            reason = "nothing in it can be decoded"
            if not self._decoder.width:  # the decoder has refused the size
                reason += f", or its frames have more than {MOST_PIXELS:,} pixels"
            self._raise_undecodable(reason)
        first = self._ready[0]
        assert first.pts is not None
        if self._video.start is not None:
            start = self._video.ticks(self._video.start)
            if first.pts - start <= self._video.ticks(LONGEST_STILL):
                return start, first
        # If the first frames are damaged, time still counts from the first packet's PTS.
        lost = self._first_damage_pts is not None and earliest is not None
        return Fraction(min(first.pts, earliest or 0) if lost else first.pts), first

    def _raise_undecodable(self, reason: str) -> NoReturn:
        path = self._video.path
        if self._packets.untimed and self._first_damage_pts is None:
            raise GranAlignError(
                f"{path}: its frames have no presentation times; remux it to MP4 or Matroska"
            )
        reason = self._packets.damage or reason
        raise GranAlignError(f"{path}: no frame of it can be shown ({reason}); get it again")

    def frames(self, clips: ClipNumbers | None = None, *, warn: bool = True) -> Iterator[Frame]:
        """Yield the frames of these clips, or of all, one by one; `warn` if the video is damaged.

        The field `clip` of each is its number among all frames of the video: with F frames in a
        clip, clip k has the numbers from F * k on. A truncated file may end within a clip.

        Raises:
            GranAlignError: no frame can be decoded.
            FalseKeyFrame: decoding restarted at a packet that is no key frame; read the video
                again without `skip`.
        """
        per_clip = self._per_clip
        last = math.inf if clips is None else (max(clips[-1:], default=-1) + 1) * per_clip - 1
        video, packets = self._video, self._packets
        start, first = self.decode_first()
        length = video.ticks(self._clip_seconds)
        number = decoded = 0
        # Frames without a picture of their own, returned when a good one follows, and the good one
        # before them.
        held: list[int] = []
        good: VideoFrame | None = None
        reason = None
        while number <= last or held:
            # 1. Read packets up to the clip's end. The video may end before that.
            clip, part = divmod(number, per_clip)
            begin, limit = start + clip * length, start + (clip + 1) * length
            self._read_ahead(math.ceil(limit))
            end: Fraction | int = limit
            if packets.done and packets.end is not None and packets.end < limit:
                seconds = float((packets.end - start) * video.time_base)
                if clip and clip >= clip_count(seconds, float(self._clip_seconds)):
                    break
                end = packets.end
            # 2. Drop packets that the frame at the middle of this part of the clip does not need.
            step = (end - begin) / per_clip
            middle = begin + step * part + step / 2
            if self._skip:
                self._skip_to_key_frame(math.floor(middle))
            expected = packets.pts_shown_at(math.floor(middle))
            requested = clips is None or clip in clips
            if not requested and self._skip and expected is not None:
                packets.forget_before(expected)
                decoded = number = number + 1
                continue
            # 3. Decode up to that frame.
            self._decode_until(math.floor(middle), expected)
            frame = self._current
            limit = limit if part + 1 == per_clip else begin + step * (part + 1)
            if frame is None and self._ready and (self._ready[0].pts or 0) < limit:
                frame = self._ready[0]  # the first frame appears after this middle
            if frame is None and expected is None and self._ready:
                # 4. Before the first picture a player shows black.
                if requested:
                    yield Frame(number, 0.0, np.zeros_like(self._picture(first)))
                decoded = number + 1
            elif frame is None or frame.pts is None or (expected or 0) - frame.pts > length:
                # 5. The picture cannot be decoded. Skipping may be the cause.
                if self._skip:
                    raise FalseKeyFrame
                if not self._ready and self._drained:
                    reason = "it cannot be decoded further"
                    break
                held.append(number)
            else:
                # 6. The picture is there; those before it that lack theirs get the one before.
                packets.forget_before(frame.pts)
                for lacking in held:
                    if clips is None or lacking // per_clip in clips:
                        if good is None:  # nothing before it can be decoded
                            yield Frame(lacking, 0.0, np.zeros_like(self._picture(first)), True)
                        else:
                            yield self._frame(lacking, good, start, missing=True)
                held.clear()
                good = frame
                if requested:
                    yield self._frame(number, frame, start, missing=self._is_in_gap(middle))
                decoded = number + 1
            number += 1
            check_clip_count(video.path, number // per_clip)
        if decoded == 0 and last >= 0:
            self._raise_undecodable("its beginning cannot be decoded")
        if warn and (reason is not None or number <= last):
            self._warn_of_damage(reason, start, Fraction(decoded, per_clip))

    def _frame(self, number: int, frame: VideoFrame, start: Fraction, *, missing: bool) -> Frame:
        """Return a decoded frame as the one of this number."""
        time = float(((frame.pts or 0) - start) * self._video.time_base)
        return Frame(number, max(0.0, time), self._picture(frame), missing)

    def _picture(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        return displayed_picture(frame, self._video.pixel_aspect)

    def _is_in_gap(self, time: Fraction) -> bool:
        """Return True if the packets of this time are missing in the file."""
        return any(begin <= time < end for begin, end in self._packets.gaps)

    def _warn_of_damage(self, reason: str | None, start: Fraction, clips: Fraction) -> None:
        """Warn of a discontinuous clock, of frames that end early, and of decoded damage."""
        path, packets = self._video.path, self._packets

        def seconds(pts: Fraction | int) -> float:
            return float((pts - start) * self._video.time_base)

        messages = [
            f"packets from {seconds(begin):.2f} to {seconds(end):.2f} s are missing; the frame "
            f"before takes their place"
            for begin, end in packets.gaps
        ]
        messages += [
            f"its clock begins again at {seconds(pts):.2f} s; its times continue there"
            for pts in packets.restarts
        ]
        if reason := packets.damage or reason:
            end = min(clips * self._clip_seconds, Fraction(seconds(packets.end or start)))
            messages.append(f"{reason}; its frames end at {float(end):.2f} s")
        elif self._first_damage_pts is not None:
            near = seconds(self._first_damage_pts)
            messages.append(f"damaged near {near:.2f} s; earlier frames are used instead")
        if messages:
            text = f"{path}: damaged or discontinuous: {'; '.join(messages)}"
            warnings.warn(text, DamagedVideoWarning, stacklevel=4)

    def _read_ahead(self, limit: int) -> None:
        """Read packets until every packet with a PTS below `limit` is read."""
        packets = self._packets
        while packets.watermark is None or packets.watermark < limit:
            packet = packets.next_packet()
            if packet is None:
                return
            self._pending.append(packet)

    def _skip_to_key_frame(self, limit: int) -> None:
        """Drop the pending packets before the last key frame with a PTS up to `limit`."""
        keys = (
            position
            for position in reversed(range(len(self._pending)))
            if self._pending[position].is_keyframe
            and not self._pending[position].is_discard
            and (pts := self._pending[position].pts) is not None
            and pts <= limit
        )
        if position := next(keys, None):
            for _ in range(position):
                self._pending.popleft()
            self._restart_pts = self._pending[0].pts

    def _decode_until(self, middle: int, expected: int | None) -> None:
        """Decode until the frame shown at `middle` is current, or cannot come any more."""
        while True:
            while self._ready and (self._ready[0].pts or 0) <= middle:
                self._current = self._ready.popleft()
            if self._current is not None and self._current.pts == expected:
                return
            if self._ready or self._drained:
                return
            packet = self._pending.popleft() if self._pending else self._packets.next_packet()
            self._decode(packet, expected)

    def _decode(self, packet: Packet[Any] | None, expected: int | None = None) -> None:
        """Send a packet to the decoder, or None at the end, and accept the frames it returns."""
        from av.error import FFmpegError

        decoder = self._decoder
        if packet is None:
            self._drained = True
        elif self._restart_pts is not None and packet.pts == self._restart_pts:
            # Packets before this key frame were skipped: the decoder must forget their frames.
            decoder.flush_buffers()
            self._ready.clear()
            self._unverified_pts, self._restart_pts = packet.pts, None
            self._distrusted_pts = None
        if packet is not None:
            if packet.pts is not None:
                sent = self._sent_pts
                self._sent_pts = packet.pts if sent is None else max(sent, packet.pts)
                if packet.pts in self._packets.resumed and not packet.is_keyframe:
                    low, _ = self._gap_pts or (packet.pts, 0)
                    self._gap_pts = low, packet.pts
                if not self._in_display_order:
                    self._display_order.send(packet)
            if packet.is_corrupt:
                self._distrust()
            if self._skip_unreferenced:
                early = packet.pts is not None and expected is not None and packet.pts < expected
                decoder.skip_frame = "NONREF" if early else "DEFAULT"
        try:
            frames = decoder.decode(packet)
        except FFmpegError:
            self._distrust()
            return
        for frame in frames:
            self._accept(frame)

    def _distrust(self) -> None:
        """Distrust frames until a new key frame: they may contain parts of damaged ones."""
        if self._sent_pts is not None:
            self._distrusted_pts = self._sent_pts
            if self._first_damage_pts is None:
                self._first_damage_pts = self._sent_pts

    def _accept(self, frame: VideoFrame) -> None:
        """Append a decoded frame to `_ready`, unless it is out of order or may be damaged."""
        if not self._in_display_order:
            self._display_order.number(frame)
        pts = frame.pts
        if pts is None or (self._last_pts is not None and pts <= self._last_pts):
            return
        # The first frame after a restart must be the key frame itself.
        if self._unverified_pts is not None:
            if pts < self._unverified_pts:  # it refers to frames before the key frame
                return
            if pts != self._unverified_pts or not frame.key_frame or frame.is_corrupt:
                raise FalseKeyFrame
            self._unverified_pts = None
        if not self._packets.has_pts(pts):  # the decoder has guessed the PTS
            return
        # A key frame behind the gap ends the distrust of frames behind it.
        if self._gap_pts is not None and pts >= self._gap_pts[0]:
            if not frame.key_frame or pts < self._gap_pts[1]:
                return
            self._gap_pts = None
        # A key frame behind the damage ends the distrust.
        if frame.is_corrupt:
            self._distrusted_pts = max(pts, self._distrusted_pts or pts)
            if self._first_damage_pts is None:
                self._first_damage_pts = pts
        elif self._distrusted_pts is not None and frame.key_frame and pts > self._distrusted_pts:
            self._distrusted_pts = None
        if self._distrusted_pts is None:
            self._last_pts = pts
            self._ready.append(frame)
