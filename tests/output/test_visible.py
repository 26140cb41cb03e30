"""Text of others reaches terminals, pages, subtitles and tables without what would harm there."""

from __future__ import annotations

import csv
import io
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from granalign_fast import cli
from granalign_fast.output.formats import FORMATS, render
from granalign_fast.output.tables import show
from granalign_fast.output.timeline import Timeline
from granalign_fast.output.visible import visible, without_controls
from granalign_fast.types import Moment

HOSTILE = "a\x1b[2J\x07b\r\nc\u202ed\u2066e\x9b31mf\u2028g\ud800h\x00i"
"""Escape sequences of 7 and 8 bits, a bell, line ends, overrides, half a surrogate pair, a null."""


def _is_harmless(text: str) -> bool:
    return all(
        c == "\n" or (unicodedata.category(c) not in ("Cc", "Cs", "Zl") and c not in "\u202e\u2066")
        for c in text
    )


def test_texts_are_one_harmless_line() -> None:
    for text in (visible(HOSTILE), without_controls(HOSTILE)):
        assert _is_harmless(text) and "\n" not in text
        for letter in "abcdefghi":
            assert letter in text
    assert visible("tête 你好 😀 a\u0301") == "tête 你好 😀 a\u0301"
    assert "\\u001b" in visible(HOSTILE) and "\\u202e" in visible(HOSTILE)


def test_a_table_and_an_error_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show("two\nlines")
    assert capsys.readouterr().out == "two\nlines\n"
    show(HOSTILE)
    name = HOSTILE.replace("\x00", "").replace("\ud800", "")
    words = ["index", name, "--models", "miniatures", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["granalign", *words])
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert _is_harmless(out) and "[2J" in out
    assert _is_harmless(err) and "\\u001b[2J" in err


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "otio"])
def test_files_for_players_and_editors(name: str) -> None:
    timeline = Timeline(
        HOSTILE, HOSTILE, (Moment(2.0, 5.5, 0.93),), 60.0, captions=(HOSTILE,), frame_rate=25
    )
    text = render(name, timeline).replace("\r\n", "\n")
    assert _is_harmless(text)


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1"])
def test_no_cell_is_a_formula(start: str) -> None:
    timeline = Timeline(start, start, (Moment(2.0, 5.5, 0.93),), 60.0, captions=(start,))
    _, row = csv.reader(io.StringIO(render("csv", timeline), newline=""))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")) for cell in row)
    assert sum(start.strip() in cell for cell in row) >= 3


def test_the_header_of_webvtt_is_escaped() -> None:
    timeline = Timeline("v", "<b>a</b> --> & b", (Moment(2.0, 5.5, 0.93),), 60.0)
    first = render("vtt", timeline).splitlines()[0]
    assert first == "WEBVTT - &lt;b&gt;a&lt;/b&gt; -&gt; &amp; b"


def test_many_hyphens_take_no_time() -> None:
    timeline = Timeline("v", "-" * 80_000, (Moment(2.0, 5.5, 0.93),), 60.0)
    begin = time.process_time()
    render("srt", timeline)
    render("vtt", timeline)
    assert time.process_time() - begin < 1.0  # it took 5 s
