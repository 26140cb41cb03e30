"""Give frames the numbers of their packets in display order, where packets have numbers alone."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame


class DisplayOrder:
    """The numbers of the packets that were sent to a decoder, for the frames that it returns.

    It is for files such as AVI, which number their packets in decoding order and have no
    presentation times (`Video.is_reordered`).
    """

    def __init__(self) -> None:
        self._numbers: deque[int] = deque()

    def send(self, packet: Packet[Any]) -> None:
        """Record the number of a packet that is sent to the decoder."""
        if packet.pts is not None:
            self._numbers.append(packet.pts)

    def number(self, frame: VideoFrame) -> None:
        """Replace a frame's packet number in decoding order by the one in display order.

        Frames come in display order, and take the numbers of the packets in ascending order. A key
        frame is not shown before its own packet number: if frames before it were lost, it skips
        their numbers.
        """
        number = frame.pts
        if number is None or not self._numbers:
            return
        slot = self._numbers.popleft()
        while frame.key_frame and slot < number and self._numbers:
            slot = self._numbers.popleft()
        frame.pts = slot
