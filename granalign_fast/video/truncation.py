"""Tell whether parts of a video file are missing: its end, or packets of an AVI."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from granalign_fast.reading import open_file

from .container import Video

if TYPE_CHECKING:
    from av.packet import Packet

REST_IS_MISSING = "the rest of it is missing"
"""The reason why the packets of a truncated file end."""

_TOLERANCE = Fraction(1)
"""Seconds by which a whole video may end before its announced end."""

_AVI_CHUNK_HEADER = 8
"""Bytes: an AVI's index gives the position of the chunk or of the data behind its header."""

_TS_PACKET = 188
"""Bytes of a packet of an MPEG transport stream."""


def announced_end(video: Video) -> int | None:
    """Return the end that the container announces, in units of the time base, or None."""
    stream, container = video.stream, video.container
    if video.format_name.startswith("mov") and not stream.duration:
        return None
    # The end of an AVI's sound does not count: some writers announce a later one than there is.
    if video.format_name.startswith(("mov", "avi")) and stream.duration:
        return (stream.start_time or 0) + stream.duration
    # MPEG formats announce nothing: FFmpeg computes their duration from the last packets.
    if video.format_name.startswith("mpeg") or not container.duration:
        return None
    seconds = Fraction(container.duration, 1_000_000)
    if not video.format_name.startswith(("matroska", "nut")):  # their duration counts from zero
        seconds += Fraction(container.start_time or 0, 1_000_000)
    return math.ceil(video.ticks(seconds))


def find_truncation(video: Video, end: Fraction, announced: int | None) -> str | None:
    """Return why the end of the file is not the end of the video, or None if it is.

    Args:
        video: the video, of which the last packet has been read.
        end: second at which the last packet of any stream ends.
        announced: as `announced_end` returned it.
    """
    if video.format_name.startswith("mov"):
        entries = video.stream.index_entries
        if len(entries) and entries[-1].pos + entries[-1].size > video.container.size:
            return REST_IS_MISSING
        return None
    if video.format_name == "mpegts":
        # A transport stream announces no end, but it consists of whole packets.
        rest = video.container.size % _TS_PACKET
        return REST_IS_MISSING if rest and _has_188_byte_packets(video) else None
    if announced is not None and announced * video.time_base - end > _TOLERANCE:
        return REST_IS_MISSING
    return None


def _has_188_byte_packets(video: Video) -> bool:
    """Return True if transport packets have the usual size; on a Blu-ray disc they have 192."""
    with open_file(video.path) as file:
        head = file.read(_TS_PACKET + 1)
    # Every transport packet begins with the sync byte 0x47.
    return len(head) > _TS_PACKET and head[0] == head[_TS_PACKET] == 0x47


def matches_avi_index(video: Video, packet: Packet[Any]) -> bool:
    """Return True if an AVI's packet is at the position that the index gives for its number."""
    if packet.dts is None or packet.pos is None:
        return True
    entries = video.stream.index_entries
    number = entries.search_timestamp(packet.dts, backward=True, any_frame=True)
    if number < 0 or entries[number].timestamp != packet.dts:
        return True
    return abs(packet.pos - entries[number].pos) <= _AVI_CHUNK_HEADER
