"""Find the key frame before a time, and read packets from a key frame on.

PTS is a presentation time stamp in units of the stream's time base, DTS a decoding time stamp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError

from .container import Video, VideoInfo, open_video
from .packets import PacketReader
from .truncation import announced_end

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame

_CLIP_SECONDS = Fraction(2)
"""Seconds up to which a step in the time stamps is no discontinuity, as in an index."""


def key_frame_before(video: Video, info: VideoInfo, start: Fraction, *, exact: bool) -> int:
    """Return the PTS of the key frame at which decoding or copying of a moment begins."""
    origin = video.ticks(Fraction(info.start))
    first = Fraction(round(origin + video.ticks(Fraction(info.first_frame))))
    # The number of a packet in decoding order is not that of its frame: decode everything.
    if video.is_reordered:
        with open_video(video.path) as other:
            return find_key_frame(other, first)
    # A copy may begin up to half a frame late, so that rounding of `start` does not cost a GOP.
    rate = None if exact else video.stream.average_rate
    limit = start + Fraction(1, 2) / rate if rate else start
    with open_video(video.path) as other:
        key = find_key_frame(other, max(first, origin + video.ticks(limit)))
    if exact and not is_decodable_alone(video.path, key):
        # Decode from the first key frame instead, to be safe.
        with open_video(video.path) as other:
            key = find_key_frame(other, first)
    return key


def find_key_frame(video: Video, limit: Fraction) -> int:
    """Return the PTS of the last key frame up to `limit`; the file's position moves.

    It is below the container's start where an edit list hides it, as in a trimmed MP4.

    Raises:
        GranAlignError: there is no key frame up to `limit`.
    """
    key = before = None
    for packet in packets_from_key_frame(video, math.floor(limit)):
        if packet.pts is None:
            continue
        if packet.is_keyframe and packet.pts <= limit:
            # An edit list may begin inside a GOP: it hides the key frame from which that decodes.
            if packet.is_discard:
                before = packet.pts
            else:
                key = packet.pts
        elif (packet.pts if packet.dts is None else packet.dts) > limit:
            break  # packets are in DTS order: no later one has a PTS up to the limit
    key = before if key is None else key
    if key is None:
        raise GranAlignError(f"{video.path}: no key frame at the start or before it")
    return key


def is_decodable_alone(path: Path, key: int) -> bool:
    """Return True if decoding can start at the key frame with PTS `key`.

    Some packets are marked as key frames although their frames refer to earlier ones.
    """
    with open_video(path, threads=1) as video:
        started = False
        for packet in chain(packets_from_key_frame(video, key), [None]):
            if started := started or packet is None or packet.pts == key:
                for frame in decode_or_skip(video, packet):
                    if frame.pts is not None and frame.pts >= key:
                        return frame.pts == key and frame.key_frame and not frame.is_corrupt
    return False


def packets_from_key_frame(
    video: Video, pts: int, tracks: Sequence[Stream] = (), *, seek: bool = True
) -> Iterator[Packet[Any]]:
    """Yield packets from the last key frame up to `pts` on, or from the start of the file.

    Their time stamps are on the one clock of `PacketReader`, as those of an index.

    Args:
        video: a video that was just opened.
        pts: presentation time stamp in units of the stream's time base.
        tracks: other streams whose packets are yielded as well.
        seek: False to read from the start.
    """
    # A seek in other formats may land behind the key frame, for they have no index of key frames.
    if seek and video.format_name.startswith(("mov", "matroska")):
        _seek_key_frame(video, pts)
    reader = PacketReader(video, _CLIP_SECONDS, tracks)
    while (packet := reader.next_packet()) is not None:
        yield packet


def _seek_key_frame(video: Video, pts: int) -> None:
    """Move to the last key frame up to `pts`, or to the start if that is not possible."""
    from av.error import FFmpegError

    container, stream = video.container, video.stream
    # Where Matroska files are joined, the times of the second lie behind the announced end of the
    # first, and its own time stamps begin anew: a seek would go astray.
    end = announced_end(video)
    if not video.format_name.startswith("mov") and (end is None or pts >= end):
        return
    try:
        container.seek(pts, stream=stream)
        first = next((one for one in container.demux(stream) if one.size), None)
        if first is not None and first.is_keyframe and first.pts is not None and first.pts <= pts:
            # Once more, because packets of other streams come before that of the key frame.
            container.seek(pts, stream=stream)
            return
    except FFmpegError:
        pass
    container.seek(container.start_time or 0)


def decode_or_skip(video: Video, packet: Packet[Any] | None) -> list[VideoFrame]:
    """Decode a packet, or flush the decoder for None; a damaged packet yields no frames."""
    from av.error import FFmpegError

    try:
        return video.stream.codec_context.decode(packet)
    except FFmpegError:
        return []
