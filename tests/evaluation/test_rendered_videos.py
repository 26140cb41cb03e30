"""The whole command on rendered videos, with annotation files in the forms of three datasets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.benchmarks import DATASETS, write_annotations
from helpers.command import Granalign, SharedModels, runner

from granalign_fast import metrics
from granalign_fast.datasets import read_annotations
from granalign_fast.jsonl import Record, read_jsonl, write_jsonl
from granalign_fast.miniatures.benchmark import write_benchmark

VIDEOS = 2
MAIN = {
    "qvhighlights": {"MR-full-mAP": 70, "MR-full-R1@0.5": 88, "HL-min-VeryGood-Hit1": 55},
    "charades": {"R1@0.3": 88, "R1@0.5": 88, "R1@0.7": 70, "R5@0.5": 88, "mIoU": 70},
    "activitynet": {"R1@0.3": 88, "R1@0.5": 88, "R1@0.7": 70, "R5@0.5": 88, "mIoU": 70},
}
"""Least percentages, of nine queries of which one may be missed."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, warm_cache: Callable[[Path], Path]) -> Path:
    """Rendered videos with the suffixes of other containers, and their queries of one window."""
    folder = tmp_path_factory.mktemp("rendered")
    warm_cache(folder / "cache")
    write_benchmark(folder, VIDEOS)
    (folder / "videos" / "below").mkdir()
    for video, suffix in zip(
        sorted((folder / "videos").glob("*.mp4")), (".mov", ".M4V"), strict=True
    ):
        video.rename(folder / "videos" / "below" / f"{video.stem}{suffix}")
    records = read_jsonl(folder / "truth.jsonl")
    one_window = [record for record in records if len(record["relevant_windows"]) == 1]
    write_jsonl(folder / "truth.jsonl", one_window[::2])
    return folder


@pytest.fixture(scope="module")
def shared() -> SharedModels:
    return SharedModels()


@pytest.fixture
def granalign(
    rendered: Path,
    shared: SharedModels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Granalign:
    monkeypatch.setenv("XDG_CACHE_HOME", str(rendered / "cache"))
    shared.use(monkeypatch)
    return runner(capsys, monkeypatch)


@pytest.fixture
def truth(rendered: Path) -> list[Record]:
    return read_jsonl(rendered / "truth.jsonl")


def evaluated(result: tuple[int, str, str], code: int = 0) -> dict[str, Any]:
    got, out, err = result
    assert got == code, err
    record: dict[str, Any] = json.loads(out)
    return record


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_dataset(
    rendered: Path, truth: list[Record], granalign: Granalign, tmp_path: Path, dataset: str
) -> None:
    files = write_annotations(tmp_path, dataset, truth)
    command = ("evaluate", dataset, *files, "--videos", rendered / "videos", "--json")
    command += ("--models", "miniatures", "--rewriter", "models")
    record = evaluated(granalign(*command, "--predictions", tmp_path / "out.jsonl"))
    # The indexes lie beside the videos, in folders of their names.
    indexes = rendered / "videos-indexes"
    vids = sorted({record["vid"] for record in truth})
    assert sorted(path.name for path in indexes.iterdir() if path.is_dir()) == vids
    assert record["queries"] == len(truth)
    assert record["videos"] == VIDEOS
    for name, least in MAIN[dataset].items():
        low, high = record["intervals"].get(name, (record[name], record[name]))
        assert low <= record[name] <= high
        assert record[name] >= least, name
    # The predictions score the same, and the folder of indexes gives the same.
    predictions = read_jsonl(tmp_path / "out.jsonl")
    scores = metrics.DATASETS[dataset](predictions, read_annotations(files, dataset).ground_truth())
    brief = scores.get("brief", scores)
    assert {name: record[name] for name in brief} == brief
    if dataset != "charades":  # one dataset is enough for this
        return
    again = [word for word in command if word not in ("--videos", rendered / "videos")]
    same = evaluated(granalign(*again, "--indexes", indexes))
    assert {name: same[name] for name in brief} == brief


def test_a_video_that_fails_and_one_that_is_missing_are_counted(
    rendered: Path, truth: list[Record], granalign: Granalign, tmp_path: Path
) -> None:
    """One video file is damaged, of another there is no file: the others are evaluated."""
    (rendered / "videos" / "broken.mp4").write_text("this is no video")
    lost = [truth[0] | {"vid": vid, "qid": vid} for vid in ("broken", "gone", "gone")]
    lost[2] = lost[2] | {"qid": "again", "query": "another query"}
    files = write_annotations(tmp_path, "activitynet", [*truth, *lost])
    command = ("evaluate", "activitynet", *files, "--videos", rendered / "videos", "--json")
    command += ("--models", "miniatures", "--rewriter", "models", "--missing")
    code, out, err = granalign(*command, "skip")
    record = evaluated((code, out, err), code=1)
    assert record["missing"] == {
        "policy": "skip",
        "videos": 2,
        "queries": 3,
        "first": ["gone", "broken"],
        "failed": {"broken": record["missing"]["failed"]["broken"]},
    }
    assert "no file of gone; 2 missing videos, 3 queries left out" in err
    assert "granalign: 1 video could not be searched:\n  broken: " in err
    zero = evaluated(granalign(*command, "zero"), code=1)
    share = len(truth) / (len(truth) + 3)
    assert zero["mIoU"] == pytest.approx(share * record["mIoU"], abs=0.01)
    code, out, err = granalign(*command, "fail")
    assert (code, out) == (2, "")
    assert "got no file of 1 of the 4 videos of the queries: 'gone'; add them" in err
