"""Compare the frame of every clip with what ffprobe and ffmpeg say about the same file.

ffprobe names the time of each frame (``best_effort_timestamp``), and ffmpeg decodes all frames one
after another. Together they tell which frame a player shows at a time. None of our code is used.
"""

from __future__ import annotations

import json
import warnings
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from granalign_fast.video.frames import Frame, probe, read_frames
from helpers.ffmpeg import ffmpeg, ffprobe
from helpers.videos import draw, read

HEIGHT, WIDTH = SIZE = (48, 64)
ROUNDING = 0.0021
"""Seconds: containers round times to milliseconds, and a file that was converted does so twice."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame as a player shows it."""

    time: float
    """Seconds from the container's start."""
    number: int | None
    """The number that the picture shows; None if it cannot be read."""


def numbered_frames(count: int) -> bytes:
    """Return raw frames in rgb24, of which frame i shows the number i."""
    return b"".join(draw(number, SIZE).tobytes() for number in range(count))


def raw_input(rate: str) -> tuple[str, ...]:
    """Return the options by which ffmpeg reads `numbered_frames` from its standard input."""
    return ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate, "-i", "-")


def shown_frames(path: Path) -> list[Shown]:
    """Return all frames of a file in the order in which they are shown.

    An AVI has no presentation times, only numbers of packets in the order of decoding: its frames
    have the packets' times in ascending order.
    """
    entries = "format=start_time,format_name:packet=dts_time,size"
    entries += ":frame=best_effort_timestamp_time"
    told = json.loads(
        ffprobe("-select_streams", "v:0", "-show_entries", entries, "-of", "json", path)
    )
    start = float(told["format"].get("start_time", 0))
    parts = told["packets_and_frames"]
    if told["format"]["format_name"] == "avi":
        packets = [part for part in parts if part["type"] == "packet" and part["size"] != "0"]
        times = sorted(float(packet["dts_time"]) - start for packet in packets)
    else:
        frames = [part for part in parts if part["type"] == "frame"]
        times = [float(frame["best_effort_timestamp_time"]) - start for frame in frames]
    raw = ffmpeg(
        *("-i", path, "-map", "0:v:0", "-fps_mode", "passthrough"),
        *("-vf", f"scale={WIDTH}:{HEIGHT}", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"),
    )
    pictures = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert len(pictures) == len(times), "ffmpeg and ffprobe disagree about the number of frames"
    return [Shown(time, read(one)) for time, one in zip(times, pictures, strict=True)]


def frames_of(path: Path, clip_seconds: float, frames_per_clip: int = 1) -> list[Frame]:
    """Return our frames of a file; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return list(read_frames(path, clip_seconds=clip_seconds, frames_per_clip=frames_per_clip))


def check_times(
    path: Path, clip_seconds: float, shown: list[Shown] | None = None, *, frames_per_clip: int = 1
) -> list[Shown]:
    """Assert that every frame of a clip is the one that ffprobe and ffmpeg name for its time.

    A clip is divided into as many equal parts as it has frames; the time is the middle of a part.

    Args:
        path: a video whose frames show their numbers.
        clip_seconds: length of a clip in seconds.
        shown: what an earlier call returned for the file.
        frames_per_clip: the number of frames of each clip.

    Returns:
        All frames of the file.
    """
    shown = shown or shown_frames(path)
    times = [one.time for one in shown]
    assert times == sorted(times), times
    end = probe(path, clip_seconds=clip_seconds).duration
    last = max((after - before for before, after in pairwise(times)), default=1.0)
    assert times[-1] - ROUNDING <= end <= times[-1] + last + ROUNDING
    frames = frames_of(path, clip_seconds, frames_per_clip)
    assert [frame.clip for frame in frames] == list(range(len(frames)))
    assert abs(len(frames) * clip_seconds - end) < clip_seconds
    for frame in frames:
        begin = frame.clip * clip_seconds
        length = (min(begin + clip_seconds, end) - begin) / frames_per_clip
        part_times = (frame.time, *frame.later)
        images = frame.image if frames_per_clip > 1 else frame.image[None]
        assert len(part_times) == len(images) == frames_per_clip
        for part, (time, image) in enumerate(zip(part_times, images, strict=True)):
            _check_frame(shown, times, begin + part * length, length, (time, image))
    return shown


def _check_frame(
    shown: list[Shown],
    times: list[float],
    begin: float,
    length: float,
    frame: tuple[float, npt.NDArray[np.uint8]],
) -> None:
    """Assert that a frame, its time and its picture, is the one at the middle of a stretch."""
    time, image = frame
    middle = begin + length / 2
    # Where a frame begins within rounding of the middle, it or the one before may be right.
    low = bisect_right(times, middle - ROUNDING) - 1
    high = bisect_right(times, middle + ROUNDING) - 1
    if high < 0:
        if begin + length <= times[0]:  # before the first picture a player shows black
            assert time == 0 and not image.any()
            return
        high = 0
    candidates = shown[max(0, low) : high + 1]
    nearest = min(candidates, key=lambda one: abs(one.time - time))
    assert abs(nearest.time - time) < ROUNDING, (
        f"middle {middle}: got {time}, expected {candidates}"
    )
    assert read(image) == nearest.number, f"middle {middle}: got {read(image)}, expected {nearest}"
