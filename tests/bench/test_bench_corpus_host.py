from __future__ import annotations

import json

import pytest

from granalign_fast.bench.commands import corpus


def test_every_runner_is_timed_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    corpus.main(["--clips", "3000", "--dim", "16", "--queries", "1", "5", "--rounds", "1"])
    one, five = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["queries"], five["queries"]) == (1, 5)
    for result in (one, five):
        assert result["ms"].keys() >= {"numpy product", "corpus float32", "corpus float16"}
        assert all(value > 0 for value in result["ms"].values())
        assert result["same"]["corpus float32"] == 1.0
        assert result["same"]["corpus float16"] > 0.9
