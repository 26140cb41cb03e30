"""Cut lists and tables of real files: their times are those of the frames that ffprobe shows."""

from __future__ import annotations

import json
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers.ffmpeg import ffmpeg, ffprobe

from granalign_fast.output.formats import render
from granalign_fast.output.timeline import Timeline
from granalign_fast.types import Moment
from granalign_fast.video.frame_rate import exact_rate
from granalign_fast.video.source import read_source

FILM, DROP, DOUBLE = (exact_rate(rate) for rate in (23.976, 29.97, 59.94))
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2")
MPEG2 = ("-c:v", "mpeg2video", "-bf", "2")
PLAIN = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "0")
"""AVI has no presentation times, so FFmpeg shows frames that were reordered at wrong times."""
FILES: dict[str, tuple[str, Fraction, tuple[str, ...], str | None, float]] = {
    "mp4 23.976": ("mp4", FILM, H264, None, 0),
    "mp4 23.976 coded": ("mp4", FILM, H264, "01:00:00:23", 0),
    "mp4 24": ("mp4", Fraction(24), H264, "10:00:00:00", 0),
    "mp4 29.97 drop": ("mp4", DROP, H264, "18:45:23;12", 0),
    "mp4 29.97 no drop": ("mp4", DROP, H264, "18:45:23:12", 0),
    "mp4 59.94 drop": ("mp4", DOUBLE, H264, "00:00:59;58", 0),
    "mp4 late": ("mp4", Fraction(25), H264, "09:59:58:00", 1.5),
    "mov 25": ("mov", Fraction(25), H264, "00:59:59:24", 0),
    "mov 29.97 over a minute": ("mov", DROP, H264, "00:00:59;28", 0),
    "mov 29.97 over ten minutes": ("mov", DROP, H264, "00:09:59;29", 0),
    "mov 30": ("mov", Fraction(30), H264, "23:59:59:15", 0),
    "mov 50": ("mov", Fraction(50), H264, "01:02:03:49", 0),
    "mov 60": ("mov", Fraction(60), H264, None, 0),
    "mov late": ("mov", DROP, H264, "18:45:23;12", 2.002),
    "mkv 23.976": ("mkv", FILM, H264, "02:00:00:00", 0),
    "mkv 29.97 drop": ("mkv", DROP, H264, "23:59:58;00", 0),
    "mkv 29.97 no code": ("mkv", DROP, H264, None, 0),
    "mkv 59.94 no drop": ("mkv", DOUBLE, H264, "00:00:59:58", 0),
    "mkv late": ("mkv", Fraction(25), H264, "01:00:00:00", 1.5),
    "ts 25": ("ts", Fraction(25), MPEG2, "11:12:13:14", 0),
    "ts 29.97 drop": ("ts", DROP, MPEG2, "11:12:13;14", 0),
    "ts 50 no code": ("ts", Fraction(50), H264, None, 0),
    "ts late": ("ts", DROP, MPEG2, "01:00:00;00", 1.5),
    "ts late no code": ("ts", Fraction(30), H264, None, 1.5),
    "avi 25": ("avi", Fraction(25), PLAIN, "05:00:00:00", 0),
    "avi 29.97": ("avi", DROP, PLAIN, "05:00:00;00", 0),
    "avi 60": ("avi", Fraction(60), PLAIN, None, 0),
    "mxf 25": ("mxf", Fraction(25), MPEG2, "05:06:07:08", 0),
}
"""Suffix, rate, codec, time code, and seconds by which the picture begins after the sound."""


def write(path: Path, name: str) -> Path:
    suffix, rate, codec, code, late = FILES[name]
    path = path / f"a cam é #1.{suffix}"
    sound = ("-f", "lavfi", "-i", "sine=d=5:r=48000") if late else ()
    picture = ("-f", "lavfi", "-i", f"testsrc2=s=160x128:r={rate}:d=4")
    maps = ("-map", "1:v", "-map", "0:a", "-fps_mode", "passthrough") if late else ()
    coded = () if code is None else ("-timecode", code)
    ffmpeg(*sound, "-itsoffset", str(late), *picture, *maps, *codec, *coded, path)
    return path


def frame_times(path: Path) -> list[float]:
    """Return the second of each frame on the clock that players show, as ffprobe has it."""
    entries = "format=start_time:frame=best_effort_timestamp_time"
    record = json.loads(
        ffprobe("-select_streams", "v:0", "-show_entries", entries, "-of", "json", path)
    )
    start = float(record["format"]["start_time"])
    return [float(frame["best_effort_timestamp_time"]) - start for frame in record["frames"]]


