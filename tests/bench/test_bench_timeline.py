"""The picture of a search's stages over time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from granalign_fast.bench.commands import timeline
from granalign_fast.search.clock import Span

SPANS = [
    Span("key_frames", 0.001, 0.003),
    Span("rewrite", 0.0, 0.010),
    Span("embed", 0.010, 0.012),
    Span("nms", 0.012, 0.013),
    Span("embed", 0.013, 0.014),
]


def test_every_lap_is_a_bar_at_its_time() -> None:
    figure = timeline.draw(SPANS, "a search")
    (axes,) = figure.axes
    stages = [label.get_text() for label in axes.get_yticklabels()]
    assert stages == ["rewrite", "key frames", "embed", "nms"]  # as they began
    bars = {(b.get_x(), b.get_width(), b.get_y() + b.get_height() / 2) for b in axes.patches}
    for span in SPANS:
        row = stages.index(span.stage.replace("_", " "))
        expected = (1e3 * span.begin, 1e3 * (span.end - span.begin), row)
        assert any(bar == pytest.approx(expected) for bar in bars), span
    assert [text.get_text() for text in axes.texts] == ["10 ms", "2 ms", "3 ms", "1 ms"]


def test_the_search_of_median_length() -> None:
    searches = [[Span("embed", 0.0, seconds)] for seconds in (5.0, 1.0, 3.0, 4.0)]
    assert timeline.median_search(searches) == searches[2]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written, plotted = tmp_path / "a.json", tmp_path / "a.png"
    arguments = ["timeline", "--searches", "1", "--json", str(written), "--plot", str(plotted)]
    monkeypatch.setattr("sys.argv", arguments)
    timeline.main()
    assert plotted.stat().st_size > 1000
    record = json.loads(written.read_text())
    stages = [span["stage"] for span in record["median"]]
    assert {"rewrite", "key_frames", "prefill", "aware", "exists", "embed", "nms"} <= set(stages)
    assert record["seconds"] == [max(span["end"] for span in record["median"])]
    assert record["machine"]["packages"]["onnxruntime"]
    assert all(stage in capsys.readouterr().out for stage in stages[:1])
