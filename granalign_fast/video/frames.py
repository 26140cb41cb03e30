"""A video file to one frame per clip, each with the time at which a player shows it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import numpy as np

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.types import Image

from .container import (
    DamagedVideoWarning,
    Video,
    VideoInfo,
    clip_count,
    open_video,
    quarter_turns,
    upright,
)
from .packets import Packets
from .reader import Frame, NoRestart, Reader, Wanted

__all__ = ["DamagedVideoWarning", "Frame", "VideoInfo", "probe", "read_clips", "read_frames"]

# Frames that are decoded in one call on a GPU.
_CUDA_BATCH = 16

# Microseconds before a file's announced end from which `probe` reads its packets.
_TAIL = 10_000_000


def read_frames(
    path: str | os.PathLike[str],
    *,
    clip_seconds: float = 2.0,
    clips: Iterable[int] | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Iterator[Frame]:
    """One frame per clip, in order, decoded while they are asked for.

    Times are presentation times and count from the first frame that can be shown, so that an offset
    of the container is gone; they are never a number of frames divided by a rate. A clip's frame is
    the one that a player shows at its middle; the last clip ends with the video, and its middle is
    the middle of what there is. A frame that stays for long stands for several clips.

    MPEG program streams (.mpg, .vob) give times to some frames only. FFmpeg fills in the others,
    and may be wrong by two frames.

    Only what the chosen frames need is decoded, exactly as if everything were. Memory holds the
    compressed packets of one clip and a few decoded frames, however long the video is.

    A damaged or cut file gives the frames before the damage, and then a `DamagedVideoWarning` with
    file and time. After damage frames count again from the next key frame on; if a clip would have
    to show a picture that is over a clip older than its own, or if a stretch of the file is
    missing, the frames end there. So clips are always 0, 1, 2, ... without gaps. Damage that costs
    no clip is warned of when the video ends.

    What cannot be seen is damage that leaves valid data: changed time stamps, or a part that was
    removed without a trace. In Matroska that looks like a long still; in AVI it moves what follows.

    Args:
        path: a local video file of any format and codec that FFmpeg reads.
        clip_seconds: length of a clip, more than 0.
        clips: the only ones that are wanted, whose frames are the same as among all; clips that the
            video does not have give none. What lies between them is read but hardly decoded.
        threads: of the decoder; None for as many as FFmpeg thinks fit.
        device: "cpu", or "cuda" to decode on an NVIDIA GPU with torchcodec, which must be
            installed. That path has not been run on a GPU yet; damage is whatever torchcodec makes
            an error of.

    Raises:
        GranAlignError: the file is missing, unreadable, not a video or without any frame that can
            be decoded; its frames have no presentation times; or an argument is out of range.
    """
    _check_clip_seconds(clip_seconds)
    wanted = None if clips is None else _in_order(clips)
    if device == "cuda":
        info = probe(path, clip_seconds=clip_seconds)
        return _cuda_frames(info, Path(path), clip_seconds, wanted)
    if device != "cpu":
        raise GranAlignError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    return _frames(Path(path), Fraction(clip_seconds), threads, skip=True, wanted=wanted)


def read_clips(
    path: str | os.PathLike[str], clips: Sequence[int], *, clip_seconds: float = 2.0
) -> list[Image]:
    """The frames of these clips, uint8 RGB (height, width, 3) each, in the order of `clips`.

    Raises:
        GranAlignError: as for `read_frames`, or the video has no such clip.
    """
    _check_clip_seconds(clip_seconds)
    wanted = _in_order(clips)
    # Of damage it was warned when the video was indexed; here these clips alone matter.
    frames = _frames(Path(path), Fraction(clip_seconds), None, skip=True, wanted=wanted, warn=False)
    found = {frame.clip: frame.image for frame in frames}
    if missing := sorted(set(clips) - found.keys()):
        raise GranAlignError(
            f"{path}: got no frame for clip {missing[0]}, expected one as when it was indexed; "
            f"index the file again"
        )
    return [found[clip] for clip in clips]


def probe(path: str | os.PathLike[str], *, clip_seconds: float = 2.0) -> VideoInfo:
    """Duration, size, rate and so on of a video, from its first frame and its last packets.

    Headers are not asked for the duration, because many are wrong about it. Most files take a few
    milliseconds; one that cannot be searched, such as a GIF, is read to its end without decoding.

    Raises:
        GranAlignError: as for `read_frames`.
    """
    _check_clip_seconds(clip_seconds)
    clip = Fraction(clip_seconds)
    with open_video(path) as video:
        reader = Reader(video, clip, skip=False)
        start, first = reader.begin()
        end = _tail_end(video, clip)
        rate = video.stream.average_rate
        codec = video.stream.codec_context.codec.canonical_name
    if end is None:
        with open_video(path) as video:
            packets = Packets(video, clip)
            while packets.next() is not None:
                pass
            end = packets.end
    duration = float(max(0, (end or 0) - start) * video.time_base)
    height, width = upright(first).shape[:2]
    return VideoInfo(
        duration=duration,
        width=width,
        height=height,
        frame_rate=float(rate) if rate else None,
        codec=codec,
        rotation=quarter_turns(first) * 90,
        clips=clip_count(duration, clip_seconds),
        start=float(start * video.time_base),
    )


def _tail_end(video: Video, clip_seconds: Fraction) -> int | None:
    """When the last packet ends, found by searching; None where that does not work."""
    from av.error import FFmpegError

    container = video.container
    # MPEG-PS gives times to some packets only, and FFmpeg counts on from wherever it begins.
    if not container.duration or video.kind == "mpeg":
        return None
    try:
        container.seek(max(0, (container.start_time or 0) + container.duration - _TAIL))
    except (FFmpegError, OverflowError):
        return None
    packets = Packets(video, clip_seconds)
    while packets.next() is not None:
        pass
    return None if packets.damage else packets.end


def _check_clip_seconds(clip_seconds: float) -> None:
    if not (isinstance(clip_seconds, int | float) and 0.01 <= clip_seconds <= 3600):
        raise GranAlignError(
            f"clip_seconds: got {clip_seconds!r}, expected seconds from 0.01 to 3600"
        )


def _in_order(clips: Iterable[int]) -> Wanted:
    if isinstance(clips, range) and clips.step > 0:
        return clips
    return tuple(sorted(set(clips)))


def _frames(
    path: Path,
    clip: Fraction,
    threads: int | None,
    *,
    skip: bool,
    wanted: Wanted | None = None,
    warn: bool = True,
) -> Iterator[Frame]:
    """Frames on the CPU; `skip` leaves out what need not be decoded, `warn` is of damage.

    The file is opened at once, so that a wrong name is an error where it is given.
    """
    opened = ExitStack()
    video = opened.enter_context(open_video(path, threads=threads))

    def give() -> Iterator[Frame]:
        following = 0
        try:
            with opened:
                for frame in Reader(video, clip, skip=skip).frames(wanted, warn=warn):
                    yield frame
                    following = frame.clip + 1
            return
        except NoRestart:
            pass
        # From the start once more, decoding everything: rare, slow and right.
        with open_video(path, threads=threads) as again:
            for frame in Reader(again, clip, skip=False).frames(wanted, warn=warn):
                if frame.clip >= following:
                    yield frame

    return give()


def _cuda_frames(
    info: VideoInfo, path: Path, clip_seconds: float, wanted: Wanted | None
) -> Iterator[Frame]:
    """Frames by NVDEC through torchcodec; never run on a GPU yet."""
    try:
        # No name for a type checker: torchcodec is none of this package's dependencies.
        decoders = import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):  # the last two where it misses its FFmpeg
        raise GranAlignError(
            "device: 'cuda' decodes with torchcodec, which is not installed or cannot be loaded: "
            "run pip install torchcodec, or use device 'cpu'"
        ) from None
    if info.rotation:
        raise GranAlignError(
            f"{path}: its frames must be turned by {info.rotation} degrees, which device 'cuda' "
            f"cannot do; use device 'cpu'"
        )

    def give() -> Iterator[Frame]:
        try:
            decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", device="cuda")
            asked = [clip for clip in range(info.clips) if wanted is None or clip in wanted]
            for first in range(0, len(asked), _CUDA_BATCH):
                clips = asked[first : first + _CUDA_BATCH]
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

    return give()
