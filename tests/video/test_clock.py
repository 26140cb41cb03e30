"""One clock: second 0 is the container's start, and times go on behind every discontinuity."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.ffmpeg import ffmpeg, ffprobe
from helpers.videos import constant, read, render

from granalign_fast.video.frames import DamagedVideoWarning, Frame, probe, read_clips, read_frames

SECONDS, RATE = 20, 25


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 20 s, 25 frames a second and a key frame a second; frames show their number."""
    path = tmp_path_factory.mktemp("clock") / "numbered.mp4"
    return render(path, constant(RATE, SECONDS), gop=RATE, bframes=2)


def read_all(path: Path) -> tuple[list[Frame], list[str]]:
    """Return the frames and the warnings; every frame must be the same as when read alone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = list(read_frames(path))
    assert all(one.category is DamagedVideoWarning for one in caught)
    assert [one.clip for one in frames] == list(range(len(frames)))
    for clip in {0, len(frames) // 2, len(frames) - 1}:
        np.testing.assert_array_equal(read_clips(path, [clip])[0], frames[clip].image)
    return frames, [str(one.message) for one in caught]


def shift_of(path: Path) -> float:
    """Return the second, by ffprobe, at which the picture begins on the container's clock."""
    of = ("-of", "csv=p=0")
    start = ffprobe("-show_entries", "format=start_time", *of, path)
    times = ffprobe("-select_streams", "v:0", "-show_entries", "frame=pts_time", *of, path)
    return float(times.split()[0].strip(",")) - float(start)


@pytest.mark.parametrize(
    ("suffix", "late"),
    [
        ("mp4", "12"),
        ("mp4", "0.5"),
        ("mkv", "3.25"),
        ("mov", "12"),
        ("ts", "3.25"),
        ("ts", "0.5"),
        ("flv", "12"),
        ("webm", "3.25"),
    ],
)
def test_a_picture_that_begins_late(numbered: Path, tmp_path: Path, suffix: str, late: str) -> None:
    """Zero is the start of the sound. Before the picture a player shows black."""
    path = tmp_path / f"late.{suffix}"
    codecs = ("-c:v", "copy", "-c:a", "aac")
    if suffix == "webm":
        codecs = ("-c:v", "libvpx", "-deadline", "realtime", "-b:v", "1M", "-c:a", "libopus")
    tone = ("-f", "lavfi", "-i", "sine=f=300:d=40")
    ffmpeg("-itsoffset", late, "-i", numbered, *tone, "-map", "0:v", "-map", "1:a", *codecs, path)
    begin = shift_of(path)
    assert begin == pytest.approx(float(late), abs=0.1)
    info = probe(path)
    # FFmpeg versions differ by Opus's 7 ms of pre-skip.
    assert info.first_frame == pytest.approx(begin, abs=0.008 if suffix == "webm" else 0.002)
    begin = info.first_frame
    assert info.duration == pytest.approx(begin + SECONDS, abs=0.05)
    frames, messages = read_all(path)
    assert not messages and len(frames) == info.clips
    for frame in frames[:-1]:
        middle = 2 * frame.clip + 1
        if middle + 1 <= begin:
            assert frame.time == 0 and not frame.image.any()
        elif middle < begin:  # the picture begins in the second half of the clip
            assert read(frame.image) == 0
        else:
            number = read(frame.image)
            assert number is not None and abs(frame.time - begin - number / RATE) < 0.002
            assert middle - 1 / RATE - 0.002 <= frame.time <= middle + 0.002


