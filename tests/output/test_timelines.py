"""Files for players and editing programs, read back by the parsers of other projects."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.output.formats import FORMATS, render, write_timeline
from granalign_fast.output.timeline import Timeline
from granalign_fast.types import Moment, SearchResult
from granalign_fast.video.frame_rate import exact_rate
from granalign_fast.video.source import Source

RATES = {
    23.976: Fraction(24000, 1001),
    24: Fraction(24),
    25: Fraction(25),
    29.97: Fraction(30000, 1001),
    30: Fraction(30),
    59.94: Fraction(60000, 1001),
    60: Fraction(60),
}
DROP = (29.97, 59.94)
ODD = (
    'a <b>red</b> car --> {\\an8} &amp; 50% = x; #1 \\ "é" 車\r\n\r\n2\n[CHAPTER]\x85\0\ud800 end\\'
)
RED = (Moment(61.25, 64.0, 0.931), Moment(2.0, 70.0, 0.5), Moment(63.9996, 63.9999, 0.25))
ODD_TIMELINE = Timeline("v", ODD, RED, 70.0, (ODD, "", "-->"), "/videos/é #1.mp4", 29.97)
LONG = Timeline("v", "a dog", (Moment(400_000.0, 400_000.5, 1.0),), 500_000.0, frame_rate=25)
NONE = Timeline("v", "a dog", (), 10.0, frame_rate=25)

lines = st.text(max_size=20) | st.sampled_from(
    [ODD, "--->", "<i>", "a & b", "\\", "* FROM CLIP NAME: x", "NOTE", "001  AX", "[CHAPTER]", ""]
)


@st.composite
def timelines(draw: st.DrawFn, hours: float = 200.0) -> Timeline:
    duration = draw(st.floats(0.0001, 3600 * hours))
    bounds = st.floats(0, duration, exclude_max=True)
    moments = []
    for _ in range(draw(st.integers(0, 5))):
        start, end = sorted((draw(bounds), draw(bounds)))
        end = max(end, math.nextafter(start, math.inf))
        moments.append(Moment(start, end, draw(st.floats(-2, 2))))
    query = draw(lines.filter(lambda text: plain(text) != ""))
    captions = tuple(draw(lines) for _ in moments)
    media = draw(st.sampled_from([None, "/videos/a film.mp4", "https://host/b.mp4"]))
    rate = draw(st.sampled_from(sorted(RATES)))
    return Timeline("street", query, tuple(moments), duration, captions, media, rate)


def plain(text: str) -> str:
    """Return the text in one line, without control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\s]+", " ", text).strip()


def labels(timeline: Timeline) -> list[str]:
    """Return the expected label of each moment, best first."""
    captions = timeline.captions or ("",) * len(timeline.moments)
    return [
        f"#{rank} {moment.score:.2f} {plain(caption) or plain(timeline.query)}"
        for rank, (moment, caption) in enumerate(zip(timeline.moments, captions, strict=True), 1)
    ]


def check_range(
    bounds: tuple[int, int], moment: Moment, timeline: Timeline, rate: Fraction
) -> None:
    """Assert that both bounds are rounded to the nearest unit, and at least one unit apart."""
    start, end = bounds
    length = Fraction(timeline.duration) * rate
    slack = Fraction(1, 2) if end - start > 1 else Fraction(3, 2)
    assert 0 <= start < end <= max(1, length + Fraction(1, 2))
    assert abs(start - Fraction(moment.start) * rate) <= slack
    assert abs(end - min(Fraction(moment.end) * rate, length)) <= slack


def rank_of(text: str) -> int:
    match = re.match(r"#(\d+) ", text)
    assert match is not None, text
    return int(match[1]) - 1


def shown(text: str, kind: str) -> Iterator[tuple[int, int, str]]:
    """Yield start and end in ms of each cue, and the text that FFmpeg shows."""
    with av.open(io.BytesIO(text.encode()), format=kind) as container:
        for packet in container.demux():
            if not packet.size:
                continue
            assert packet.time_base == Fraction(1, 1000)
            assert packet.pts is not None and packet.duration is not None
            (subtitle,) = packet.decode()
            ass: Any = subtitle
            line = ass.ass.decode().split(",", 8)[8]
            # Undo the escapes that FFmpeg adds for ASS.
            line = line.replace("\\{{}", "{").replace("\\\u2060", "\\")
            yield packet.pts, packet.pts + packet.duration, line


