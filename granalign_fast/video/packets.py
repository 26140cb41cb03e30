"""The packets of a video in the order of decoding, and every sign that some of them are missing."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .container import Video, short

if TYPE_CHECKING:
    from av.packet import Packet

# No video shows one picture for longer, but a broken time stamp claims so.
_LONGEST_HOLD = Fraction(3600)
# Nor are a frame's times of decoding and of presentation further apart.
_LONGEST_REORDERING = Fraction(20)
# Below this a step in the times is everyday life: reordering, streams that start apart.
_SHORTEST_JUMP = Fraction(1)
# Bytes of a Matroska file between two packets: headers of blocks and clusters need under a hundred.
_HEADERS = 1000
_TS_PACKET = 188
_CHUNK_HEADER = 8


class Packets:
    """Hands out the video's packets, and stops at the end or where the file is damaged.

    A step in the times that is longer than a clip is a long still where the container says or lets
    believe so, and a hole, at which the packets end, where the packet before the hole claims to
    last less and one of these holds: the step leads beyond the announced end of the file; bytes
    between the two belong to no packet (Matroska); the container is made for constant rates
    (MPEG-TS, MPEG-PS). So is a step back, and a still of more than an hour. The times of AVI are
    numbers of packets, which must be where its index says.

    Attributes:
        watermark: no packet still to come is shown before this time; None at first.
        end: presentation time at which the latest packet so far ends to be shown; None at first.
        done: there is no further packet.
        damage: why the packets ended early; None while they did not.
        untimed: how many packets had no presentation time, or one that cannot be.
    """

    def __init__(self, video: Video, clip_seconds: Fraction) -> None:
        self.watermark: int | None = None
        self.end: int | None = None
        self.done = False
        self.damage: str | None = None
        self.untimed = 0
        self._video = video
        self._jump = math.ceil(video.ticks(max(clip_seconds, _SHORTEST_JUMP)))
        self._reordering = math.ceil(video.ticks(max(clip_seconds, _LONGEST_REORDERING)))
        self._longest = math.ceil(video.ticks(_LONGEST_HOLD))
        self._matroska = video.kind.startswith("matroska")
        self._indexed = video.kind.startswith("mov")
        # MP4's index tells what is missing. Elsewhere the other streams help to see it.
        self._demuxed = video.container.demux(*([video.stream] if self._indexed else []))
        self._announced = _announced_end(video)
        self._times: list[int] = []
        self._latest: int | None = None
        self._partial = False
        self._dts: int | None = None
        self._time: int | None = None
        self._covered = 0
        self._bytes_end: int | None = None
        self._lost_bytes = 0
        self._other_end = Fraction(0)

    def next(self) -> Packet[Any] | None:
        """The next packet that holds data; None when `done`."""
        from av.error import FFmpegError

        while not self.done:
            try:
                packet = next(self._demuxed, None)
            except IndexError:  # PyAV's, at the end of a file that brought a stream nobody opened
                packet = None
            except (FFmpegError, ValueError) as error:
                self._stop(f"it cannot be read further ({short(error)})")
                break
            if packet is None:
                self._stop(self._cut_short())
                break
            if not packet.size:
                continue
            self._account(packet)
            if packet.stream_index != self._video.stream.index:
                if packet.pts is not None and packet.time_base:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    self._other_end = max(self._other_end, end)
                continue
            if hole := self._hole(packet):
                self._stop(hole)
                break
            self._note(packet)
            self._partial = packet.is_corrupt
            return packet
        return None

    def shown_at(self, time: int) -> int | None:
        """The presentation time of the last packet so far that begins at `time` or before it."""
        place = bisect_right(self._times, time)
        return self._times[place - 1] if place else None

    def knows(self, time: int) -> bool:
        """Whether a packet begins just then."""
        place = bisect_left(self._times, time)
        return place < len(self._times) and self._times[place] == time

    def forget(self, time: int) -> None:
        """Packets before `time` will not be asked for again."""
        del self._times[: bisect_left(self._times, time)]

    def _stop(self, damage: str | None) -> None:
        self.done, self.damage = True, damage

    def _account(self, packet: Packet[Any]) -> None:
        if self._matroska and packet.pos is not None:
            if self._bytes_end is not None and packet.pos - self._bytes_end > _HEADERS:
                self._lost_bytes += packet.pos - self._bytes_end
            self._bytes_end = packet.pos + packet.size

    def _hole(self, packet: Packet[Any]) -> str | None:
        """Why packets are missing before this one; None when they are not."""
        dts, lost, self._lost_bytes = packet.dts, self._lost_bytes, 0
        if self._video.kind == "avi" and not self._fits_index(packet):
            return "its packets are not where its index says"
        if dts is not None:
            if self._dts is not None and dts < self._dts - self._jump:
                return "its times jump back"
            self._dts = dts
        # Times of decoding step evenly, but of Matroska's FFmpeg makes them up, late by the depth
        # of the reordering.
        time = packet.pts if dts is None or self._matroska else dts
        if time is None:
            return None
        before, covered = self._time, self._covered
        if before is None or time > before:
            self._time, self._covered = time, time + (packet.duration or 0)
        if before is None or time - before <= self._jump:
            return None
        step = time - before
        if step > self._longest:
            return "its times jump ahead by more than an hour"
        if self._announced is not None and time > self._announced + self._jump:
            return "its times jump beyond its announced end"
        if time - covered <= self._jump:
            return None
        if lost:
            return f"{lost} bytes of it are unreadable"
        rate = self._video.stream.average_rate
        if self._video.kind.startswith("mpeg") and (
            not rate or step > self._video.ticks(Fraction(5, 2) / rate)
        ):
            return "packets are missing"
        return None

    def _fits_index(self, packet: Packet[Any]) -> bool:
        """Whether an AVI's packet is the one that its number, and so its time, belongs to."""
        if packet.dts is None or packet.pos is None:
            return True
        entries = self._video.stream.index_entries
        place = entries.search_timestamp(packet.dts, backward=True, any_frame=True)
        if place < 0 or entries[place].timestamp != packet.dts:
            return True
        return abs(packet.pos - entries[place].pos) <= _CHUNK_HEADER

    def _note(self, packet: Packet[Any]) -> None:
        pts = packet.pts
        if pts is None or (packet.dts is not None and abs(pts - packet.dts) > self._reordering):
            self.untimed += 1
            return
        mark = packet.dts if packet.dts is not None else pts
        self.watermark = mark if self.watermark is None else max(self.watermark, mark)
        if packet.is_discard:  # an edit list leaves it out
            return
        insort(self._times, pts)
        if self._latest is None or pts > self._latest:
            self.end = pts + min(self._shown_for(packet, pts), self._longest)
            self._latest = pts

    def _shown_for(self, packet: Packet[Any], pts: int) -> int:
        """How long a packet is shown if it is the last."""
        # MPEG's packets do not say; what FFmpeg gives is found in the video, or in its damage.
        if packet.duration and not self._video.kind.startswith("mpeg"):
            return packet.duration
        rate = self._video.stream.average_rate
        if rate:
            return round(self._video.ticks(1 / rate))
        return 0 if self._latest is None else pts - self._latest

    def _cut_short(self) -> str | None:
        """Why the end of the file is not the end of the video; None when it is."""
        video = self._video
        if self._partial:  # only the last packet that was read
            return "the rest of it is missing"
        if self._indexed:
            entries = video.stream.index_entries
            if len(entries) and entries[-1].pos + entries[-1].size > video.container.size:
                return "the rest of it is missing"
            return None
        if video.kind == "mpegts":
            # A transport stream announces no end, but it is made of whole packets.
            cut = video.container.size % _TS_PACKET
            return "the rest of it is missing" if cut and self._sized() else None
        if self._announced is None:
            return None
        end = max((self.end or 0) * video.time_base, self._other_end)
        if self._announced * video.time_base - end > _SHORTEST_JUMP:
            return "the rest of it is missing"
        return None

    def _sized(self) -> bool:
        """Whether transport packets are of the usual size, not those of a Blu-ray disc."""
        with self._video.path.open("rb") as file:
            head = file.read(_TS_PACKET + 1)
        return len(head) > _TS_PACKET and head[0] == head[_TS_PACKET] == 0x47


def _announced_end(video: Video) -> int | None:
    """Where the container says that it ends, in presentation time; None where it does not."""
    stream, container = video.stream, video.container
    if video.kind.startswith("mov"):
        if not stream.duration:
            return None
        return (stream.start_time or 0) + stream.duration
    if video.kind.startswith("mpeg") or not container.duration:
        return None  # MPEG's is found by reading the file's last packets: nothing is announced
    seconds = Fraction(container.duration, 1_000_000)
    if not video.kind.startswith("matroska"):  # which counts from zero
        seconds += Fraction(container.start_time or 0, 1_000_000)
    return math.ceil(video.ticks(seconds))
