"""Chooses the frames of an open video, and decodes no more than they need."""

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

from .container import DamagedVideoWarning, Video, clip_count, upright
from .packets import Packets

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

# Codecs whose key frames need nothing before them, so that what no clip asks for is not decoded.
# (GIF marks every packet as a key, which is why this is no list of exceptions.)
_RESTARTABLE = {
    *("h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "theora"),
    *("mjpeg", "prores", "dnxhd", "ffv1", "rawvideo", "ffvhuff", "huffyuv", "utvideo"),
}


Wanted = range | tuple[int, ...]
"""Clips in the order of time."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture that stands for a clip.

    Attributes:
        clip: which one; clip k covers ``[k * clip_seconds, (k + 1) * clip_seconds)``.
        time: seconds from the video's first frame to the moment at which this one appears.
        image: uint8 RGB (height, width, 3), C-contiguous, upright, in the size of the file.
    """

    clip: int
    time: float
    image: npt.NDArray[np.uint8]


class NoRestart(Exception):
    """What was marked as a key frame is none."""


class Reader:
    """Chooses the frames of one open video; `skip` leaves out what need not be decoded.

    Packets are looked at before they are decoded, up to the end of the clip: then it is known which
    packet is shown at the clip's middle, and at which key frame decoding can begin.

    Seeking to every clip was measured too, and is no better anywhere: reading packets without
    decoding them takes a hundredth of the time, so that little is won by passing over them, and a
    seek goes back to frames that are decoded already. Processor time on two cores for 640 x 360
    H.264 with three B-frames at 25 frames a second and clips of 2 s, in parts of that for decoding
    everything; "kept" is this reader without leaving out frames that no other frame needs:

    ==================  ====  ====  ====  =====
    frames a key frame    12    50   250   2500
    ==================  ====  ====  ====  =====
    this reader         0.26  0.63  0.70   0.72
    kept                0.30  0.78  0.96   1.03
    a seek a clip       0.34  0.76  2.83  23.61
    reading only        0.01  0.01  0.01   0.02
    ==================  ====  ====  ====  =====
    """

    def __init__(self, video: Video, clip: Fraction, *, skip: bool) -> None:
        self._video = video
        self._decoder = video.stream.codec_context
        self._codec = self._decoder.codec.canonical_name
        self._clip = clip
        self._packets = Packets(video, clip)
        self._skip = skip and self._codec in _RESTARTABLE
        # Which frames no other frame needs is written in every H.264 packet; elsewhere that is not
        # certain to hold across layers.
        self._skip_unused = self._skip and self._codec == "h264"
        self._pending: deque[Packet[Any]] = deque()
        self._ready: deque[VideoFrame] = deque()
        self._held: VideoFrame | None = None
        self._fed: int | None = None
        self._drained = False
        self._last: int | None = None
        self._restart: int | None = None
        self._unproven: int | None = None
        self._doubt: int | None = None
        self._damaged_at: int | None = None

    def begin(self) -> tuple[int, VideoFrame]:
        """The presentation time from which all others count, and the first frame."""
        packets, earliest = self._packets, None
        # A transport stream may be cut anywhere, and then begins to be shown at its first key.
        begun = not self._video.kind.startswith("mpeg")
        while not self._ready and not self._drained:
            packet = packets.next()
            if packet is not None and not packet.is_discard and packet.pts is not None:
                begun = begun or packet.is_keyframe
                if begun and (earliest is None or packet.pts < earliest):
                    earliest = packet.pts
            self._decode(packet)
        if not self._ready:
            self._refuse("nothing in it can be decoded")
        first = self._ready[0]
        assert first.pts is not None
        # A broken beginning must not move everything after it.
        lost = self._damaged_at is not None and earliest is not None
        return min(first.pts, earliest or 0) if lost else first.pts, first

    def _refuse(self, reason: str) -> NoReturn:
        path = self._video.path
        if self._packets.untimed and self._damaged_at is None:
            raise GranAlignError(
                f"{path}: its frames have no presentation times; remux it to MP4 or Matroska"
            )
        reason = self._packets.damage or reason
        raise GranAlignError(f"{path}: no frame of it can be shown ({reason}); get it again")

    def frames(self, wanted: Wanted | None = None, *, warn: bool = True) -> Iterator[Frame]:
        """The frames of the wanted clips, or of all; `warn` if the video is damaged."""
        last = math.inf if wanted is None else max(wanted[-1:], default=-1)
        video, packets = self._video, self._packets
        start, _ = self.begin()
        length = video.ticks(self._clip)
        clip = 0
        reason = None
        while reason is None and clip <= last:
            begin, limit = start + clip * length, start + (clip + 1) * length
            self._look_ahead(math.ceil(limit))
            middle = begin + length / 2
            if packets.done and packets.end is not None and packets.end < limit:
                seconds = float((packets.end - start) * video.time_base)
                if clip and clip >= clip_count(seconds, float(self._clip)):
                    break
                middle = (begin + packets.end) / 2
            if self._skip:
                self._leave_out(math.floor(middle))
            expected = packets.shown_at(math.floor(middle))
            asked = wanted is None or clip in wanted
            if not asked and self._skip and expected is not None:
                packets.forget(expected)
                clip += 1
                continue
            self._decode_until(math.floor(middle), expected)
            frame = self._held
            if frame is None and self._ready and (self._ready[0].pts or 0) < limit:
                frame = self._ready[0]  # nothing is shown at the middle, but later in this clip
            if frame is None or frame.pts is None or (expected or 0) - frame.pts > length:
                reason = "it cannot be decoded further"
                break
            packets.forget(frame.pts)
            time = float((frame.pts - start) * video.time_base)
            if asked:
                yield Frame(clip, time, upright(frame))
            clip += 1
        if clip == 0 and last >= 0:
            self._refuse("its beginning cannot be decoded")
        if warn and (reason is not None or clip <= last):
            self._warn(reason, start, clip)

    def _warn(self, reason: str | None, start: int, clips: int) -> None:
        path, reason = self._video.path, self._packets.damage or reason
        if reason:
            end = (self._packets.end or start) - start
            seconds = float(min(clips * self._clip, end * self._video.time_base))
            message = f"{path}: damaged: {reason}; its frames end at {seconds:.2f} s"
        elif self._damaged_at is not None:
            seconds = float((self._damaged_at - start) * self._video.time_base)
            message = f"{path}: damaged near {seconds:.2f} s; frames before it stand in"
        else:
            return
        warnings.warn(message, DamagedVideoWarning, stacklevel=4)

    def _look_ahead(self, limit: int) -> None:
        """Read packets until all that begin before `limit` are known."""
        packets = self._packets
        while packets.watermark is None or packets.watermark < limit:
            packet = packets.next()
            if packet is None:
                return
            self._pending.append(packet)

    def _leave_out(self, earliest: int) -> None:
        """Drop the packets before the last key frame that begins by `earliest`."""
        keys = (
            place
            for place in reversed(range(len(self._pending)))
            if self._pending[place].is_keyframe
            and not self._pending[place].is_discard
            and (pts := self._pending[place].pts) is not None
            and pts <= earliest
        )
        if place := next(keys, None):
            for _ in range(place):
                self._pending.popleft()
            self._restart = self._pending[0].pts

    def _decode_until(self, middle: int, expected: int | None) -> None:
        """Decode until the frame that is shown at `middle` is held, or can no longer come."""
        while True:
            while self._ready and (self._ready[0].pts or 0) <= middle:
                self._held = self._ready.popleft()
            if self._held is not None and self._held.pts == expected:
                return
            if self._ready or self._drained:
                return
            packet = self._pending.popleft() if self._pending else self._packets.next()
            self._decode(packet, expected)

    def _decode(self, packet: Packet[Any] | None, expected: int | None = None) -> None:
        """Give a packet to the decoder, None for the end; frames that can be trusted get ready."""
        from av.error import FFmpegError

        decoder = self._decoder
        if packet is None:
            self._drained = True
        elif self._restart is not None and packet.pts == self._restart:
            decoder.flush_buffers()
            self._ready.clear()
            self._unproven, self._restart, self._doubt = packet.pts, None, None
        if packet is not None:
            if packet.pts is not None:
                self._fed = packet.pts if self._fed is None else max(self._fed, packet.pts)
            if packet.is_corrupt:
                self._distrust()
            if self._skip_unused:
                early = packet.pts is not None and expected is not None and packet.pts < expected
                decoder.skip_frame = "NONREF" if early else "DEFAULT"
        try:
            frames = decoder.decode(packet)
        except FFmpegError:
            self._distrust()
            return
        for frame in frames:
            self._take(frame)

    def _distrust(self) -> None:
        """From here on frames may show remains of others, until a new key frame."""
        if self._fed is not None:
            self._doubt = self._fed
            if self._damaged_at is None:
                self._damaged_at = self._fed

    def _take(self, frame: VideoFrame) -> None:
        pts = frame.pts
        if pts is None or (self._last is not None and pts <= self._last):
            return
        if self._unproven is not None:
            if pts < self._unproven:  # needs frames from before the key frame
                return
            if pts != self._unproven or not frame.key_frame or frame.is_corrupt:
                raise NoRestart
            self._unproven = None
        if not self._packets.knows(pts):  # a decoder's guess
            return
        if frame.is_corrupt:
            self._doubt = max(pts, self._doubt or pts)
            if self._damaged_at is None:
                self._damaged_at = pts
        elif self._doubt is not None and frame.key_frame and pts > self._doubt:
            self._doubt = None
        if self._doubt is None:
            self._last = pts
            self._ready.append(frame)
