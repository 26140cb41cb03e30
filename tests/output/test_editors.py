"""Cut lists and tables of real files: their times are those of the frames that ffprobe shows."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from helpers.ffmpeg import ffmpeg, ffprobe
from hypothesis import example, given, settings
from hypothesis import strategies as st

from granalign_fast.output.formats import render
from granalign_fast.output.timeline import Timeline
from granalign_fast.types import Moment
from granalign_fast.video.frame_rate import exact_rate
from granalign_fast.video.source import Source, read_source

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


def seconds(text: str) -> Fraction:
    match = re.fullmatch(r"(\d+)(?:/(\d+))?s", text)
    assert match is not None, text
    return Fraction(int(match[1]), int(match[2] or 1))


ELEMENTS: dict[str, tuple[str, str, str]] = {
    # name: children in their order, required attributes, further attributes
    "fcpxml": ("resources library?", "version", ""),
    "resources": ("format asset", "", ""),
    "format": ("", "id", "name frameDuration width height colorSpace"),
    "asset": (
        "media-rep",
        "id",
        "name start duration hasVideo format hasAudio videoSources audioSources audioChannels "
        "audioRate",
    ),
    "media-rep": ("", "src", "kind"),
    "library": ("event", "", "location"),
    "event": ("project", "", "name uid"),
    "project": ("sequence", "", "name uid"),
    "sequence": ("spine", "format", "duration tcStart tcFormat"),
    "spine": ("asset-clip*", "", ""),
    "asset-clip": ("marker*", "ref", "offset name start duration format tcFormat"),
    "marker": ("", "start value", "duration note completed"),
}
"""The part of Apple's DTD of FCPXML 1.10 that is needed here."""


def check_structure(element: ElementTree.Element) -> None:
    children, required, further = ELEMENTS[element.tag]
    names = "".join(f"{child.tag} " for child in element)
    pattern = "".join(
        f"({re.escape(name.rstrip('*?'))} ){name[len(name.rstrip('*?')) :]}"
        for name in children.split()
    )
    assert re.fullmatch(pattern, names), f"{element.tag}: {names}"
    assert set(required.split()) <= set(element.attrib), element.attrib
    assert set(element.attrib) <= {*required.split(), *further.split()}, element.attrib
    for child in element:
        check_structure(child)


def read_fcpxml(text: str, rate: Fraction) -> tuple[Any, list[tuple[int, int, int]]]:
    """Return the asset, and offset, first frame and length of each clip, in frames."""
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n<fcpxml ')
    root = ElementTree.fromstring(text.encode())
    check_structure(root)
    assert tuple(map(int, root.attrib["version"].split("."))) >= (1, 10)
    (form,), (asset,) = root.iter("format"), root.iter("asset")
    (sequence,) = root.iter("sequence")
    assert seconds(form.attrib["frameDuration"]) == 1 / rate
    assert asset.attrib["format"] == sequence.attrib["format"] == form.attrib["id"]

    def frames(text: str) -> int:
        number = seconds(text) * rate
        assert number.denominator == 1, f"{text} is between two frames"
        return int(number)

    clips, end = [], 0
    first, length = frames(asset.attrib["start"]), frames(asset.attrib["duration"])
    assert sequence.attrib["tcStart"] == "0s"
    for clip in root.iter("asset-clip"):
        assert clip.attrib["ref"] == asset.attrib["id"]
        assert clip.attrib["tcFormat"] == sequence.attrib["tcFormat"]
        offset, start, duration = (
            frames(clip.attrib[key]) for key in ("offset", "start", "duration")
        )
        assert offset == end, "the clips follow each other"
        assert first <= start and start + duration <= first + length
        (marker,) = clip
        assert frames(marker.attrib["start"]) == start and frames(marker.attrib["duration"]) == 1
        clips.append((offset, start - first, duration))
        end = offset + duration
    assert frames(sequence.attrib["duration"]) == end
    return asset, clips


def test_fcpxml(case: tuple[str, Timeline, list[Any]]) -> None:
    name, timeline, spans = case
    _, rate, _, code, late = FILES[name]
    text = render("fcpxml", timeline)
    asset, clips = read_fcpxml(text, rate)
    assert [(first, first + length) for _, first, length in clips] == spans
    opentime = import_module("opentimelineio.opentime")
    start = opentime.from_timecode(code, float(rate)).value if code else 0
    assert seconds(asset.attrib["start"]) == round(start) / rate
    drop = ";" in code if code else rate in (DROP, DOUBLE)
    assert f'tcFormat="{"DF" if drop else "NDF"}"' in text
    url = urlsplit(asset[0].attrib["src"])
    assert url.scheme == "file" and unquote(url.path) == str(timeline.media)
    assert (asset.get("hasAudio"), asset.get("audioRate")) == (
        ("1", "48000") if late else (None, None)
    )
    (form,) = ElementTree.fromstring(text.encode()).iter("format")
    assert (form.attrib["width"], form.attrib["height"]) == ("160", "128")
    markers = list(ElementTree.fromstring(text.encode()).iter("marker"))
    assert markers[0].attrib["value"] == "#1 0.90 a red, car"
    notes = [marker.attrib["note"] for marker in markers]
    assert notes == ["a <b> & c", "a red, car", 'say "hi", then', "d e", "車"]


