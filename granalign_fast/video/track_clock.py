"""Put the packets of sound and text on the one clock of the picture where clocks begin anew."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet

_LONGEST_OVERLAP = Fraction(2)
"""Seconds by which a track's times step back at most where its clock does not begin anew."""

_LONGEST_GAP = Fraction(3600)
"""Seconds by which they step ahead at most; the picture's steps are judged alike."""

_LONGEST_LEAD = Fraction(10)
"""Seconds of picture before which the picture's clock begins anew as well."""


class TrackClock:
    """The clock of one track besides the picture.

    Where recordings are joined, picture and sound begin anew at different packets. So a track takes
    the offsets of the picture's clock as its own times demand: the offset that continues them. A
    packet of a new clock that the picture has not reached waits for it.
    """

    def __init__(self) -> None:
        self._end: Fraction | None = None
        self._offset = Fraction(0)
        self._waiting: list[Packet[Any]] = []
        self._waiting_since = Fraction(0)

    def place(
        self, packet: Packet[Any], offsets: Sequence[Fraction], now: Fraction
    ) -> list[Packet[Any]]:
        """Put a packet on the one clock, and return the packets that are on it now, in order.

        Args:
            packet: a packet of the track.
            offsets: seconds to add to the times of each clock of the picture so far.
            now: the picture's time on the one clock.
        """
        if not self._waiting and not self._is_ahead(packet, offsets, now):
            return self._shifted(packet, offsets, now)
        if not self._waiting:
            self._waiting_since = now
        self._waiting.append(packet)
        return []

    def release(
        self, offsets: Sequence[Fraction], now: Fraction, *, begins: bool = False
    ) -> list[Packet[Any]]:
        """Return packets that have waited for too long, or all if the picture's clock `begins`."""
        if not begins and now - self._waiting_since < _LONGEST_LEAD:
            return []
        waited, self._waiting = self._waiting, []
        return [one for packet in waited for one in self._shifted(packet, offsets, now)]

    def _is_ahead(self, packet: Packet[Any], offsets: Sequence[Fraction], now: Fraction) -> bool:
        """Return True if the packet continues the track on no clock so far."""
        time = _seconds(packet)
        if time is None or self._end is None or abs(now - self._end) > _LONGEST_LEAD:
            return False
        step = time + self._nearest_offset(time, offsets, now) - self._end
        return not -_LONGEST_OVERLAP <= step <= _LONGEST_GAP

    def _nearest_offset(
        self, time: Fraction, offsets: Sequence[Fraction], now: Fraction
    ) -> Fraction:
        """Return the offset by which a time continues the track, or is nearest to the picture."""
        # Text comes too seldom to continue itself.
        expected = self._end
        if expected is None or abs(now - expected) > _LONGEST_LEAD:
            expected = now
        return min(offsets, key=lambda offset: abs(time + offset - expected))

    def _shifted(
        self, packet: Packet[Any], offsets: Sequence[Fraction], now: Fraction
    ) -> list[Packet[Any]]:
        """Return the packet on the one clock, or nothing if a new clock overlaps the old one."""
        time = _seconds(packet)
        if time is None or not packet.time_base:
            return [packet]
        offset = self._nearest_offset(time, offsets, now)
        duration = (packet.duration or 0) * Fraction(packet.time_base)
        begin = time + offset
        # The joined recordings' sound may overlap by a packet: the old clock's is kept.
        joins = offset != self._offset
        if joins and self._end is not None and begin + duration / 2 < self._end:
            return []
        self._offset = offset
        self._end = begin + duration if self._end is None else max(self._end, begin + duration)
        shift_timestamps(packet, -round(offset / packet.time_base))
        return [packet]


def shift_timestamps(packet: Packet[Any], offset: int) -> None:
    """Subtract `offset`, in units of the packet's time base, from its time stamps."""
    if offset:
        packet.pts = None if packet.pts is None else packet.pts - offset
        packet.dts = None if packet.dts is None else packet.dts - offset


def raise_dts(packet: Packet[Any], last: int | None) -> bool:
    """Raise a packet's DTS above that of the packet before, as muxers demand.

    Where a clock begins anew, the DTS of the two clocks can overlap by some frames.

    Returns:
        False if the packet would be decoded after it is shown; then it must be left out.
    """
    if last is None or packet.dts is None or packet.dts > last:
        return True
    packet.dts = last + 1
    return packet.pts is None or packet.pts >= packet.dts


def _seconds(packet: Packet[Any]) -> Fraction | None:
    time = packet.pts if packet.dts is None else packet.dts
    return None if time is None or not packet.time_base else time * Fraction(packet.time_base)
