"""Read one frame per clip from a video file, each with its presentation time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import numpy as np

from granalign_fast.errors import GranAlignError, one_line, short_repr
from granalign_fast.parsing.limits import LEAST_CLIP_SECONDS, MOST_CLIP_SECONDS
from granalign_fast.types import Image

from .container import (
    DamagedVideoWarning,
    Video,
    VideoInfo,
    check_clip_count,
    clip_count,
    open_video,
)
from .packets import PacketReader
from .picture import conversion_reason, displayed_size, quarter_turns
from .reader import ClipNumbers, FalseKeyFrame, Frame, FrameReader

__all__ = ["DamagedVideoWarning", "Frame", "VideoInfo", "probe", "read_clips", "read_frames"]

_CUDA_BATCH = 16
"""Frames that torchcodec decodes on a GPU in one call."""

_TAIL = 10_000_000
"""Microseconds before a file's announced end from which `probe` reads its last packets."""


def read_frames(
    path: str | os.PathLike[str],
    *,
    clip_seconds: float = 2.0,
    clips: Iterable[int] | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Iterator[Frame]:
    """Yield one frame per clip, in order; each is decoded when the caller asks for it.

    Times are seconds on the clock that players, ``ffmpeg -ss``, subtitles and chapters use: zero is
    the container's start, which is that of its earliest stream. They come from presentation time
    stamps, never from a frame number and a rate, except in AVI, which numbers its packets. A clip's
    frame is the one that a player shows at the clip's middle. The last clip ends with the video and
    may be shorter; its middle is the middle of that shorter stretch. One frame can represent
    several clips if it is shown for long. Where the picture begins later than the audio, the clips
    before it have a black frame; where it ends earlier, the clips end with it.

    Images are the pictures that a player shows: upright, in square pixels, deinterlaced, and in
    BT.709, to which HDR is tone-mapped.

    MPEG program streams (.mpg, .vob) store times for some frames only. FFmpeg fills in the others
    and may be wrong by two frames.

    Only what the chosen frames need is decoded, with the same result as decoding everything.
    Memory holds the compressed packets of one clip and a few decoded frames, however long the
    video is.

    A discontinuous clock is followed to the end of the file: a step ahead keeps its times, and a
    clock that begins anew continues where the old one ends, as FFmpeg lets it. A clip whose picture
    is missing or damaged gets the last good frame before it, and is marked `missing`; clips are
    always 0, 1, 2, ... After damage, frames are used again from the next key frame on. A truncated
    file ends with its last good frame. A `DamagedVideoWarning` names file and times at the end.

    Damage that leaves valid data cannot be detected: changed time stamps, or a part that was
    removed without a trace. In Matroska such a part looks like a long still picture; in AVI all
    later frames move to earlier times.

    Args:
        path: a local video file of any format and codec that FFmpeg reads.
        clip_seconds: length of a clip in seconds, 0.01 to 3600.
        clips: the clips whose frames to return, by default all. Their frames are the same as among
            all clips. Numbers that the video does not have are ignored. The packets between the
            clips are read but hardly decoded.
        threads: decoder threads; None lets FFmpeg choose.
        device: "cpu", or "cuda" to decode on an NVIDIA GPU with torchcodec, which must be
            installed. The GPU path has not been run on a GPU yet, and it detects only damage for
            which torchcodec raises an error.

    Raises:
        GranAlignError: the file is missing, unreadable or not a video; none of its frames can be
            decoded; its frames have no presentation times; or an argument is out of range.
    """
    check_clip_seconds(clip_seconds)
    numbers = None if clips is None else _sorted_clips(clips)
    if device == "cuda":
        info = probe(path, clip_seconds=clip_seconds)
        return _read_on_cuda(info, Path(path), clip_seconds, numbers)
    if device != "cpu":
        raise GranAlignError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    return _read_on_cpu(Path(path), Fraction(clip_seconds), threads, skip=True, clips=numbers)


def read_clips(
    path: str | os.PathLike[str], clips: Sequence[int], *, clip_seconds: float = 2.0
) -> list[Image]:
    """Return the frames of these clips, uint8 RGB (height, width, 3), in the order of `clips`.

    Raises:
        GranAlignError: as for `read_frames`, or the video has no clip of this number.
    """
    check_clip_seconds(clip_seconds)
    numbers = _sorted_clips(clips)
    # No warning of damage: it was given when the video was indexed, and only these clips matter.
    frames = _read_on_cpu(
        Path(path), Fraction(clip_seconds), None, skip=True, clips=numbers, warn=False
    )
    images = {frame.clip: frame.image for frame in frames}
    if missing := sorted(set(clips) - images.keys()):
        raise GranAlignError(
            f"{path}: got no frame for clip {missing[0]}, expected one as when it was indexed; "
            f"index the file again"
        )
    return [images[clip] for clip in clips]


def probe(path: str | os.PathLike[str], *, clip_seconds: float = 2.0) -> VideoInfo:
    """Return a video's duration, size, rate and so on, from its first frame and last packets.

    The duration does not come from the headers, because many of them are wrong. Most files take a
    few milliseconds; a file without seeking, such as a GIF, is read to its end without decoding.

    Raises:
        GranAlignError: as for `read_frames`.
    """
    check_clip_seconds(clip_seconds)
    clip = Fraction(clip_seconds)
    # 1. Decode the first frame; find the end by seeking to the file's tail.
    with open_video(path) as video:
        reader = FrameReader(video, clip, skip=False)
        start, first = reader.decode_first()
        end = _find_end_by_seeking(video, clip)
        rate = video.stream.average_rate
        codec = video.stream.codec_context.codec.canonical_name
        height, width = displayed_size(first, video.pixel_aspect)
    # 2. If that fails, read all packets from the start.
    if end is None:
        with open_video(path) as video:
            packets = PacketReader(video, clip)
            while packets.next_packet() is not None:
                pass
            end = packets.end
    duration = float(max(Fraction(0), (end or 0) - start) * video.time_base)
    clips = clip_count(duration, clip_seconds)
    check_clip_count(Path(path), clips)
    return VideoInfo(
        duration=duration,
        width=width,
        height=height,
        frame_rate=float(rate) if rate else None,
        codec=codec,
        rotation=quarter_turns(first) * 90,
        clips=clips,
        start=float(start * video.time_base),
        first_frame=max(0.0, float(((first.pts or 0) - start) * video.time_base)),
    )


def _find_end_by_seeking(video: Video, clip_seconds: Fraction) -> int | None:
    """Return the PTS at which the last packet's display ends, or None if seeking fails."""
    from av.error import FFmpegError

    container = video.container
    # In MPEG formats the clock may begin anew anywhere, and a GIF has delays instead of times: only
    # reading everything finds the end.
    if not container.duration or video.format_name.startswith(("mpeg", "gif")):
        return None
    try:
        container.seek(max(0, (container.start_time or 0) + container.duration - _TAIL))
    except (FFmpegError, OverflowError):
        return None
    packets = PacketReader(video, clip_seconds)
    while packets.next_packet() is not None:
        pass
    return None if packets.damage else packets.end


def check_clip_seconds(clip_seconds: float) -> None:
    """Raise unless the length of a clip is a number of seconds within the limits."""
    within = isinstance(clip_seconds, int | float) and (
        LEAST_CLIP_SECONDS <= clip_seconds <= MOST_CLIP_SECONDS
    )
    if not within:
        raise GranAlignError(
            f"clip_seconds: got {short_repr(clip_seconds)}, expected seconds from "
            f"{LEAST_CLIP_SECONDS:g} to {MOST_CLIP_SECONDS:g}"
        )


def _sorted_clips(clips: Iterable[int]) -> ClipNumbers:
    if isinstance(clips, range) and clips.step > 0:
        return clips
    return tuple(sorted(set(clips)))


def _read_on_cpu(
    path: Path,
    clip_seconds: Fraction,
    threads: int | None,
    *,
    skip: bool,
    clips: ClipNumbers | None = None,
    warn: bool = True,
) -> Iterator[Frame]:
    """Read frames on the CPU: `skip` skips unneeded packets, `warn` warns of damage.

    The file is opened by the call, not by the first iteration, so that a wrong path raises at once.
    """
    opened = ExitStack()
    video = opened.enter_context(open_video(path, threads=threads))

    def generate() -> Iterator[Frame]:
        last: Frame | None = None
        try:
            with opened:
                for frame in FrameReader(video, clip_seconds, skip=skip).frames(clips, warn=warn):
                    yield frame
                    last = frame
            return
        except FalseKeyFrame:
            pass
        # Read from the start again and decode everything: rare and slow, but right.
        with open_video(path, threads=threads) as again:
            for frame in FrameReader(again, clip_seconds, skip=False).frames(clips, warn=warn):
                if last is None:
                    yield frame
                elif frame.clip > last.clip:
                    # In a damaged stretch, decoding everything may trust fewer frames than decoding
                    # from a key frame did: times never fall behind the frame before.
                    older = frame.time < last.time
                    yield replace(last, clip=frame.clip, missing=True) if older else frame

    return generate()


def _read_on_cuda(
    info: VideoInfo, path: Path, clip_seconds: float, numbers: ClipNumbers | None
) -> Iterator[Frame]:
    """Read frames with NVDEC through torchcodec; never run on a GPU yet."""
    try:
        # Imported by name, which type checkers ignore: torchcodec is not a dependency.
        decoders = import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):  # the last two if its FFmpeg is missing
        raise GranAlignError(
            "device: 'cuda' decodes with torchcodec, which is not installed or cannot be loaded: "
            "run pip install torchcodec, or use device 'cpu'"
        ) from None
    with open_video(path) as video:
        _, first = FrameReader(video, Fraction(clip_seconds), skip=False).decode_first()
        reason = conversion_reason(first, video.pixel_aspect)
    if reason is not None:
        raise GranAlignError(
            f"{path}: its frames {reason}, which device 'cuda' cannot do; use device 'cpu'"
        )

    def generate() -> Iterator[Frame]:
        try:
            decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", device="cuda")
            chosen = [clip for clip in range(info.clips) if numbers is None or clip in numbers]
            for first in range(0, len(chosen), _CUDA_BATCH):
                clips = chosen[first : first + _CUDA_BATCH]
                ends = [min((clip + 1) * clip_seconds, info.duration) for clip in clips]
                middles = [
                    info.start + (clip * clip_seconds + end) / 2
                    for clip, end in zip(clips, ends, strict=True)
                ]
                batch = decoder.get_frames_played_at(middles)
                images = batch.data.cpu().numpy()
                times = batch.pts_seconds.tolist()
                for clip, time, image in zip(clips, times, images, strict=True):
                    yield Frame(clip, time - info.start, np.ascontiguousarray(image))
        except (RuntimeError, ValueError, IndexError) as error:
            raise GranAlignError(
                f"{path}: cannot be decoded on the GPU ({one_line(error)}); use device 'cpu'"
            ) from None

    return generate()