def test_csv(case: tuple[str, Timeline, list[Any]]) -> None:
    name, timeline, spans = case
    text = render("csv", timeline)
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert [(row["start_timecode"], row["end_timecode"]) for row in rows] == [
        (code_of(name, first), code_of(name, last)) for first, last in spans
    ]
    for number, (row, moment) in enumerate(zip(rows, timeline.moments, strict=True)):
        assert row["rank"] == str(number + 1) and row["query"] == "a red, car"
        assert float(row["start"]) == pytest.approx(moment.start, abs=6e-4)
        assert float(row["end"]) == pytest.approx(moment.end, abs=6e-4)
        assert float(row["score"]) == pytest.approx(moment.score, abs=1e-6)
        assert row["source"] == str(timeline.media)
    assert [row["caption"] for row in rows] == ["a <b> & c", "", 'say "hi", then', "d e", "車"]


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


def test_the_exact_text_of_a_table() -> None:
    moments = (Moment(4.0, 10.5, 0.9), Moment(0.0, 1.25, 0.123456789))
    source = Source(Fraction(25), timecode="10:00:00:00")
    captions = ('a "red" car', "b, c")
    timeline = Timeline("v", "q", moments, 10.0, captions, "/a, b.mp4", source=source)
    assert render("csv", timeline) == (
        "rank,start,end,score,start_timecode,end_timecode,caption,query,source\r\n"
        '1,4.000,10.000,0.900000,10:00:04:00,10:00:10:00,"a ""red"" car",q,"/a, b.mp4"\r\n'
        '2,0.000,1.250,0.123457,10:00:00:00,10:00:01:06,"b, c",q,"/a, b.mp4"\r\n'
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"frame_rate": 120},
        {"source": Source(None)},
        {"frame_rate": 25, "duration": 90_001.0, "moments": (Moment(89_000.0, 90_000.0, 0.5),)},
    ],
)
def test_a_table_needs_no_time_codes(change: dict[str, Any]) -> None:
    arguments = {"title": "v", "query": "q", "moments": (Moment(1.0, 2.0, 0.5),), "duration": 5.0}
    text = render("csv", Timeline(**arguments | change))
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row["start_timecode"] == row["end_timecode"] == "" and row["source"] == "v"


def test_no_moments() -> None:
    timeline = Timeline("a b#c", "q", (), 5.0, frame_rate=25)
    asset, clips = read_fcpxml(render("fcpxml", timeline), Fraction(25))
    assert not clips and asset[0].attrib["src"] == "a%20b%23c"
    assert render("csv", timeline).count("\r\n") == 1


ODD = ["=1", "@a", "\ufffe", "]]>", "\ud800", "&#0;", '"\r\n,', "<a/>"]
TEXTS = st.text(max_size=20) | st.sampled_from(ODD)


@settings(max_examples=100, deadline=None)
@given(query=TEXTS, caption=TEXTS, title=TEXTS, start=st.floats(0, 99), late=st.floats(0, 110))
@example(query="\uffff\x00q", caption="\ud800,\n", title="a\udcff.mp4", start=1.0, late=5.0)
def test_any_text_is_read_back(
    query: str, caption: str, title: str, start: float, late: float
) -> None:
    moments = (Moment(start, math.nextafter(start, 100), 0.5), Moment(start, 200.0, 0.25))
    source = Source(DROP, late, "23:59:58;00")
    timeline = Timeline(title, query, moments, 100.0, (caption, ""), None, source=source)
    _, clips = read_fcpxml(render("fcpxml", timeline).encode().decode(), DROP)
    assert len(clips) == 2 and [clip[1:] for clip in clips] == [
        (first, last - first) for first, last in timeline.frames()
    ]
    rows = list(csv.reader(io.StringIO(render("csv", timeline).encode().decode(), newline="")))
    assert len(rows) == 3 and {len(row) for row in rows} == {9}
    texts = (timeline.caption(0), timeline.heading)
    # A spreadsheet would take such a text for a formula; an apostrophe comes before it.
    cells = ["'" * text.startswith(("=", "+", "-", "@")) + text for text in texts]
    assert rows[1][6:8] == cells