@pytest.mark.parametrize("name", ["srt", "vtt"])
@settings(max_examples=100, deadline=None)
@given(timeline=timelines())
@example(timeline=ODD_TIMELINE)
@example(timeline=LONG)
@example(timeline=NONE)
def test_players_read_subtitles(name: str, timeline: Timeline) -> None:
    cues = list(shown(render(name, timeline), {"vtt": "webvtt"}.get(name, name)))
    assert [cue[0] for cue in cues] == sorted(cue[0] for cue in cues)
    assert sorted(rank_of(cue[2]) for cue in cues) == list(range(len(timeline.moments)))
    for start, end, text in cues:
        rank = rank_of(text)
        check_range((start, end), timeline.moments[rank], timeline, Fraction(1000))
        if name == "vtt":
            assert text == labels(timeline)[rank]
        else:
            # Characters that SRT cannot express may be replaced, but no letter is lost.
            assert re.findall(r"\w", text) == re.findall(r"\w", labels(timeline)[rank])


def test_the_exact_text_of_subtitles() -> None:
    moments = (Moment(61.25, 64.0, 0.931), Moment(2.0, 359_999.9996, 0.5))
    timeline = Timeline("v", "a <dog>", moments, 400_000.0, ("a --> b & c {\\N}", ""))
    assert render("srt", timeline) == (
        "1\n00:00:02,000 --> 100:00:00,000\n#2 0.50 a ‹dog>\n\n"
        "2\n00:01:01,250 --> 00:01:04,000\n#1 0.93 a -> b & c (/N)\n"
    )
    assert render("vtt", timeline) == (
        "WEBVTT - a &lt;dog&gt;\n\n"
        "1\n00:00:02.000 --> 100:00:00.000\n#2 0.50 a &lt;dog&gt;\n\n"
        "2\n00:01:01.250 --> 00:01:04.000\n#1 0.93 a --&gt; b &amp; c {\\N}\n"
    )


@settings(max_examples=100, deadline=None)
@given(timeline=timelines())
@example(timeline=ODD_TIMELINE)
@example(timeline=LONG)
@example(timeline=NONE)
def test_ffmpeg_reads_chapters(timeline: Timeline) -> None:
    text = render("ffmetadata", timeline)
    with av.open(io.BytesIO(text.encode()), format="ffmetadata") as container:
        chapters = container.chapters()
        assert not container.metadata
    chapters_by_rank = {}
    end = 0
    for chapter in chapters:
        assert chapter["time_base"] == Fraction(1, 1000)
        assert chapter["start"] >= end, "chapters overlap"
        end = chapter["end"]
        rank = rank_of(chapter["metadata"]["title"])
        assert {k: v.rstrip(" ") for k, v in chapter["metadata"].items()} == {
            "title": labels(timeline)[rank]
        }
        check_range((chapter["start"], end), timeline.moments[rank], timeline, Fraction(1000))
        chapters_by_rank[rank] = range(chapter["start"], end)
    spans = timeline.milliseconds()
    for rank in set(range(len(spans))) - set(chapters_by_rank):
        start, end = spans[rank]
        better = [span for other, span in chapters_by_rank.items() if other < rank]
        assert any(span.start < end and start < span.stop for span in better), (
            "left out without need"
        )


@settings(max_examples=60, deadline=None)
@given(timeline=timelines(hours=4.0))
@example(timeline=ODD_TIMELINE)
@example(timeline=NONE)
def test_editors_read_cut_lists(timeline: Timeline) -> None:
    adapters = import_module("opentimelineio.adapters")
    assert timeline.frame_rate is not None
    rate = RATES[float(timeline.frame_rate)]
    text = render("edl", timeline)
    drop = timeline.frame_rate in DROP
    assert text.splitlines()[1] == f"FCM: {'DROP FRAME' if drop else 'NON-DROP FRAME'}"
    cut = adapters.read_from_string(text, "cmx_3600", rate=float(rate))
    assert cut.name == plain(timeline.query)[:70].rstrip()
    clips = list(cut.find_clips())
    assert len(clips) == len(timeline.moments)
    for clip, moment, label in zip(clips, timeline.moments, labels(timeline), strict=True):
        assert clip.name == plain(Path(timeline.media or timeline.title).name)
        source = clip.source_range
        bounds = (int(source.start_time.value), int(source.end_time_exclusive().value))
        check_range(bounds, moment, timeline, rate)
        facts = clip.metadata["cmx_3600"]
        assert [text.strip() for text in facts["comments"]] == [f"COMMENT: {label}"]


