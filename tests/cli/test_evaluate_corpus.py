"""``granalign evaluate corpus``: captions or a library, missing videos, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from test_schemas import check

from granalign_fast import GranAlignError
from granalign_fast.cli.app import app

SCENES = {"street": "a red car on the road", "yard": "two dogs play with a ball"}


@pytest.fixture
def files(tmp_path: Path, minilm: Path) -> dict[str, Path]:
    captions = [
        {"vid": vid, "captions": ["an empty room"] * 3 + [shown] * 4 + ["nothing"] * 3}
        for vid, shown in SCENES.items()
    ]
    queries = [
        {"qid": number, "query": shown, "vid": vid, "duration": 20, "relevant_windows": [[6, 14]]}
        for number, (vid, shown) in enumerate(SCENES.items())
    ]
    paths = {}
    for name, records in {"captions": captions, "queries": queries, "one": captions[:1]}.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    command = typer.main.get_command(app)
    capsys.readouterr()
    words = ("evaluate", "corpus", *words, "--dataset=qvhighlights", "--json")
    command([str(word) for word in words], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_every_query_is_searched_in_all_videos(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, files["queries"], "--captions", files["captions"])
    check(found, "evaluate-corpus")
    assert (found["video-R@1"], found["moment-R@1,IoU=0.5"]) == (100.0, 100.0)
    assert (found["queries"], found["videos"], found["clips"], found["missing"]) == (2, 2, 20, 0)


@pytest.mark.parametrize(("missing", "queries", "recall"), [("skip", 1, 100.0), ("zero", 2, 50.0)])
def test_a_video_that_is_not_there(
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    missing: str,
    queries: int,
    recall: float,
) -> None:
    words = (files["queries"], "--captions", files["one"], "--missing", missing)
    found = run(capsys, *words)
    assert (found["queries"], found["video-R@1"], found["missing"]) == (queries, recall, 1)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "got neither, expected one of: --captions FILE, --library DIR"),
        (("--captions={captions}", "--library=x"), "got both, expected one of: --captions"),
        (("--captions={one}", "--missing=fail"), "has 1 video of the queries not: 'yard'"),
        (("--captions={one}", "--results=x.json"), "--results: got a corpus, expected a dataset"),
        (("--library=nowhere",), "nowhere"),
    ],
)
def test_wrong_use(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], error: str
) -> None:
    named = [word.format(**files) for word in words]
    with pytest.raises(GranAlignError, match=error) as caught:
        run(capsys, files["queries"], *named)
    assert "\n" not in str(caught.value)
