"""Submissions: JSON Lines, and the archive that QVHighlights' server took."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from granalign_fast import GranAlignError
from granalign_fast.evaluation.submission import check_predictions_file, write_predictions
from granalign_fast.jsonl import read_jsonl

VAL = [{"qid": 1, "query": "a café", "pred_relevant_windows": [[0, 4, 0.5]]}]
TEST = [{"qid": 2, "query": "a dog", "pred_relevant_windows": []}]


def members(path: Path) -> dict[str, list[object]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines(tmp_path: Path, name: str) -> None:
    write_predictions(tmp_path / name, VAL, shown=True)
    assert read_jsonl(tmp_path / name) == VAL


def test_an_archive_holds_both_splits(tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    write_predictions(path, TEST, shown=False)
    assert members(path) == {"hl_test_submission.jsonl": TEST}
    write_predictions(path, VAL, shown=True)
    both = {"hl_val_submission.jsonl": VAL, "hl_test_submission.jsonl": TEST}
    assert members(path) == both
    content = path.read_bytes()
    write_predictions(path, VAL, shown=True)
    assert path.read_bytes() == content, "equal predictions make equal files"


def test_other_archives_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "mine")
    content = path.read_bytes()
    with pytest.raises(GranAlignError, match=r"got a zip with 'photo\.txt', expected a submission"):
        check_predictions_file(path, "qvhighlights")
    path.write_bytes(content[:30])
    for act in (
        lambda: check_predictions_file(path, "qvhighlights"),
        lambda: write_predictions(path, VAL, shown=True),
    ):
        with pytest.raises(GranAlignError, match="not a whole zip") as error:
            act()
        assert "\n" not in str(error.value)
    assert path.read_bytes() == content[:30]


def test_a_zip_is_for_qvhighlights_alone(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match=r"got a zip for charades, expected \.jsonl or"):
        check_predictions_file(tmp_path / "a.zip", "charades")
    check_predictions_file(tmp_path / "a.jsonl", "charades")
