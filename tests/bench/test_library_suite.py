"""The suite `library`: its figures, its peers, and wrong answers that end it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from granalign_fast.bench.harness.limits import Limits
from granalign_fast.bench.harness.plots import draw_report
from granalign_fast.bench.harness.records import Report
from granalign_fast.bench.harness.runner import Settings, run_suites
from granalign_fast.bench.peers import vector_search
from granalign_fast.bench.peers.vector_search import rescored
from granalign_fast.bench.suites import library as suite
from granalign_fast.kernels import Top

LIMITS = Limits(2e10, {"fp32": 1e11, "int8": 4e11})


def run(monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setattr(suite, "_QUERIES", (1, 5))
    return run_suites(["library"], Settings(size=0.001, rounds=3, seconds=0.0), limits=LIMITS)


def test_searches_are_raced_and_grown(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    report = run(monkeypatch)
    assert report.failures == {}
    raced = [record for record in report.records if "of a library" in record.task]
    assert {record.runner for record in raced} >= {
        "ours",
        "ours, without codes",
        "numpy product and partition",
    }
    grown = [record for record in report.records if record.task.startswith("clips: ")]
    assert [record.items for record in grown] == [100, 100, 1000, 10_000]
    constants = report.suites["library"].constants
    assert constants["memory that is not in files, 10,000 clips, bytes"] > 1 << 20
    if find_spec("faiss") is not None:
        recalls = [constants[f"recall at 100: ours, approximate {share}%"] for share in (1, 20)]
        assert 0 < recalls[0] < recalls[1] <= 1
    pytest.importorskip("matplotlib")
    assert [path.name for path in draw_report(report, tmp_path)] == ["scaling.png", "limits.png"]


@pytest.mark.parametrize("harm", ["scores", "rows"])
def test_a_wrong_answer_ends_the_suite(harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = suite.corpus

    def wrong(*arguments: Any, k: int, **options: Any) -> Top:
        if harm == "scores":
            top = real(*arguments, k=k, **options)
            return Top(top.scores + np.float32(1e-4), top.rows)
        top = real(*arguments, k=k + 1, **options)
        return Top(top.scores[:, 1:], top.rows[:, 1:])  # the best is left out

    monkeypatch.setattr(suite, "corpus", wrong)
    message = run(monkeypatch).suites["library"].failure
    assert message is not None
    assert message.startswith("best of a library: ")


def test_coarse_finds_are_scored_exactly() -> None:
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((50, 8)).astype(np.float16)
    queries = rng.standard_normal((3, 8)).astype(np.float32)
    found = np.array([rng.permutation(50)[:20] for _ in range(3)])
    found[0, 5:] = -1  # a coarse index found fewer
    scores, rows = rescored(queries, clips, found, 4)
    for query, some, got, best in zip(queries, found, scores, rows, strict=True):
        exact = {row: float(clips[row].astype(np.float32) @ query) for row in some if row >= 0}
        expected = sorted(exact, key=lambda row: -exact[row])[:4]
        assert best.tolist() == expected
        np.testing.assert_allclose(got, [exact[row] for row in expected], rtol=1e-5)


def test_peers_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faiss takes part where it is installed."""
    rng = np.random.default_rng(0)
    clips = suite.draw_clips(rng, 3000)
    queries = clips[[5, 70]].astype(np.float32)
    expected = np.argsort(-(queries @ clips.T.astype(np.float32)), axis=1)[:, :10]
    names = []
    for peer in vector_search.peers(clips, 10):
        names.append(peer.name)
        _, rows = peer.search(queries)
        assert rows.shape == (2, 10)
        if peer.exact:
            assert (rows == expected).mean() > 0.9
    assert names[0] == "numpy product and partition"
