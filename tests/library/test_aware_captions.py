"""Query-aware captions in the second stage, within a budget, by the package's own models."""

from __future__ import annotations

import time
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest

from granalign_fast.library import Library
from granalign_fast.library import refinement as module
from granalign_fast.miniatures import MODELS
from granalign_fast.miniatures.videos import ground_truth, render_video
from granalign_fast.pipeline import ModelFolder


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, minilm: Path
) -> tuple[Library, str, tuple[float, float]]:
    """A library of two rendered videos, a query that one of them shows once, and when."""
    folder = tmp_path_factory.mktemp("videos")
    models, paths = ModelFolder(MODELS), [folder / "one.mp4", folder / "two.mp4"]
    scripts = [
        render_video(path, 40_021 + number, seconds=(54.0, 60.0), frame_rate=5)
        for number, path in enumerate(paths)
    ]
    models.index(paths, folder / "library", clip_seconds=6.0)
    truth = ground_truth(scripts[0], "one")
    record = next(one for one in truth if len(one["relevant_windows"]) == 1)
    window = tuple(record["relevant_windows"][0])
    return Library.open(folder / "library", models.retriever()), record["query"], window


def test_videos_that_are_reached_get_captions_for_the_query(
    found: tuple[Library, str, tuple[float, float]],
) -> None:
    library, query, (start, end) = found
    result = library.search(query)
    assert result.complete
    assert all(hit.result is not None and hit.result.aware for hit in result.videos)
    best = result.moments[0]
    assert (best.vid, best.refined) == ("one", True)
    assert best.exists is not None and best.exists > 0.2
    assert best.start < end and start < best.end


def test_the_first_stage_stands_in_for_what_the_budget_does_not_reach(
    found: tuple[Library, str, tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, query, _ = found
    # The budget is spent while the first video is searched.
    ticks = chain([0.0, 0.0], repeat(float("inf")))
    clock = SimpleNamespace(monotonic=lambda: next(ticks), perf_counter=time.perf_counter)
    monkeypatch.setattr(module, "time", clock)
    first, last = library.stages(query, budget=100.0)
    assert not first.complete and not any(moment.refined for moment in first.moments)
    assert not last.complete
    reached, other = last.videos
    assert reached.result is not None and reached.result.aware
    assert other.result is None
    for moment in last.moments:
        assert moment.refined == (moment.vid == reached.video.vid)
        assert (moment.exists is None) != moment.refined
    assert {moment.vid for moment in last.moments} == {reached.video.vid, other.video.vid}
