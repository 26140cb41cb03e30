"""Clips of several frames: their times and pictures, judged by ffprobe and ffmpeg."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.ffmpeg import ffmpeg
from helpers.times import check_times, frames_of, numbered_frames, raw_input
from helpers.videos import constant, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.video import frames
from granalign_fast.video.frames import DamagedVideoWarning, Frame, read_clips, read_frames

CASES = {
    # name: frame rate, encoding
    "h264.mp4": ("25", "-c:v libx264 -preset veryfast -g 50 -bf 3 -pix_fmt yuv420p"),
    "ntsc.mkv": ("30000/1001", "-c:v libx264 -preset veryfast -g 250 -bf 8 -pix_fmt yuv420p"),
    "transport.ts": ("24000/1001", "-c:v libx264 -preset veryfast -g 20 -bf 3 -pix_fmt yuv420p"),
    "vp9.webm": ("25", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -pix_fmt yuv420p"),
    "variable.mp4": (
        "25",
        "-vf settb=1/1000,setpts='(N+0.45*mod(N\\,3)+if(gt(N\\,50)\\,40\\,0))/25/TB' "
        "-fps_mode passthrough -enc_time_base 1:1000 -c:v libx264 -bf 3 -pix_fmt yuv420p",
    ),
    "4 frames a second.mp4": ("4", "-c:v libx264 -preset veryfast -pix_fmt yuv420p"),
    "mpeg4.avi": ("25", "-c:v mpeg4 -g 30 -bf 2 -q:v 2"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_frames_of_a_clip_are_shown_at_the_middles_of_equal_parts(
    tmp_path: Path, name: str
) -> None:
    rate, encoding = CASES[name]
    above, _, below = rate.partition("/")
    path = tmp_path / name
    # The last clip is shorter for every length of clip below.
    count = int(7.4 * int(above) / int(below or 1))
    ffmpeg(*raw_input(rate), *encoding.split(), path, data=numbered_frames(count))
    shown = check_times(path, 3.0, frames_per_clip=6)
    check_times(path, 2.0, shown, frames_per_clip=4)
    check_times(path, 1.0, shown, frames_per_clip=2)


def test_a_short_last_clip_is_divided_as_well(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 6.6), bframes=2)
    last = frames_of(path, 3.0, 6)[-1]
    # From 6.0 to 6.6 s there are 6 parts of 0.1 s, of which the middles are 6.05, 6.15, ...
    middles = [6.05 + 0.1 * part for part in range(6)]
    assert [read(image) for image in last.image] == [math.floor(at * 25) for at in middles]
    assert last.clip == 2 and not last.missing


def test_one_frame_is_the_frame_of_before(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 6.6), bframes=2)
    for frame in read_frames(path, clip_seconds=3.0, frames_per_clip=1):
        end = min(frame.clip * 3.0 + 3.0, 6.6)
        assert frame.image.shape == (48, 64, 3) and frame.later == ()
        assert read(frame.image) == math.floor((frame.clip * 3.0 + end) / 2 * 25)


@pytest.mark.parametrize("threads", [1, 3])
def test_frames_do_not_depend_on_what_is_skipped(tmp_path: Path, threads: int) -> None:
    path = render(tmp_path / "a.mkv", constant(25, 13.1), gop=40, bframes=3)
    everything = frames._read_on_cpu(
        path, Fraction(2), 1, skip=False, frames_per_clip=4, warn=False
    )
    expected = list(frames._joined(everything, 4))
    found = list(read_frames(path, frames_per_clip=4, threads=threads))
    assert_same(found, expected)
    some = list(read_frames(path, frames_per_clip=4, threads=threads, clips=[5, 1, 99]))
    assert_same(some, [expected[1], expected[5]])
    for image, clip in zip(read_clips(path, [6, 0, 6], frames_per_clip=4), [6, 0, 6], strict=True):
        np.testing.assert_array_equal(image, expected[clip].image)


def assert_same(found: list[Frame], expected: list[Frame]) -> None:
    assert [(one.clip, one.time, one.later) for one in found] == [
        (one.clip, one.time, one.later) for one in expected
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.image.dtype == np.uint8 and one.image.flags.c_contiguous


def test_all_frames_are_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 9), bframes=2)
    opened: list[Any] = []
    open_video = frames.open_video
    monkeypatch.setattr(
        frames, "open_video", lambda *args, **kw: opened.append(args) or open_video(*args, **kw)
    )
    assert len(read_clips(path, [0, 2, 1], clip_seconds=3.0, frames_per_clip=6)) == 3
    assert len(opened) == 1


def test_a_file_that_ends_within_a_clip(tmp_path: Path) -> None:
    whole = render(tmp_path / "a.ts", constant(25, 9), gop=10)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.55)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedVideoWarning)
        found = list(read_frames(cut, clip_seconds=3.0, frames_per_clip=6))
    assert [frame.clip for frame in found] == list(range(len(found))) and len(found) == 2
    numbers = [read(image) for frame in found for image in frame.image]
    assert all(frame.image.shape == (6, 48, 64, 3) for frame in found)
    assert None not in numbers and numbers == sorted(numbers)
    assert 100 < numbers[-1] < 150, "the last frame is near the end of the rest of the file"


def test_frames_of_a_clip_have_one_size() -> None:
    rng = np.random.default_rng(1)
    sizes = ((8, 12), (4, 6), (8, 12), (16, 24))
    parts = [
        Frame(4 + part, float(part), rng.integers(0, 256, (*size, 3), np.uint8), part == 1)
        for part, size in enumerate(sizes)
    ]
    (joined,) = frames._joined(iter(parts), 4)
    assert joined.clip == 1 and joined.missing and joined.image.shape == (4, 8, 12, 3)
    assert (joined.time, joined.later) == (0.0, (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(joined.image[2], parts[2].image)


@pytest.mark.parametrize("number", [0, 3, 5, 8, True, 2.0, "2"])
def test_other_numbers_of_frames_are_refused(tmp_path: Path, number: Any) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(GranAlignError, match=r"frames_per_clip: got .*expected one of: 1, 2, 4, 6"):
        read_frames(path, frames_per_clip=number)
    with pytest.raises(GranAlignError, match="frames_per_clip: got"):
        read_clips(path, [0], frames_per_clip=number)