def test_a_sound_that_begins_late_changes_nothing(numbered: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    tone = ("-itsoffset", "7", "-f", "lavfi", "-i", "sine=f=300:d=10")
    ffmpeg("-i", numbered, *tone, "-map", "0:v", "-map", "1:a", "-c:v", "copy", path)
    frames, _ = read_all(path)
    assert [read(one.image) for one in frames] == [50 * clip + 25 for clip in range(10)]


def positions_of_key_frames(path: Path) -> list[tuple[float, int]]:
    """Return the time and the byte position of every key frame, by ffprobe."""
    entries = ("-select_streams", "v", "-show_entries", "packet=pts_time,pos,flags")
    lines = [line.split(",") for line in ffprobe(*entries, "-of", "csv=p=0", path).split()]
    return [(float(time), int(pos)) for time, pos, flags, *_ in lines if "K" in flags]


@pytest.fixture
def stream(numbered: Path, tmp_path: Path) -> Path:
    """The same as a transport stream."""
    ffmpeg("-i", numbered, "-c", "copy", tmp_path / "whole.ts")
    return tmp_path / "whole.ts"


@pytest.mark.parametrize(("begin", "end"), [(8, 11), (3, 9), (15, 17)])
def test_a_gap_keeps_the_times_behind_it(
    stream: Path, tmp_path: Path, begin: int, end: int
) -> None:
    keys = positions_of_key_frames(stream)
    data, path = stream.read_bytes(), tmp_path / "gap.ts"
    first, last = keys[begin][1], keys[end][1]
    path.write_bytes(data[:first] + data[last:])
    frames, (message,) = read_all(path)
    assert len(frames) == 10 and f"packets from {begin}.00 to {end}.00 s are missing" in message
    for frame in frames:
        middle = 2 * frame.clip + 1
        assert frame.missing == (begin <= middle < end)
        number = read(frame.image)
        assert number is not None and abs(frame.time - number / RATE) < 0.002
        if frame.missing:
            assert begin - 0.5 <= frame.time < begin
        else:
            assert frame.time == pytest.approx(middle, abs=0.002)


@pytest.mark.parametrize("suffix", ["ts", "flv", "mkv"])
def test_a_clock_that_begins_anew_goes_on(numbered: Path, tmp_path: Path, suffix: str) -> None:
    """Two recordings in one file, as ``cat`` makes it."""
    once, path = tmp_path / f"once.{suffix}", tmp_path / f"twice.{suffix}"
    ffmpeg("-i", numbered, "-c", "copy", once)
    data = once.read_bytes()
    path.write_bytes(data + (data[13:] if suffix == "flv" else data))
    frames, (message,) = read_all(path)
    assert "its clock begins again at 20.00 s" in message
    assert len(frames) == 20 and probe(path).duration == pytest.approx(40, abs=0.05)
    for frame in frames:
        number = read(frame.image)
        assert number is not None
        second = number / RATE + (SECONDS if frame.clip >= 10 else 0)
        assert frame.time == pytest.approx(second, abs=0.05)
        assert frame.time == pytest.approx(2 * frame.clip + 1, abs=0.05)


def test_a_clock_that_wraps_goes_on(numbered: Path, tmp_path: Path) -> None:
    """33 bits of 90 kHz end after 26.5 hours."""
    path = tmp_path / "wrapped.ts"
    ffmpeg("-i", numbered, "-c", "copy", "-output_ts_offset", "95435", path)
    frames, _ = read_all(path)
    assert [read(one.image) for one in frames] == [50 * clip + 25 for clip in range(10)]
    assert [one.time for one in frames] == pytest.approx([2 * clip + 1 for clip in range(10)])


def test_a_single_damaged_time_stamp_moves_nothing(stream: Path, tmp_path: Path) -> None:
    """One packet whose time stamps are years off; those that follow are right."""
    import av

    with av.open(str(stream)) as container:
        packets = [p for p in container.demux(video=0) if p.pos is not None and p.size]
    data = bytearray(stream.read_bytes())
    begin = int(packets[130].pos or 0)
    header = data.index(b"\x00\x00\x01\xe0", begin)
    for at in (header + 9, header + 14):  # the highest bits of PTS and DTS
        data[at] ^= 0b0000_0110
    path = tmp_path / "broken.ts"
    path.write_bytes(data)
    frames, _ = read_all(path)
    assert [one.time for one in frames] == pytest.approx(
        [2 * clip + 1 for clip in range(10)], abs=0.1
    )
    assert not any(one.missing for one in frames)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_counts_frames_as_they_are_shown(tmp_path: Path, codec: str, depth: int) -> None:
    """AVI has no presentation times: its n-th frame in display order is the n-th shown."""
    source, path = tmp_path / "source.mkv", tmp_path / "a.avi"
    depth = min(depth, 1) if codec == "mpeg4" else depth
    times = constant(RATE, 10)
    render(source, times, codec=codec, gop=50, bframes=depth, time_base=Fraction(1, RATE))
    pictures = ("-c:v", codec, "-bf", str(depth), "-g", "50", "-q:v", "3")
    ffmpeg("-i", source, *pictures, path)
    frames, messages = read_all(path)
    assert not messages
    assert [read(one.image) for one in frames] == [25, 75, 125, 175, 225]
    assert [one.time for one in frames] == pytest.approx([1, 3, 5, 7, 9])
