"""How records show themselves: in a terminal, and in a notebook."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from granalign_fast import Moment, SearchResult
from granalign_fast.errors import short_repr
from granalign_fast.types import FrameSet

CURVE = np.linspace(0, 1, 500, dtype=np.float32)
RESULT = SearchResult(
    "street",
    "a <b>red</b> car & a dog",
    (Moment(4.0, 8.04, 0.91234), Moment(20.0, 22.0, 0.5)),
    CURVE,
    CURVE[None],
    exists=0.9731,
    seconds={"embed": 1.0},
)


def test_the_repr_of_a_result_is_one_line_without_arrays() -> None:
    assert repr(RESULT) == (
        "SearchResult(vid='street', query='a <b>red</b> car & a dog', moments=2, "
        "best=<4.0 to 8.0 s, score 0.912>, exists=0.973)"
    )


def test_the_repr_of_a_result_without_moments_or_a_judge() -> None:
    empty = replace(RESULT, moments=(), exists=None, query="a\nb")
    assert repr(empty) == "SearchResult(vid='street', query='a\\nb', moments=0, best=<None>)"


def test_a_notebook_shows_the_moments_as_a_table() -> None:
    table = RESULT._repr_html_()
    assert table.count("<tr>") == 3 and table.count("<td>") == 6
    assert "<th>start (s)</th><th>end (s)</th><th>score</th>" in table
    assert "<td>4.00</td><td>8.04</td><td>0.912</td>" in table
    assert "a &lt;b&gt;red&lt;/b&gt; car &amp; a dog (street; shown at all: 97% likely)" in table


def test_a_notebook_escapes_the_name_of_the_video() -> None:
    table = replace(RESULT, vid="<script>", exists=None)._repr_html_()
    assert "<script>" not in table and "(&lt;script&gt;)" in table


def test_the_repr_of_frames_is_their_number() -> None:
    frames = FrameSet.of(np.zeros((3, 4, 4, 3), np.uint8))
    assert repr(frames) == "FrameSet(3 frames)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a\nb", r"'a\nb'"),
        (np.eye(2), "array([[1., 0.], [0., 1.]])"),
        ("x" * 500, "'" + "x" * 47 + "..." + "x" * 47 + "'"),
    ],
)
def test_wrong_values_are_shown_in_one_short_line(value: object, text: str) -> None:
    assert short_repr(value) == text