@pytest.mark.parametrize("frame_rate", sorted(RATES))
def test_a_cut_starts_at_one_oclock_and_has_no_gaps(frame_rate: float) -> None:
    opentime = import_module("opentimelineio.opentime")
    moments = tuple(Moment(50.0 * i, 50.0 * i + 47.3, 0.5) for i in range(40))
    text = render("edl", Timeline("v", "q", moments, 2000.0, frame_rate=frame_rate))
    record = opentime.from_timecode(
        "01:00:00;00" if frame_rate in DROP else "01:00:00:00", float(RATES[frame_rate])
    )
    events = [line.split() for line in text.splitlines() if line[:3].isdecimal()]
    assert [int(event[0]) for event in events] == list(range(1, 41))
    for *_, start, end, record_in, record_out in events:
        first, last, begin, stop = (
            opentime.from_timecode(code, float(RATES[frame_rate]))
            for code in (start, end, record_in, record_out)
        )
        assert begin == record and stop - begin == last - first
        record = stop


@settings(max_examples=40, deadline=None)
@given(timeline=timelines())
@example(timeline=ODD_TIMELINE)
@example(timeline=LONG)
@example(timeline=NONE)
def test_opentimelineio_reads_its_format(timeline: Timeline) -> None:
    otio = import_module("opentimelineio")
    assert timeline.frame_rate is not None
    rate = exact_rate(timeline.frame_rate)
    cut = otio.adapters.read_from_string(render("otio", timeline), "otio_json")
    (track,) = cut.video_tracks()
    assert cut.name == plain(timeline.query) and len(track) == len(timeline.moments)
    for number, (clip, moment) in enumerate(zip(track, timeline.moments, strict=True)):
        assert clip.name == labels(timeline)[number]
        source = clip.source_range
        assert source.start_time.rate == source.duration.rate == float(rate)
        bounds = (int(source.start_time.value), int(source.end_time_exclusive().value))
        check_range(bounds, moment, timeline, rate)
        whole = clip.available_range()
        assert whole.start_time.value == 0
        assert source.end_time_exclusive() <= whole.end_time_exclusive()
        media = clip.media_reference
        assert media.name == plain(Path(timeline.media or timeline.title).name)
        if timeline.media is None:
            assert media.is_missing_reference
        else:
            url = otio.url_utils.filepath_from_url(media.target_url)
            expected = str(timeline.media)
            assert (media.target_url if "://" in expected else url) == expected
        (marker,) = clip.markers
        assert marker.marked_range == source
        facts = marker.metadata["granalign_fast"]
        assert facts["rank"] == number + 1
        assert facts["score"] == pytest.approx(moment.score, abs=1e-6)
        assert facts["query"] == plain(timeline.query)
        assert facts["start_seconds"] == pytest.approx(moment.start, abs=6e-4)
        assert facts["end_seconds"] == pytest.approx(moment.end, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("srt", ""),
        ("vtt", "WEBVTT - a dog\n"),
        ("ffmetadata", ";FFMETADATA1\n"),
        ("edl", "TITLE: a dog\nFCM: NON-DROP FRAME\n"),
    ],
)
def test_no_moments(name: str, expected: str) -> None:
    assert render(name, NONE) == expected


def test_a_moment_ends_with_the_video() -> None:
    timeline = Timeline("v", "q", (Moment(8.0, 12.0, 1.0), Moment(9.9999, 12.0, 1.0)), 10.0)
    assert timeline.milliseconds() == [(8000, 10_000), (9999, 10_000)]


