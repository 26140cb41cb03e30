"""Exported models that somebody else made: no link of theirs leads out of their folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.tiny_bert import write_tiny_bert

from granalign_fast.errors import GranAlignError
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder
from granalign_fast.pipeline import SentenceEncoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    SentenceEncoder(write_tiny_bert(folder / "source"), cache_dir=folder / "kept")
    (path,) = (folder / "kept").iterdir()
    return path


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "model.onnx"])
def test_a_file_that_is_a_link(exported: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    (folder / name).rename(tmp_path / name)
    # Within the folder a link is no harm.
    (folder / "other").mkdir()
    shutil.copy(tmp_path / name, folder / "other" / name)
    (folder / name).symlink_to(f"other/{name}")
    assert OnnxSentenceEncoder(folder).encode(["a b"]).shape[0] == 1
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(GranAlignError, match=r"got a link to .*, expected a file in"):
        OnnxSentenceEncoder(folder).encode(["a b"])
