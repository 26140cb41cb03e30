"""``granalign datasets`` and ``granalign score`` on annotation files as published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.annotations import (
    ACTIVITYNET,
    CHARADES,
    LENGTHS,
    PHRASES,
    QVHIGHLIGHTS,
    TFVTG,
    VTG_GPT,
    write,
)
from helpers.command import Granalign, runner

from granalign_fast.datasets import read_annotations, read_captions
from granalign_fast.jsonl import read_jsonl


@pytest.fixture
def granalign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Granalign:
    """Granalign a command in a folder with annotation files."""
    for name, content in {
        "val.jsonl": VTG_GPT,
        "official.jsonl": QVHIGHLIGHTS,
        "sta.txt": CHARADES,
        "lengths.csv": LENGTHS,
        "val_1.json": ACTIVITYNET,
        "llm_outputs.json": TFVTG,
    }.items():
        write(tmp_path / name, content)
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


def test_show(granalign: Granalign) -> None:
    code, out, err = granalign("datasets", "show", "val.jsonl")
    assert (code, err) == (0, "")
    assert "dataset: QVHighlights" in out
    assert "all with 2 rewrites each from `rephrased_query`" in out
    assert "first query: qid 11: A cook slices an onion" in out
    assert "windows: 2 to 8 s, 20 to 26 s" in out
    assert f"rewrites: {' | '.join(PHRASES)}" in out
    code, out, err = granalign("datasets", "show", "sta.txt")
    assert code == 0
    assert "duration unknown" in out
    assert err.startswith("granalign: warning: no duration: 2 videos of Charades-STA")
    assert len(err.splitlines()) == 1


def test_texts_of_files_are_shown_without_control_characters(granalign: Granalign) -> None:
    record = VTG_GPT[0] | {"query": "a cook\x1b[2J\ncuts"}
    write(Path("x.jsonl"), [record | {"\x1b]0;": 1}])
    code, out, err = granalign("datasets", "show", "x.jsonl")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "first query: qid 11: a cook\\u001b[2J cuts\n" in out


def test_convert(granalign: Granalign) -> None:
    for inputs, count in (
        (["val.jsonl", "official.jsonl"], 2),
        (["llm_outputs.json", "sta.txt", "lengths.csv"], 3),
        (["val_1.json", "--dataset=activitynet"], 3),
    ):
        code, out, _ = granalign("datasets", "convert", *inputs, "out.jsonl.gz")
        assert code == 0
        assert out.endswith(f"Wrote out.jsonl.gz: {count} queries.\n")
        paths = [name for name in inputs if not name.startswith("--")]
        assert read_annotations(["out.jsonl.gz"]).queries == read_annotations(paths).queries
        Path("out.jsonl.gz").unlink()


def test_captions(granalign: Granalign) -> None:
    Path("captions").mkdir()
    write(Path("captions/a.jsonl"), [{"moment": 0, "description": "a cat"}])
    assert granalign("datasets", "show", "captions") == (
        0,
        "captions: captions of 1 video, 1 to 1 each, 1 together.\nfirst caption of a: a cat\n",
        "",
    )
    assert granalign("datasets", "convert", "captions", "c.jsonl")[0] == 0
    assert read_captions("c.jsonl") == read_captions("captions")
    assert read_jsonl("c.jsonl") == [{"vid": "a", "captions": ["a cat"]}]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["convert", "sta.txt", "lengths.csv"], "expected a name that ends in .jsonl or .gz"),
        (["convert", "val.jsonl", "official.jsonl"], "official.jsonl: already exists"),
        (["convert", "val.jsonl", "no/out.jsonl"], "its folder is not there"),
        (["show", "sta.txt", "--dataset=qvhighlights"], "expected JSON Lines of QVHighlights"),
        (["show", "none.jsonl"], "none.jsonl: cannot be read"),
        (["show", "val_1.json", "val.jsonl", "--dataset=activitynet"], "names of QVHighlights"),
    ],
)
def test_refusals(granalign: Granalign, arguments: list[str], part: str) -> None:
    before = sorted(path.name for path in Path().iterdir())
    code, out, err = granalign("datasets", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert part in err
    assert sorted(path.name for path in Path().iterdir()) == before


def test_score_joins_ground_truth(granalign: Granalign) -> None:
    predictions = {
        "AB1CD": {
            "sentences": ["person opens a drawer.", "person puts a cup on the table."],
            "timestamps": [[1, 5.5], [20, 25.25]],
        },
        "XY2ZW": {"sentences": ["a person is laughing."], "timestamps": [[8, 9]]},
    }
    write(Path("p.json"), predictions)
    score = ("score", "charades", "--predictions=p.json", "--ground-truth=sta.txt")
    code, out, err = granalign(*score, "--ground-truth=lengths.csv", "--json")
    assert (code, err) == (0, "")
    metrics = json.loads(out)
    # By hand: IoUs 1, 5.25 / 10.5 in the clipped window, and 0.
    assert (metrics["R1@0.5"], metrics["R1@0.7"], metrics["mIoU"]) == (66.67, 33.33, 50.0)
    code, _, err = granalign(*score)
    assert code == 2
    assert "give the file with the lengths too" in err
