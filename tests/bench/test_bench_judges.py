"""A model with wrong answers fails the suites that measure it, however fast it is."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast.bench.commands import encoders
from granalign_fast.bench.harness import timing, workloads
from granalign_fast.bench.harness.limits import Limits
from granalign_fast.bench.harness.records import OURS, Report, SuiteRun
from granalign_fast.bench.harness.runner import Bench, Settings
from granalign_fast.bench.harness.timing import Samples, WrongAnswerError
from granalign_fast.bench.peers import runtimes as peers
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.language_model import CausalLM
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.video.cutting import cut

LIMITS = Limits(2e10, {"fp32": 1e11, "int8": 4e11})
QUICK = Settings(size=0.05, rounds=3, seconds=0.0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of models and videos, and the objects that suites share."""
    return tmp_path_factory.mktemp("bench"), {}


@pytest.fixture
def measure(
    monkeypatch: pytest.MonkeyPatch, shared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> Callable[..., Report]:
    """A function that runs a suite without peers, on ten clips that are rendered once."""
    folder, objects = shared
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(timing, "settle", lambda: None)  # these times are not used
    path = folder / "video.mp4"
    if not path.exists():
        cut(workloads.video(folder, side=224, frame_rate=10), 0, 20, path, exact=True)
    for name in ("encoders", "index"):
        suite = importlib.import_module(f"granalign_fast.bench.suites.{name}")
        monkeypatch.setattr(suite, "video", lambda folder, **sizes: path)
    monkeypatch.setattr("granalign_fast.bench.suites.index._ROWS", 6)  # the ten are two batches

    def run(name: str, settings: Settings = QUICK) -> Report:
        report = Report({}, {}, {}, suites={name: SuiteRun()})
        bench = Bench(settings, LIMITS, tmp_path, report, suite=name, shared=objects)
        importlib.import_module(f"granalign_fast.bench.suites.{name}").run(bench)
        return report

    return run


def test_right_models_pass(measure: Callable[..., Report]) -> None:
    tasks = {record.task for record in measure("generation").records}
    assert {"a decode step", "query-aware captions", "recognition, behind kept prefixes"} < tasks
    assert {record.task for record in measure("encoders").records} > {"embed captions"}
    report = measure("index")
    assert len(report.records) == 6
    (whole,) = report.breakdowns
    index_run = next(record for record in report.records if record.task == "index a video")
    assert set(whole.stages) - {"other"} == {
        record.task.removeprefix("stage: ") for record in report.records if record is not index_run
    }
    if "other" in whole.stages:
        assert sum(whole.stages.values()) == pytest.approx(index_run.each)


def other_rows(answers: list[list[int]], *_: Any) -> list[list[int]]:
    """Replace all rows but the first."""
    return answers[:1] + [[0] * len(answer) for answer in answers[1:]]


def other_token(answers: list[list[int]], *_: Any) -> list[list[int]]:
    """Change one token in the middle of the last row."""
    last = list(answers[-1])
    last[len(last) // 2] += 1
    return [*answers[:-1], last]


def short_of_one(answers: list[list[int]], *_: Any) -> list[list[int]]:
    return [*answers[:-1], answers[-1][:-1]]


def constant(rows: Any, *_: Any) -> Any:
    found = np.zeros_like(rows)
    found[..., 0] = 1
    return found


def swapped(rows: Any, *_: Any) -> Any:
    """Swap the last two rows."""
    return (
        [*rows[:-2], rows[-1], rows[-2]]
        if isinstance(rows, list)
        else rows[[*range(len(rows) - 2), -1, -2]]
    )


def one_of_four(texts: list[str], *_: Any) -> list[str]:
    return [f"{text} not" if number % 4 == 1 else text for number, text in enumerate(texts)]


WRONG = {
    "tokens of all rows but one": ("generation", CausalLM, "generate", other_rows),
    "one token of one row": ("generation", CausalLM, "generate", other_token),
    "an answer that is too short": ("generation", CausalLM, "generate", short_of_one),
    "captions": ("generation", VlmCaptioner, "answers", other_token),
    "no recognition": ("generation", VlmCaptioner, "recognise", lambda found, *_: found * 0),
    "recognition of others": ("generation", VlmCaptioner, "recognise", lambda found, *_: 1 - found),
    "one embedding for all frames": ("encoders", FrameEncoder, "encode_frames", constant),
    "frames in another order": ("encoders", FrameEncoder, "encode_frames", swapped),
    "sentences in another order": ("encoders", SentenceEncoder, "encode", swapped),
    "tokens of a cut model": ("shapes", CausalLM, "generate", other_rows),
    "captions of new frames": ("shapes", VlmCaptioner, "answers", other_token),
    "captions in an index": ("index", VlmCaptioner, "agnostic", one_of_four),
    "sentences in an index": ("index", SentenceEncoder, "encode", constant),
    "frames in an index": ("index", FrameEncoder, "encode_frames", constant),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_fails_its_suite(
    measure: Callable[..., Report], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    suite, kind, method, change = WRONG[name]
    right = getattr(kind, method)
    if (suite, kind) == ("encoders", FrameEncoder):  # sentences come before frames
        monkeypatch.setattr(f"granalign_fast.bench.suites.{suite}._sentences", lambda bench: None)
    monkeypatch.setattr(
        kind, method, lambda *arguments, **keywords: change(right(*arguments, **keywords))
    )
    only = "llama-mini" if kind is CausalLM else "qwen2.5-vl-mini"
    settings = dataclasses.replace(QUICK, random=(only,) if suite == "shapes" else ())
    with pytest.raises(WrongAnswerError, match="the times mean nothing"):
        measure(suite, settings)


def test_a_prefill_that_keeps_nothing_fails_its_stage(
    measure: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VlmCaptioner, "prefill", lambda self, frames: None)
    with pytest.raises(WrongAnswerError, match="prefixes: 0 bytes are kept"):
        measure("index")


def test_a_step_lost_in_the_noise_is_not_recorded(
    measure: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = importlib.import_module("granalign_fast.bench.suites.generation")
    below = Samples(((-1e-3, 0.0, 1e-3), (-1e-3, 0.0, 0.0)))
    monkeypatch.setattr(suite, "difference", lambda longer, shorter, count: below)
    monkeypatch.setattr(suite, "_captions", lambda bench: None)
    report = measure("generation")
    assert "a decode step" not in {record.task for record in report.records}
    assert not report.breakdowns
    assert "ours: a decode step is lost in the noise" in " ".join(report.suites["generation"].notes)


def write_captions(folder: Path, count: int) -> str:
    texts = workloads.sentences(np.random.default_rng(0), count)
    path = folder / "captions.jsonl"
    path.write_text(
        json.dumps({"captions": texts[:2]}) + "\n" + json.dumps({"captions": texts[2:]})
    )
    return str(path)


def test_the_command_embeds_a_file_of_captions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(timing, "settle", lambda: None)
    arguments = ["--captions", write_captions(tmp_path, 12), "--rounds", "3", "--count"]
    assert encoders.main([*arguments, "10"]) == 0
    shown = capsys.readouterr().out
    assert "10 captions, 10 distinct" in shown and f"{OURS}, int8" in shown
    assert encoders.main([*arguments, "13"]) == 2
    assert "got 12 captions, expected at least 13" in capsys.readouterr().err
    right = SentenceEncoder.encode
    monkeypatch.setattr(SentenceEncoder, "encode", lambda *arguments: swapped(right(*arguments)))
    assert encoders.main([*arguments, "10"]) == 1
    assert "the times mean nothing" in capsys.readouterr().err