@pytest.fixture(params=FILES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Timeline, list[Any]]:
    """Return a file's name in `FILES`, moments from frame to frame of it, and these frames."""
    path = write(tmp_path, request.param)
    times = frame_times(path)
    count = len(times)
    rate = FILES[request.param][1]
    assert abs(count - 4 * rate) <= 2
    spans = [(7, 30), (0, 1), (count // 2, count - 1), (count - 2, count - 1), (1, count // 3)]
    # A time within less than half a frame of a frame's start is the start of that frame.
    shifts = [0, Fraction(2, 5) / rate, -Fraction(2, 5) / rate, 0, 0]
    moments = [
        Moment(max(0.0, times[first] + float(shift)), times[last] + float(shift), 0.9 - number / 10)
        for number, ((first, last), shift) in enumerate(zip(spans, shifts, strict=True))
    ]
    duration = times[-1] + float(1 / rate)
    source = read_source(path)
    captions = ("a <b> & c", "", 'say "hi", then', "d\ne", "車")
    timeline = Timeline("a", "a red, car", tuple(moments), duration, captions, path, source=source)
    assert timeline.frames() == spans
    return request.param, timeline, spans


def code_of(name: str, frame: int) -> str:
    """Return the time code of a frame of a file, as OpenTimelineIO counts it."""
    opentime = import_module("opentimelineio.opentime")
    _, rate, _, code, _ = FILES[name]
    zero = "00:00:00;00" if rate in (DROP, DOUBLE) else "00:00:00:00"
    start = opentime.from_timecode(code or zero, float(rate))
    drop = ";" in (code or zero)
    # A day at 29.97 has 24 times 107,892 frames with drop-frame time code.
    day = 24 * 107_892 * round(rate / 30) if drop else 86_400 * round(rate)
    number = (round(start.value) + frame) % day
    text = opentime.to_timecode(opentime.RationalTime(number, float(rate)), float(rate), drop)
    assert isinstance(text, str)
    return text


def test_edl(case: tuple[str, Timeline, list[Any]]) -> None:
    name, timeline, spans = case
    _, rate, _, code, _ = FILES[name]
    text = render("edl", timeline)
    drop = ";" in code if code else rate in (DROP, DOUBLE)
    assert text.splitlines()[1] == f"FCM: {'DROP FRAME' if drop else 'NON-DROP FRAME'}"
    events = [line.split() for line in text.splitlines() if line[:3].isdecimal()]
    assert [tuple(event[4:6]) for event in events] == [
        (code_of(name, first), code_of(name, last)) for first, last in spans
    ]
    assert all((";" in word) == drop for event in events for word in event[4:])
    if any(code_of(name, first) > code_of(name, last) for first, last in spans):
        return  # OpenTimelineIO's adapter does not read events over midnight
    cut = import_module("opentimelineio.adapters").read_from_string(
        text, "cmx_3600", rate=float(rate)
    )
    for clip, (first, last) in zip(cut.find_clips(), spans, strict=True):
        source = clip.source_range
        assert source.start_time.to_timecode(float(rate), drop) == code_of(name, first)
        assert source.duration.value == last - first
        assert clip.name == Path(str(timeline.media)).name


def test_otio(case: tuple[str, Timeline, list[Any]]) -> None:
    name, timeline, spans = case
    _, rate, _, code, _ = FILES[name]
    opentime = import_module("opentimelineio.opentime")
    adapters = import_module("opentimelineio.adapters")
    cut = adapters.read_from_string(render("otio", timeline), "otio_json")
    start = opentime.from_timecode(code, float(rate)).value if code else 0
    for clip, (first, last) in zip(cut.find_clips(), spans, strict=True):
        whole, source = clip.available_range(), clip.source_range
        assert whole.start_time == opentime.RationalTime(start, float(rate))
        assert abs(whole.duration.value - spans[2][1] - 1) <= 1
        assert source.start_time.value - start == first
        assert source.duration.value == last - first
        assert clip.markers[0].marked_range == source


def test_a_camera_file_with_time_code(tmp_path: Path) -> None:
    path = tmp_path / "cam.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=30000/1001:d=20")
    ffmpeg(*picture, "-c:v", "libx264", "-timecode", "18:45:23;12", path)
    moments = (Moment(4.0, 10.0, 0.9),)
    timeline = Timeline("cam", "q", moments, 20.02, media=path, source=read_source(path))
    assert " 18:45:27;12 18:45:33;12 01:00:00;00 01:00:06;00\n" in render("edl", timeline)
    cut = import_module("opentimelineio.adapters").read_from_string(
        render("otio", timeline), "otio_json"
    )
    (clip,) = cut.find_clips()
    assert clip.available_range().start_time.to_timecode() == "18:45:23;12"
    assert clip.source_range.start_time.to_timecode() == "18:45:27;12"
