"""The times of a GIF's pictures, with delays as browsers show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet

_SHORTEST_DELAY, _DEFAULT_DELAY = 2, 10
"""Hundredths of a second. Browsers show a picture with a shorter delay for the default one, and so
did FFmpeg before version 8, which takes a delay of one hundredth at its word."""


class GifClock:
    """A sum of the delays of a GIF's packets, which are read from the first one on."""

    def __init__(self) -> None:
        self._time = 0

    def place(self, packet: Packet[Any]) -> None:
        """Give a packet its time and its duration, in hundredths of a second."""
        delay = packet.duration or 0
        packet.duration = delay if delay >= _SHORTEST_DELAY else _DEFAULT_DELAY
        packet.pts = packet.dts = self._time
        self._time += packet.duration
