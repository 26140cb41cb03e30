"""Read the frames of clips from a video file, each with its presentation time."""

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
from granalign_fast.parsing.limits import (
    FRAMES_PER_CLIP,
    LEAST_CLIP_SECONDS,
    MOST_CLIP_SECONDS,
)
from granalign_fast.types import Image

from .container import (
    DamagedVideoWarning,
    Video,
    VideoInfo,
    check_clip_count,
    clip_count,
    open_video,
)
from .images import resize
from .packets import PacketReader
from .picture import conversion_reason, displayed_size, quarter_turns
from .reader import ClipNumbers, FalseKeyFrame, Frame, FrameReader

__all__ = ["DamagedVideoWarning", "Frame", "VideoInfo", "probe", "read_clips", "read_frames"]

_CUDA_BATCH = 16
"""Frames that torchcodec decodes on a GPU in one call."""

_BICUBIC = 3
"""Pillow's number of the filter."""

_TAIL = 10_000_000
"""Microseconds before a file's announced end from which `probe` reads its last packets."""


def read_frames(
    path: str | os.PathLike[str],
    *,
    clip_seconds: float = 2.0,
    frames_per_clip: int = 1,
    clips: Iterable[int] | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Iterator[Frame]:
    """Yield the frames of each clip, in order; they are decoded when the caller asks for them.

    Times are seconds on the clock that players, ``ffmpeg -ss``, subtitles and chapters use: zero is
    the container's start, which is that of its earliest stream. They come from presentation time
    stamps, never from a frame number and a rate, except in AVI, which numbers its packets. A clip's
    frame is the one that a player shows at the clip's middle. The last clip ends with the video and
    may be shorter; its middle is the middle of that shorter stretch. One frame can represent
    several clips if it is shown for long. With several frames per clip, the clip is divided into
    so many equal parts, and each frame is the one shown at the middle of a part; all have the size
    of the first. Where the picture begins later than the audio, the clips
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
        frames_per_clip: 1, 2, 4 or 6. With several, `Frame.image` is (frames, height, width, 3).
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
    check_frames_per_clip(frames_per_clip)
    numbers = None if clips is None else _sorted_clips(clips)
    if device == "cuda":
        info = probe(path, clip_seconds=clip_seconds)
        frames = _read_on_cuda(info, Path(path), clip_seconds, numbers, frames_per_clip)
    elif device == "cpu":
        frames = _read_on_cpu(
            Path(path),
            Fraction(clip_seconds),
            threads,
            skip=True,
            clips=numbers,
            frames_per_clip=frames_per_clip,
        )
    else:
        raise GranAlignError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    return frames if frames_per_clip == 1 else _joined(frames, frames_per_clip)


def read_clips(
    path: str | os.PathLike[str],
    clips: Sequence[int],
    *,
    clip_seconds: float = 2.0,
    frames_per_clip: int = 1,
) -> list[Image]:
    """Return the frames of these clips in the order of `clips`.

    Returns:
        For each clip uint8 RGB (height, width, 3), or (frames, height, width, 3) with several
        frames per clip.

    Raises:
        GranAlignError: as for `read_frames`, or the video has no clip of this number.
    """
    check_clip_seconds(clip_seconds)
    check_frames_per_clip(frames_per_clip)
    # No warning of damage: it was given when the video was indexed, and only these clips matter.
    frames = _read_on_cpu(
        Path(path),
        Fraction(clip_seconds),
        None,
        skip=True,
        clips=_sorted_clips(clips),
        warn=False,
        frames_per_clip=frames_per_clip,
    )
    if frames_per_clip > 1:
        frames = _joined(frames, frames_per_clip)
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


def check_frames_per_clip(number: object) -> None:
    """Raise unless a clip can have so many frames."""
    if type(number) is not int or number not in FRAMES_PER_CLIP:
        raise GranAlignError(
            f"frames_per_clip: got {short_repr(number)}, expected one of: "
            f"{', '.join(map(str, FRAMES_PER_CLIP))}"
        )


def _sorted_clips(clips: Iterable[int]) -> ClipNumbers:
    if isinstance(clips, range) and clips.step > 0:
        return clips
    return tuple(sorted(set(clips)))


def _joined(frames: Iterator[Frame], per_clip: int) -> Iterator[Frame]:
    """Join frames that `FrameReader.frames` has numbered, so many at a time, to those of clips."""
    parts: list[Frame] = []
    for frame in frames:
        parts.append(frame)
        if len(parts) == per_clip:
            yield _join(parts, per_clip)
            parts = []
    if parts:  # a truncated file ends within a clip: its last frame stands for those that it lacks
        last = replace(parts[-1], missing=True)
        yield _join([*parts, *[last] * (per_clip - len(parts))], per_clip)


def _join(parts: Sequence[Frame], per_clip: int) -> Frame:
    """Return the frames of a clip as one record."""
    first = parts[0]
    height, width = first.image.shape[:2]
    # A stream can change its size in the midst of a clip.
    images = [resize(frame.image, height, width, _BICUBIC) for frame in parts]
    missing = any(frame.missing for frame in parts)
    later = tuple(frame.time for frame in parts[1:])
    return Frame(first.clip // per_clip, first.time, np.stack(images), missing, later)


def _read_on_cpu(
    path: Path,
    clip_seconds: Fraction,
    threads: int | None,
    *,
    skip: bool,
    clips: ClipNumbers | None = None,
    warn: bool = True,
    frames_per_clip: int = 1,
) -> Iterator[Frame]:
    """Read frames on the CPU, numbered as `FrameReader.frames` says.

    `skip` skips unneeded packets, and `warn` warns of damage.

    The file is opened by the call, not by the first iteration, so that a wrong path raises at once.
    """
    opened = ExitStack()
    video = opened.enter_context(open_video(path, threads=threads))

    def read(video: Video, *, skip: bool) -> Iterator[Frame]:
        reader = FrameReader(video, clip_seconds, skip=skip, frames_per_clip=frames_per_clip)
        return reader.frames(clips, warn=warn)

    def generate() -> Iterator[Frame]:
        last: Frame | None = None
        try:
            with opened:
                for frame in read(video, skip=skip):
                    yield frame
                    last = frame
            return
        except FalseKeyFrame:
            pass
        # Read from the start again and decode everything: rare and slow, but right.
        with open_video(path, threads=threads) as again:
            for frame in read(again, skip=False):
                if last is None:
                    yield frame
                elif frame.clip > last.clip:
                    # In a damaged stretch, decoding everything may trust fewer frames than decoding
                    # from a key frame did: times never fall behind the frame before.
                    older = frame.time < last.time
                    yield replace(last, clip=frame.clip, missing=True) if older else frame

    return generate()


def _read_on_cuda(
    info: VideoInfo,
    path: Path,
    clip_seconds: float,
    numbers: ClipNumbers | None,
    frames_per_clip: int,
) -> Iterator[Frame]:
    """Read frames with NVDEC through torchcodec, numbered as on the CPU; not run on a GPU yet."""
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
            chosen = [
                clip * frames_per_clip + part
                for clip in range(info.clips)
                if numbers is None or clip in numbers
                for part in range(frames_per_clip)
            ]
            for first in range(0, len(chosen), _CUDA_BATCH):
                batch = chosen[first : first + _CUDA_BATCH]
                middles = []
                for number in batch:
                    clip, part = divmod(number, frames_per_clip)
                    begin, end = clip * clip_seconds, min((clip + 1) * clip_seconds, info.duration)
                    step = (end - begin) / frames_per_clip
                    middles.append(info.start + begin + step * part + step / 2)
                played = decoder.get_frames_played_at(middles)
                images = played.data.cpu().numpy()
                times = played.pts_seconds.tolist()
                for number, time, image in zip(batch, times, images, strict=True):
                    yield Frame(number, time - info.start, np.ascontiguousarray(image))
        except (RuntimeError, ValueError, IndexError) as error:
            raise GranAlignError(
                f"{path}: cannot be decoded on the GPU ({one_line(error)}); use device 'cpu'"
            ) from None

    return generate()
