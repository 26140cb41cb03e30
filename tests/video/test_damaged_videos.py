"""Damaged and truncated videos: the frames before the damage, a warning, and no wrong time."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.videos import constant, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.video.frames import DamagedVideoWarning, Frame, probe, read_clips, read_frames
from granalign_fast.video.packets import PacketReader

SECONDS = 30
START = {"movflags": "faststart"}

# name: file, settings of the rendering
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4": ("a.mp4", {"muxing": START}),
    "mp4 with audio": ("a.mp4", {"muxing": START, "tone": SECONDS}),
    "matroska": ("a.mkv", {}),
    "matroska with audio": ("a.mkv", {"tone": SECONDS}),
    "transport stream": ("a.ts", {"start": Fraction(7, 5)}),
    "avi": ("a.avi", {"codec": "mpeg4", "time_base": Fraction(1, 25)}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Videos of 30 s with a key frame every 2 s, each rendered once."""
    videos: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in videos:
            file, settings = FORMATS[name]
            path = tmp_path_factory.mktemp("videos") / file
            bframes = 0 if file == "a.avi" else 2
            videos[name] = render(path, constant(25, SECONDS), gop=50, bframes=bframes, **settings)
        return videos[name]

    return get


def read_warned(path: Path) -> tuple[list[Frame], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = list(read_frames(path))
    assert all(one.category is DamagedVideoWarning for one in caught)
    return frames, [str(one.message) for one in caught]


def break_at(path: Path, change: Callable[[bytearray, int], bytes], out: Path) -> Path:
    """Write a copy that `change` damages; it gets the bytes and their number."""
    data = bytearray(path.read_bytes())
    out.write_bytes(change(data, len(data)))
    return out


def cut_off(data: bytearray, size: int) -> bytes:
    return bytes(data[: size * 6 // 10 | 1])


def zero_the_middle(data: bytearray, size: int) -> bytes:
    data[size * 4 // 10 : size * 6 // 10] = bytes(size * 6 // 10 - size * 4 // 10)
    return bytes(data)


def take_out_the_middle(data: bytearray, size: int) -> bytes:
    return bytes(data[: size * 4 // 10] + data[size * 6 // 10 :])


# A removed part may leave no trace. Matroska then seems to have a long still. AVI seems to be
# shorter, because its time stamps are packet numbers.
BROKEN = [
    (name, change)
    for name in FORMATS
    for change in (cut_off, zero_the_middle, take_out_the_middle)
    if change is not take_out_the_middle or name not in ("avi", "matroska with audio")
]


@pytest.mark.parametrize(("name", "change"), BROKEN)
def test_right_frames_and_a_warning(
    whole: Callable[[str], Path], tmp_path: Path, name: str, change: Any
) -> None:
    path = whole(name)
    broken = break_at(path, change, tmp_path / path.name)
    frames, messages = read_warned(broken)
    late = probe(path).first_frame
    assert len(messages) == 1 and str(broken) in messages[0] and "damaged" in messages[0]
    assert [one.clip for one in frames] == list(range(len(frames)))
    assert 4 <= len(frames) <= (13 if change is cut_off else 15)
    for one in frames:
        # Every picture is the one of its time, also one that takes the place of a missing one.
        number = read(one.image)
        assert number is not None and abs(number / 25 + late - one.time) < 0.001
        assert one.time <= 2 * one.clip + 1
    # All others are at the middle of their clip, but for two at the damage: those are at most one
    # clip older.
    early = [2 * one.clip + 1 - one.time for one in frames if not one.missing]
    assert sum(seconds > 0.041 for seconds in early) <= 2 and max(early) <= 2
    assert probe(broken).clips >= len(frames)


# After the damage, the time stamps of these formats are right again.
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "avi"])
def test_a_video_goes_on_behind_the_damage(
    whole: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = whole(name)
    frames, _ = read_warned(break_at(path, zero_the_middle, tmp_path / path.name))
    assert len(frames) == 15
    missing = [one.clip for one in frames if one.missing]
    assert missing == list(range(missing[0], missing[-1] + 1)) and 2 <= len(missing) <= 5
    late = probe(path).first_frame
    for one in frames[missing[-1] + 1 :]:
        assert one.time == pytest.approx(2 * one.clip + 1, abs=0.04)
        assert read(one.image) == round((one.time - late) * 25)
    # One clip alone is the same as among all.
    some = read_clips(tmp_path / path.name, [missing[0], missing[-1] + 1])
    np.testing.assert_array_equal(some[0], frames[missing[0]].image)
    np.testing.assert_array_equal(some[1], frames[missing[-1] + 1].image)


@pytest.mark.parametrize("name", ["mp4", "matroska", "transport stream"])
def test_damage_that_costs_no_clip(whole: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """A damaged picture is lost; from the next key frame on, all frames are right again."""
    import av

    path = whole(name)
    with av.open(str(path)) as container:
        # Directly behind a chosen frame, so that the next one comes from undamaged packets.
        (begin, size) = next(
            (packet.pos, packet.size)
            for packet in container.demux(video=0)
            if packet.pts is not None
            and (packet.pts - (container.streams.video[0].start_time or 0))
            * (packet.time_base or 0) >= Fraction(11) + Fraction(4, 25)
        )  # fmt: skip

    def scratch(data: bytearray, _: int) -> bytes:
        head = 24 if name == "transport stream" else 8
        data[begin + head : begin + size] = b"\xa5" * (size - head)
        return bytes(data)

    frames, messages = read_warned(break_at(path, scratch, tmp_path / path.name))
    assert [one.clip for one in frames] == list(range(15))
    assert [one.time for one in frames] == pytest.approx([2 * clip + 1 for clip in range(15)])
    assert [read(one.image) for one in frames] == [50 * clip + 25 for clip in range(15)]
    assert all("damaged near 1" in message for message in messages)


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 10))
    broken = break_at(path, cut_off, tmp_path / "b.mp4")
    with pytest.raises(GranAlignError, match="not a video that can be read"):
        read_frames(broken)


def test_a_video_without_any_decodable_frame_is_refused(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 10))

    def clear(data: bytearray, _: int) -> bytes:
        begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
        data[begin:end] = bytes(end - begin)
        return bytes(data)

    broken = break_at(path, clear, tmp_path / "b.mp4")
    for call in (lambda: list(read_frames(broken)), lambda: probe(broken)):
        with pytest.raises(GranAlignError, match="no frame of it can be shown"):
            call()


def test_a_lost_beginning_does_not_change_later_times(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 10), gop=20)

    def clear(data: bytearray, _: int) -> bytes:
        begin = data.index(b"mdat") + 4
        data[begin : begin + 1000] = bytes(1000)  # the first key frame and some more
        return bytes(data)

    frames, messages = read_warned(break_at(path, clear, tmp_path / "b.mp4"))
    assert len(messages) == 1 and [one.clip for one in frames] == list(range(5))
    assert [one.time for one in frames] == pytest.approx([1, 3, 5, 7, 9])
    assert [read(one.image) for one in frames] == [25, 75, 125, 175, 225]


@pytest.mark.parametrize("name", ["mp4", "matroska"])
def test_read_clips_does_not_warn_and_changes_no_filter(
    whole: Callable[[str], Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warning filters are shared by all threads, so changing them would affect other threads."""
    broken = break_at(whole(name), cut_off, tmp_path / whole(name).name)
    expected, messages = read_warned(broken)
    assert messages
    before, seen = list(warnings.filters), []
    next_packet = PacketReader.next_packet

    def watched(self: PacketReader) -> Any:
        seen.append(list(warnings.filters) == before)
        return next_packet(self)

    monkeypatch.setattr(PacketReader, "next_packet", watched)
    clips = [len(expected) - 1, 0]
    for image, clip in zip(read_clips(broken, clips), clips, strict=True):
        np.testing.assert_array_equal(image, expected[clip].image)
    with pytest.raises(GranAlignError, match="got no frame for clip 14"):
        read_clips(broken, [0, 14])
    assert seen and all(seen)


def test_undamaged_videos_do_not_warn(whole: Callable[[str], Path]) -> None:
    for name in FORMATS:
        frames, messages = read_warned(whole(name))
        assert len(frames) == 15 and not messages


def test_mutated_videos_give_frames_or_an_error() -> None:
    """A few of the videos that ``python -m helpers.fuzz_videos 500`` reads."""
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "helpers.fuzz_videos", "40"],
        cwd=tests,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "frames and a warning" in run.stdout and "refused" in run.stdout
