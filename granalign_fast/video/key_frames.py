"""Find the key frame before a time, and read packets from a key frame on.

PTS is a presentation time stamp in units of the stream's time base, DTS a decoding time stamp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError

from .container import Video, open_video

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame


def find_key_frame(video: Video, limit: Fraction) -> int:
    """Return the PTS of the last key frame up to `limit`; the file's position moves.

    Raises:
        GranAlignError: there is no key frame up to `limit`.
    """
    key = None
    for packet in packets_from_key_frame(video, math.floor(limit), [video.stream]):
        if packet.pts is None:
            continue
        if packet.is_keyframe and not packet.is_discard and packet.pts <= limit:
            key = packet.pts
        elif key is not None and (packet.pts if packet.dts is None else packet.dts) > limit:
            break  # packets are in DTS order: no later one has a PTS up to the limit
    if key is None:
        raise GranAlignError(f"{video.path}: no key frame at the start or before it")
    return key


def is_decodable_alone(path: Path, key: int) -> bool:
    """Return True if decoding can start at the key frame with PTS `key`.

    Some packets are marked as key frames although their frames refer to earlier ones.
    """
    with open_video(path, threads=1) as video:
        started = False
        for packet in chain(packets_from_key_frame(video, key, [video.stream]), [None]):
            if started := started or packet is None or packet.pts == key:
                for frame in decode_or_skip(video, packet):
                    if frame.pts is not None and frame.pts >= key:
                        return frame.pts == key and frame.key_frame and not frame.is_corrupt
    return False


def packets_from_key_frame(
    video: Video, pts: int, streams: list[Any], *, seek: bool = True
) -> Iterator[Packet[Any]]:
    """Yield packets from the last key frame up to `pts` on, or from the start of the file.

    Without `seek` the file is read from where it is, which is its start when it was just opened.
    """
    from av.error import FFmpegError

    container, index = video.container, video.stream.index
    if video.has_packet_numbers:
        for packet in container.demux(streams):
            if packet.size:
                packet.pts = packet.dts
                yield packet
        return
    begin = container.start_time or 0
    if not seek:
        yield from (packet for packet in container.demux(streams) if packet.size)
        return
    # Other formats have no index of key frames, and a seek in them may land behind the key frame.
    if video.format_name.startswith(("mov", "matroska")):
        packets: list[Packet[Any]] = []
        try:
            container.seek(pts, stream=video.stream)
            demuxed = container.demux(streams)
            # Packets of other streams may come before the video's key frame.
            for packet in demuxed:
                packets.append(packet)
                if packet.stream_index == index and packet.size:
                    if packet.is_keyframe and packet.pts is not None and packet.pts <= pts:
                        yield from (one for one in packets if one.size)
                        yield from (one for one in demuxed if one.size)
                        return
                    break
        except FFmpegError:
            pass
        container.seek(begin)
    yield from (packet for packet in container.demux(streams) if packet.size)


def decode_or_skip(video: Video, packet: Packet[Any] | None) -> list[VideoFrame]:
    """Decode a packet, or flush the decoder for None; a damaged packet yields no frames."""
    from av.error import FFmpegError

    try:
        return video.stream.codec_context.decode(packet)
    except FFmpegError:
        return []
