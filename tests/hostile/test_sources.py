"""Checkpoints and graphs of strangers: what changed files found in the readers of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_llm import LLAMA, write_tiny_llm

from granalign_fast import export_llm
from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.failures import names_source
from granalign_fast.models.encoder import checked_rows


def test_a_special_token_of_a_hundred_thousand_characters(tmp_path: Path) -> None:
    """The tokenizer would take minutes to add it."""
    write_tiny_llm(tmp_path / "tiny", LLAMA | {"num_hidden_layers": 1})
    path = tmp_path / "tiny" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"eos_token": "x" * 100_000}))
    with pytest.raises(GranAlignError, match="token of 100,000 characters, expected at most 4,096"):
        export_llm(tmp_path / "tiny", tmp_path / "out", check=False)
    assert not (tmp_path / "out").exists()


def test_whatever_a_checkpoint_raises_names_it() -> None:
    @names_source
    def export(source: str, out: str) -> None:
        raise IndexError(f"index -3 is out of bounds\nfor {out}")

    with pytest.raises(GranAlignError) as caught:
        export("tiny", "out")
    assert str(caught.value) == (
        "tiny: cannot be exported (index -3 is out of bounds for out); get the checkpoint again"
    )


def test_a_graph_that_gives_another_shape() -> None:
    rows = np.zeros((3, 32), np.float32)
    assert checked_rows(rows, (3, 32), Path("a")) is rows
    with pytest.raises(GranAlignError, match=r"a: its graph gave an array \(3, 32\), expected"):
        checked_rows(rows, (1, 32), Path("a"))
