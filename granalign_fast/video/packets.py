"""Read the packets of a video in decoding order on one clock; detect gaps and truncation.

PTS is a packet's presentation time stamp, DTS its decoding time stamp, both in units of the
stream's time base.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .container import Video, ffmpeg_reason
from .gif_clock import GifClock
from .track_clock import TrackClock, shift_timestamps
from .truncation import REST_IS_MISSING, announced_end, find_truncation, matches_avi_index

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

LONGEST_STILL = Fraction(3600)
"""Seconds: no real video shows one picture for longer, but a damaged time stamp can claim so."""

_LONGEST_REORDERING = Fraction(20)
"""Seconds: in a real video the PTS and DTS of a packet are never further apart."""

_SHORTEST_GAP = Fraction(1)
"""Seconds: shorter steps in the time stamps are normal (reordering, streams that start apart)."""

_RESTART_TOLERANCE = Fraction(10)
"""Seconds: a clock that begins again does so this near to the container's start."""

_LOOKAHEAD = 12
"""Packets of the video that are read ahead where the time stamps step, to tell a new clock, which
they follow, from a single damaged time stamp, which they do not."""

_MATROSKA_HEADERS = 1000
"""Bytes between two packets of a Matroska file: headers of blocks and clusters take under 100."""


class PacketReader:
    """A reader of a video's packets whose time stamps form one clock to the end of the file.

    Where the DTS steps and the packets that follow stay with the step, the clock is discontinuous:

    - A step ahead keeps its times. Without packets to cover it, it is a gap, and the packets behind
      it are marked in `resumed`. A step ahead by more than an hour counts as a new clock.
    - A step back is a new clock. Its times continue where the old clock ended, as FFmpeg lets them
      (``ts_discontinuity`` of its command). In MPEG-TS and MPEG-PS a new clock may begin anywhere,
      in other formats only near the container's start; elsewhere it is damage.

    A packet whose time stamps step while the packets that follow stay with the old clock has a
    damaged time stamp and counts as untimed. The packets end at these signs of damage:

    - The DTS steps back in a format whose clock cannot begin there.
    - The time stamps step ahead beyond the announced end of the file.
    - A packet of an AVI is not at the position in its index. AVI has packet numbers for time
      stamps, so its time stamps do not show that packets are missing.

    A step ahead that the duration of the packet before covers is a long still picture. So is any
    other step ahead where no sign says that packets are missing: no bytes between the two that
    belong to no packet (Matroska), and no format that is made for constant frame rates (MPEG).

    Args:
        video: an open video.
        clip_seconds: length of a clip; a step in the time stamps up to this is no discontinuity.
        tracks: other streams whose packets are returned as well, on the same clock.

    Attributes:
        watermark: all packets to come have a PTS of at least this; None before the first packet.
        end: PTS at which the display of the latest packet so far ends; None before the first.
        done: True when there is no further packet.
        damage: the reason why the packets ended early; None if they did not.
        untimed: number of packets without a PTS, or with one too far from their DTS.
        gaps: for each gap, the PTS from which on no packet is shown and the PTS at which one is
            again.
        restarts: the PTS, on the one clock, at which each new clock begins.
        resumed: PTS of the first packets behind gaps and restarts; decoding cannot rely on the
            packets before them.
    """

    def __init__(self, video: Video, clip_seconds: Fraction, tracks: Sequence[Stream] = ()) -> None:
        self.watermark: int | None = None
        self.end: int | None = None
        self.done = False
        self.damage: str | None = None
        self.untimed = 0
        self.gaps: list[tuple[int, int]] = []
        self.restarts: list[int] = []
        self.resumed: set[int] = set()
        self._video = video
        # Limits in units of the time base.
        self._longest_step = math.ceil(video.ticks(max(clip_seconds, _SHORTEST_GAP)))
        self._longest_reordering = math.ceil(video.ticks(max(clip_seconds, _LONGEST_REORDERING)))
        self._longest_still = math.ceil(video.ticks(LONGEST_STILL))
        self._is_matroska = video.format_name.startswith("matroska")
        self._is_mp4 = video.format_name.startswith("mov")
        self._is_mpeg = video.format_name.startswith("mpeg")
        # Packets read ahead, whose time stamps are not on the one clock yet, and its offset.
        self._ahead: deque[Packet[Any]] = deque()
        self._offset = 0
        self._last_duration = 0
        # MP4's index lists every packet. In other formats the packets of the other streams help to
        # detect lost bytes and a missing end.
        self._demuxed = video.container.demux(*([video.stream, *tracks] if self._is_mp4 else []))
        self._tracks = {stream.index: TrackClock() for stream in tracks}
        self._offsets = [Fraction(0)]
        self._gif_clock = GifClock() if video.format_name == "gif" else None
        self._placed: deque[Packet[Any]] = deque()
        self._announced_end = announced_end(video)
        # PTS of the packets so far that `forget_before` has not dropped, in ascending order.
        self._pts: list[int] = []
        self._latest_pts: int | None = None
        self._latest_duration: int | None = None
        self._last_is_partial = False
        self._last_dts: int | None = None
        # For gaps: the latest time stamp, and where that packet's display ends by its duration.
        self._latest_time: int | None = None
        self._covered_until = 0
        self._bytes_end: int | None = None
        self._lost_bytes = 0
        self._other_streams_end = Fraction(0)

    def next_packet(self) -> Packet[Any] | None:
        """Return the next packet that holds data, of the video or of `tracks`; None when `done`."""
        from av.error import FFmpegError

        if self._placed:
            return self._placed.popleft()
        while not self.done:
            # 1. Read a packet of any stream; an error or the end of the file ends the packets.
            try:
                packet = self._ahead.popleft() if self._ahead else next(self._demuxed, None)
            except IndexError:  # PyAV: at the end of a file in which a new stream appeared
                packet = None
            except (FFmpegError, ValueError) as error:
                self._stop(f"it cannot be read further ({ffmpeg_reason(error)})")
                break
            if packet is None:
                self._stop(self._find_truncation())
                break
            if not packet.size:
                continue
            # 2. Packets of other streams count only for lost bytes and for the end of the file.
            self._count_lost_bytes(packet)
            if packet.stream_index != self._video.stream.index:
                if packet.pts is not None and packet.time_base:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    self._other_streams_end = max(self._other_streams_end, end)
                if self._place(packet):
                    return self._placed.popleft()
                continue
            # 3. Put the time stamps on the one clock. Stop at damage that no clock explains.
            if self._video.has_packet_numbers:
                packet.pts = packet.dts
            if self._gif_clock is not None:
                self._gif_clock.place(packet)
            shift_timestamps(packet, -self._offset)
            if damage := self._follow_clock(packet):
                self._stop(damage)
                break
            # 4. Record the time stamps.
            self._record_pts(packet)
            self._last_is_partial = packet.is_corrupt
            return packet
        for track in self._tracks.values():
            self._placed += track.release(self._offsets, self._now, begins=True)
        return self._placed.popleft() if self._placed else None

    @property
    def _now(self) -> Fraction:
        """The picture's time in seconds on the one clock."""
        return (self._latest_time or 0) * self._video.time_base

    def _place(self, packet: Packet[Any]) -> bool:
        """Put a packet of another stream on the one clock; return True if any are to be returned.

        An MP4 file's streams have one clock by its format.
        """
        track = self._tracks.get(packet.stream_index)
        if track is not None:
            if self._is_mp4:
                self._placed.append(packet)
            else:
                self._placed += track.release(self._offsets, self._now)
                self._placed += track.place(packet, self._offsets, self._now)
        return bool(self._placed)

    def pts_shown_at(self, time: int) -> int | None:
        """Return the PTS of the packet that is shown at `time`: the last one up to `time`."""
        count = bisect_right(self._pts, time)
        return self._pts[count - 1] if count else None

    def has_pts(self, pts: int) -> bool:
        """Return True if a packet so far has this PTS."""
        position = bisect_left(self._pts, pts)
        return position < len(self._pts) and self._pts[position] == pts

    def forget_before(self, pts: int) -> None:
        """Drop the record of packets before `pts`, which the caller will not ask about again."""
        del self._pts[: bisect_left(self._pts, pts)]

    def _stop(self, damage: str | None) -> None:
        self.done, self.damage = True, damage

    def _find_truncation(self) -> str | None:
        if self._last_is_partial:
            return REST_IS_MISSING
        end = max((self.end or 0) * self._video.time_base, self._other_streams_end)
        return find_truncation(self._video, end, self._announced_end)

    def _count_lost_bytes(self, packet: Packet[Any]) -> None:
        """Count the bytes of a Matroska file that belong to no packet, up to this packet."""
        if self._is_matroska and packet.pos is not None:
            if self._bytes_end is not None and packet.pos - self._bytes_end > _MATROSKA_HEADERS:
                self._lost_bytes += packet.pos - self._bytes_end
            self._bytes_end = packet.pos + packet.size

    def _follow_clock(self, packet: Packet[Any]) -> str | None:
        """Account for a step in the time stamps; return the damage at which packets end, or None.

        The packet's time stamps may change: to the one clock behind a new clock, to None where they
        are damaged.
        """
        lost, self._lost_bytes = self._lost_bytes, 0
        # 1. AVI: compare the position with the index.
        if self._video.format_name == "avi" and not matches_avi_index(self._video, packet):
            return "its packets are not where its index says"
        # 2. The DTS rises evenly; but Matroska has none, and FFmpeg's substitutes lag by the depth
        # of the reordering, so Matroska's steps ahead are judged by the PTS.
        if self._is_matroska and self.restarts:
            self._substitute_dts(packet)
        dts = packet.dts
        time = packet.pts if dts is None or self._is_matroska else dts
        if time is None:
            return None
        # 3. A step back, or ahead by more than an hour, is a new clock or a damaged time stamp.
        before = self._latest_time
        back = (
            dts is not None
            and self._last_dts is not None
            and dts < self._last_dts - self._longest_step
        )
        far = before is not None and time - before > self._longest_still
        beyond = self._announced_end is not None and time > self._announced_end + self._longest_step
        if back or far or (beyond and before is not None and time - before > self._longest_step):
            if not self._stays_with_step(packet):
                packet.pts = packet.dts = None
                return None
            if beyond and not back:
                return "its times jump beyond its announced end"
            if back and not self._may_restart_at(packet):
                return "its times jump back"
            self._restart_clock(packet)
            dts = packet.dts
            time = packet.pts if dts is None or self._is_matroska else dts
            before = None if time is None else self._latest_time
        # 4. A shorter step ahead that nothing covers is a gap, if a sign says so.
        if time is None:
            return None
        if before is not None and self._is_gap(time, before, lost):
            if not self._stays_with_step(packet):
                packet.pts = packet.dts = None
                return None
            resumed = time if packet.pts is None else packet.pts
            self.gaps.append((before if self.end is None else min(self.end, resumed), resumed))
            self.resumed.add(resumed)
        # 5. The packet continues the clock.
        if dts is not None:
            self._last_dts = dts
        self._last_duration = packet.duration or self._last_duration
        if before is None or time > before:
            self._latest_time, self._covered_until = time, time + (packet.duration or 0)
        return None

    def _substitute_dts(self, packet: Packet[Any]) -> None:
        """Let the DTS of Matroska go on behind a new clock, where FFmpeg does not reorder any more.

        It follows the one before by the packet's duration, and stays close below the PTS.
        """
        if packet.pts is not None and self._last_dts is not None:
            dts = self._last_dts + (packet.duration or 1)
            packet.dts = min(packet.pts, max(dts, packet.pts - self._longest_step))

    def _is_gap(self, time: int, before: int, lost: int) -> bool:
        """Return True if packets are missing between the times `before` and `time`."""
        step = time - before
        if step <= self._longest_step or time - self._covered_until <= self._longest_step:
            return False
        # The encoder showed a frame behind the step to those before it: it has left none out.
        if self._latest_pts is not None and self._latest_pts >= time:
            return False
        rate = self._video.stream.average_rate
        constant = self._is_mpeg and (not rate or step > self._video.ticks(Fraction(5, 2) / rate))
        return bool(lost) or constant

    def _stays_with_step(self, packet: Packet[Any]) -> bool:
        """Read ahead; return True if most packets that follow are nearer to this one's time.

        At the end of the file, where no packet follows, the answer is False.
        """
        from av.error import FFmpegError

        origin = packet.pts if packet.dts is None else packet.dts
        before = self._latest_time if self._last_dts is None else self._last_dts
        stream = self._video.stream.index
        following = [one for one in self._ahead if one.stream_index == stream and one.size]
        while len(following) < _LOOKAHEAD:
            try:
                one = next(self._demuxed, None)
            except (FFmpegError, IndexError, ValueError):
                break
            if one is None:
                break
            self._ahead.append(one)
            if one.stream_index == stream and one.size:
                following.append(one)
        times = [one.pts if one.dts is None else one.dts for one in following]
        if origin is None or before is None:
            return True
        near = [
            abs(time + self._offset - origin) < abs(time + self._offset - before)
            for time in times
            if time is not None
        ]
        return 2 * sum(near) > len(near)

    def _may_restart_at(self, packet: Packet[Any]) -> bool:
        """Return True if a clock of this format can begin anew at the packet's time."""
        if self._is_mpeg or packet.dts is None:
            return self._is_mpeg
        start = self._video.start or Fraction(0)
        time = (packet.dts - self._offset) * self._video.time_base
        return abs(time - start) <= _RESTART_TOLERANCE

    def _restart_clock(self, packet: Packet[Any]) -> None:
        """Let the packet's new clock continue where the old one ends."""
        # Matroska's DTS are FFmpeg's substitutes: there the PTS continues where the display ends.
        by_pts = self._is_matroska or packet.dts is None
        time = packet.pts if by_pts else packet.dts
        end = self.end if by_pts else self._last_dts
        if time is None or end is None:
            return
        duration = 0
        if not by_pts:
            duration = self._last_duration or self._display_duration(packet) or 0
        shift = end + duration - time
        self._offset += shift
        shift_timestamps(packet, -shift)
        if self._is_matroska:
            self._substitute_dts(packet)
        if packet.pts is not None:
            self.restarts.append(packet.pts)
            self.resumed.add(packet.pts)
        self._covered_until = end + duration
        self._offsets.append(self._offset * self._video.time_base)
        for track in self._tracks.values():
            self._placed += track.release(self._offsets, self._now, begins=True)

    def _record_pts(self, packet: Packet[Any]) -> None:
        """Update `watermark`, `end` and the list of PTS."""
        pts, dts = packet.pts, packet.dts
        if pts is None or (dts is not None and abs(pts - dts) > self._longest_reordering):
            self.untimed += 1
            return
        # No frame is presented before it is decoded, so no later packet has a PTS below this DTS.
        bound = pts if dts is None else dts
        self.watermark = bound if self.watermark is None else max(self.watermark, bound)
        if packet.is_discard:  # an edit list excludes it
            return
        insort(self._pts, pts)
        if self._latest_pts is None or pts > self._latest_pts:
            self._latest_pts, self._latest_duration = pts, self._display_duration(packet)
        # Without a duration and a rate, a frame is shown as long as the frame before it, which may
        # be read later.
        duration, latest = self._latest_duration, self._latest_pts
        if duration is None:
            duration = latest - self._pts[-2] if len(self._pts) > 1 else 0
        self.end = latest + min(duration, self._longest_still)

    def _display_duration(self, packet: Packet[Any]) -> int | None:
        """Return how long a packet is shown if it is the last, in units of the time base.

        None if neither the packet nor the stream tells it.
        """
        # MPEG packets have no duration; FFmpeg's value comes from the coded frames, which may be
        # damaged.
        if packet.duration and not self._is_mpeg:
            return packet.duration
        rate = self._video.stream.average_rate
        return round(self._video.ticks(1 / rate)) if rate else None
