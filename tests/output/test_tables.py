"""The tables that are printed in the terminal."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import CaptionedVideo, Rewrites, VideoIndex
from granalign_fast.cli.diagnosis import Finding
from granalign_fast.cli.tables import print_findings
from granalign_fast.output.tables import clock, clocks, length, print_moments, time_ticks
from granalign_fast.output.warnings import search_warnings
from granalign_fast.types import Moment, SearchResult


@pytest.mark.parametrize(
    ("seconds", "fine", "coarse"),
    [
        (0, "0:00.0", "0:00"),
        (9.94, "0:09.9", "0:10"),
        (59.94, "0:59.9", "1:00"),
        (59.993, "1:00.0", "1:00"),
        (62, "1:02.0", "1:02"),
        (119.98, "2:00.0", "2:00"),
        (3599.96, "1:00:00.0", "1:00:00"),
        (3662.5, "1:01:02.5", "1:01:03"),
    ],
)
def test_clock_never_shows_sixty_seconds(seconds: float, fine: str, coarse: str) -> None:
    assert (clock(seconds), clock(seconds, digits=0)) == (fine, coarse)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (62, 64.5, ("1:02.0", "1:04.5")),
        (0, 0.1, ("0:00.0", "0:00.1")),
        (1.9, 2.0, ("0:01.9", "0:02.0")),
        (0, 0.04, ("0:00.00", "0:00.04")),
        (0.04, 0.08, ("0:00.04", "0:00.08")),
        (59.96, 59.999, ("0:59.96", "1:00.00")),
        (3600, 3600.0083, ("1:00:00.000", "1:00:00.008")),
        (1, 1.0001, ("0:01.000", "0:01.000")),  # no video has so many frames a second
    ],
)
def test_a_short_stretch_has_a_start_and_an_end(
    start: float, end: float, expected: tuple[str, str]
) -> None:
    assert clocks(start, end) == expected


@pytest.mark.parametrize(
    ("seconds", "fine", "coarse"),
    [
        (62, "1:02.0", "1:02"),
        (1, "0:01.0", "0:01"),
        (0.4, "0:00.4", "0:00.4"),
        (0.04, "0:00.04", "0:00.04"),
        (0, "0:00.0", "0:00"),
    ],
)
def test_a_short_video_has_a_length(seconds: float, fine: str, coarse: str) -> None:
    assert (length(seconds), length(seconds, digits=0)) == (fine, coarse)


def test_the_table_of_a_video_of_one_frame(capsys: pytest.CaptureFixture[str]) -> None:
    video = CaptionedVideo("v", ("a dog",), clip_seconds=0.04)
    index = VideoIndex(video, BagOfWords().encode(video.captions))
    curve = np.ones(1, np.float32)
    print_moments(index, SearchResult("v", "q", (Moment(0, 0.04, 0.5),), curve, curve[None]))
    assert "│ 0:00.00 │ 0:00.04 │" in capsys.readouterr().out


def test_text_like_markup_is_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    caption, query, vid = "a [bold]dog[/red] :dog: \\", "the dog [/b] :cat: [1]", "[v]:cow:"
    video = CaptionedVideo(vid, (caption, caption))
    index = VideoIndex(video, BagOfWords().encode(video.captions))
    saliency = np.ones(2, np.float32)
    result = SearchResult(vid, query, (Moment(0, 4, 0.5),), saliency, saliency[None], exists=0.5)
    print_moments(index, result)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{query} ({vid})" in shown and f"{caption} │" in shown
    assert shown.endswith("shown at all: 50% likely")


@pytest.mark.parametrize(
    ("fallbacks", "said"), [(0, False), (2, False), (3, True), (4, True)], ids=str
)
def test_rewrites_of_no_use_are_said(fallbacks: int, said: bool) -> None:
    video = CaptionedVideo("v", ("a", "b"))
    index = VideoIndex(video, BagOfWords().encode(video.captions))
    curve = np.ones(2, np.float32)
    rewrites = Rewrites("q", ("q", "q"), ("q", "q"), fallbacks=fallbacks)
    result = SearchResult("v", "q", (), curve, curve[None], rewrites=rewrites)
    warnings = search_warnings(index, result)
    assert len(warnings) == said
    assert not said or f"{fallbacks} of 4 rewrites are the query itself" in warnings[0]


@pytest.mark.parametrize(
    ("duration", "most", "expected"),
    [
        (64.0, 12, ["0:00", "0:10", "0:20", "0:30", "0:40", "0:50", "1:00"]),
        (0.5, 12, ["0:00.0", "0:00.1", "0:00.2", "0:00.3", "0:00.4", "0:00.5"]),
        (0.04, 5, ["0:00.00", "0:00.01", "0:00.02", "0:00.03", "0:00.04"]),
        (7200.0, 4, ["0:00", "30:00", "1:00:00", "1:30:00", "2:00:00"]),
    ],
)
def test_ticks_of_a_time_axis(duration: float, most: int, expected: list[str]) -> None:
    assert [label for _, label in time_ticks(duration, most)] == expected


def test_findings_name_missing_parts(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(
        [
            Finding("one", "1", True),
            Finding("two [x]", "none", False, "pip install '.[x]'"),
            Finding("three", "none", False, "make it", needed=True),
        ]
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["ok", "one", "1"],
        ["-", "two", "[x]", "none"],
        ["pip", "install", "'.[x]'"],
        ["missing", "three", "none"],
        ["make", "it"],
    ]
