"""The race of captions: every runtime answers alike, or the suite gives no figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast.bench.harness import random_models
from granalign_fast.bench.harness.limits import Limits
from granalign_fast.bench.harness.records import OURS, Report
from granalign_fast.bench.harness.runner import Settings, run_suites
from granalign_fast.bench.peers import runtimes
from granalign_fast.bench.peers.clip_answers import TransformersClips
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet

LIMITS = Limits(2e10, {"fp32": 1e11, "int8": 4e11})
FAMILIES = ("qwen3-vl-mini", "smolvlm2-mini", "qwen2.5-vl-mini")
GONE = runtimes.Peer("gone", "captions", ("no_such_module",), "no-such-package")


def race(monkeypatch: pytest.MonkeyPatch) -> Report:
    """Run the suite with one small model, without other software."""
    from granalign_fast.bench.suites import captions

    monkeypatch.setattr(captions, "TRANSFORMERS", GONE)
    monkeypatch.setattr(captions, "GENAI_ENGINE", GONE)
    settings = Settings(size=0.05, rounds=3, seconds=0.0, random=("smolvlm2-mini",))
    return run_suites(["captions"], settings, limits=LIMITS)


def test_every_form_of_clips_gives_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    report = race(monkeypatch)
    assert not report.failures
    forms = {(r.parameters["clips"], r.parameters["frames"]) for r in report.records}
    assert forms == {(1, 1), (6, 1), (1, 4), (6, 4)}
    tasks = {(r.task, r.runner) for r in report.records}
    assert tasks == {
        (task, runner)
        for task in ("caption clips", "recognise a query in clips")
        for runner in (OURS, f"{OURS}, frames seen before")
    }


def test_a_wrong_token_ends_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = VlmCaptioner.answers

    def slipping(self: VlmCaptioner, frames: FrameSet, *args: Any, **more: Any) -> list[list[int]]:
        rows = answers(self, frames, *args, **more)
        rows[-1][5] = (rows[-1][5] + 1) % 2048
        return rows

    monkeypatch.setattr(VlmCaptioner, "answers", slipping)
    assert "token 5 of answer 0 is not the likeliest" in race(monkeypatch).failures["captions"]


def test_a_wrong_probability_ends_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    recognise, calls = VlmCaptioner.recognise, iter(range(1000))

    def slipping(self: VlmCaptioner, frames: FrameSet, queries: list[str]) -> Any:
        return recognise(self, frames, queries) * (1 - 0.02 * (next(calls) % 2))

    monkeypatch.setattr(VlmCaptioner, "recognise", slipping)
    assert "probabilities" in race(monkeypatch).failures["captions"]


@pytest.mark.needs_torch
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_writes_our_tokens(tmp_path: Path, name: str, frames: int) -> None:
    pytest.importorskip("torch")
    model = VisionLanguageModel(random_models.write_export(name, tmp_path))
    height, width = model.manifest.image_size
    peer = TransformersClips(tmp_path / "sources" / name, (height, width))
    captioner = VlmCaptioner(model, max_new_tokens=12)
    shape = 3, frames, height // 16, width // 16, 3
    blocks = np.random.default_rng(frames).integers(0, 256, shape, np.uint8)
    images = blocks.repeat(16, axis=2).repeat(16, axis=3)
    apart = 0.5 if frames > 1 else 0.0
    clips = FrameSet.of(images if frames > 1 else images[:, 0], frame_seconds=apart)

    def prepared(task: str) -> dict[str, Any]:
        ids = captioner.start_of(clips.form).prompt(task)
        return peer.prepare(images, model.layout(frames, apart).expand(ids).ids, apart)

    task, query = prompts.agnostic_caption(frames), "a dog runs"
    answers = captioner.answers(clips, task, stop_ids=())
    assert len({tuple(row) for row in answers}) == 3, "equal answers would prove nothing"
    assert answers == peer.captions(prepared(task), 12)
    shares = peer.shares(prepared(prompts.recognition(query, frames)), *captioner.answer_tokens)
    np.testing.assert_allclose(captioner.recognise(clips, [query])[0], shares, atol=1e-3)