def test_the_timeline_of_a_search() -> None:
    index = VideoIndex(
        CaptionedVideo("street", ("a road", "a car", "a dog"), duration=5.5),
        np.eye(3, dtype=np.float32),
    )
    curve = np.array([0.1, 0.9, 0.3], np.float32)
    result = SearchResult("street", "car", (Moment(2.0, 5.5, 0.9),), curve, curve[None])
    source = Source(Fraction(30), 0.5, "01:00:00:00")
    timeline = Timeline.of_search(index, result, media="a.mp4", frame_rate=25, source=source)
    assert timeline == Timeline(
        "street", "car", result.moments, 5.5, ("a car",), "a.mp4", frame_rate=25, source=source
    )
    assert timeline.rate == 25
    assert Timeline.of_search(index, result, source=source).rate == 30


@pytest.mark.parametrize("suffix", sorted(form.suffix for form in FORMATS.values()))
def test_the_suffix_selects_the_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix.upper()}"
    write_timeline(ODD_TIMELINE, path)
    (name,) = (name for name, form in FORMATS.items() if form.suffix == suffix)
    assert path.read_bytes().decode() == render(name, ODD_TIMELINE)
    write_timeline(ODD_TIMELINE, tmp_path / "moments", name=name)
    assert (tmp_path / "moments").read_bytes() == path.read_bytes()


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="frame rate"):
        write_timeline(Timeline("v", "q", RED, 70.0), tmp_path / "a.edl")
    with pytest.raises(
        GranAlignError, match=r": \.srt, \.vtt, \.ffmeta, \.edl, \.otio, \.fcpxml, \.csv"
    ):
        write_timeline(NONE, tmp_path / "a.txt")
    with pytest.raises(GranAlignError, match="cannot be written"):
        write_timeline(NONE, tmp_path / "none" / "a.srt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": 0.0}, "duration: got 0.0"),
        ({"duration": math.nan}, "duration: got nan"),
        ({"frame_rate": 0}, "frame_rate: got 0"),
        ({"frame_rate": math.inf}, "frame_rate: got inf"),
        ({"captions": ("a",)}, "captions: got 1 for 3 moments"),
        ({"moments": (Moment(2.0, 2.0, 1.0),)}, "moment 1: got 2.0 to 2.0 s"),
        ({"moments": (Moment(-1.0, 2.0, 1.0),)}, "moment 1: got -1.0 to 2.0 s"),
        ({"moments": (Moment(1.0, math.inf, 1.0),)}, "moment 1: got 1.0 to inf s"),
        ({"moments": (Moment(1.0, 2.0, math.nan),)}, "moment 1: .*score nan"),
        ({"moments": (RED[0], Moment(70.0, 80.0, 1.0))}, "moment 2: .*ends at 70.0 s"),
    ],
)
def test_invalid_timelines_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        Timeline(**{"title": "v", "query": "q", "moments": RED, "duration": 70.0} | change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "avi",
            {},
            "format: got 'avi', expected one of: srt, vtt, ffmetadata, edl, otio, fcpxml, csv",
        ),
        ("edl", {"frame_rate": None}, "frame rate of 'v': got none"),
        ("otio", {"frame_rate": None}, "frame rate of 'v': got none"),
        ("edl", {"frame_rate": 119.88}, "frame rate: got 119.88"),
        ("edl", {"frame_rate": 0.25}, "frame rate: got 0.25"),
        ("edl", {"moments": (Moment(0, 1, 1),) * 1000}, "got 1000 moments, expected at most 999"),
        (
            "edl",
            {"moments": (Moment(0, 90_000, 1),), "duration": 90_000.0},
            "timecodes end at 24 hours",
        ),
        ("fcpxml", {"frame_rate": None}, "frame rate of 'v': got none"),
    ],
)
def test_timelines_that_a_format_cannot_hold_are_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    arguments = {"title": "v", "query": "q", "moments": RED, "duration": 70.0, "frame_rate": 25}
    with pytest.raises(GranAlignError, match=message):
        render(name, Timeline(**arguments | change))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentimelineio.opentime", None)
    with pytest.raises(MissingExtraError, match=r"\[editors\]"):
        render("otio", ODD_TIMELINE)
