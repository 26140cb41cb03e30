"""The parts of `make gpu` on the CPU, at small sizes: all figures exist, failures are isolated."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from granalign_fast.bench.commands import gpu
from granalign_fast.bench.harness import random_models, random_qwen_vl, random_tower
from granalign_fast.bench.harness.limits import Limits
from granalign_fast.bench.harness.query_parts import CAPTIONS, RECOGNITION, REWRITES
from granalign_fast.bench.harness.records import Report
from granalign_fast.bench.harness.runner import Settings, run_suites
from granalign_fast.errors import GranAlignError

LIMITS = Limits(2e10, {"fp32": 1e11, "int8": 4e11})
QUICK = Settings(size=0.05, rounds=3, seconds=0.0)


def test_the_shapes_are_measured() -> None:
    report = run_suites(["shapes"], QUICK, limits=LIMITS)
    assert not report.failures
    tasks = {record.task for record in report.records}
    assert tasks == {
        *("embed prepared images", "a decode step"),
        *("prompts behind a kept prefix", "caption new frames"),
        *(REWRITES, CAPTIONS, RECOGNITION),
    }
    steps = [record for record in report.records if record.task == "a decode step"]
    assert [(r.parameters["model"], r.parameters["layers"]) for r in steps] == [
        *(("llama-mini", 1), ("llama-mini", 3)),
        *(("qwen2.5-vl-mini", 1), ("qwen2.5-vl-mini", 3)),
    ]
    assert all(record.limit and record.bound for record in steps)
    for name, (shallow, deep) in {"llama-mini": steps[:2], "qwen2.5-vl-mini": steps[2:]}.items():
        layer = (deep.median - shallow.median) / 2
        constant = report.constant(f"{name}: seconds of a decode step, extrapolated")
        assert constant == pytest.approx(deep.median + layer)
    for name, task in (
        *(("llama-mini", REWRITES), ("qwen2.5-vl-mini", CAPTIONS)),
        ("qwen2.5-vl-mini", RECOGNITION),
    ):
        few, many = (r.median for r in report.records if r.task == task)
        constant = report.constant(f"{name}: seconds of {task}, extrapolated")
        assert constant == pytest.approx(many + (many - few) / 2)
    one = Settings(size=0.05, rounds=3, seconds=0.0, random=("llama-mini",))
    alone = run_suites(["shapes"], one, limits=LIMITS)
    assert {r.parameters["model"] for r in alone.records} == {
        *("llama-mini", "llama-mini@1", "llama-mini@3"),
    }
    notes = " ".join(report.suites["shapes"].notes)
    assert "a step of all 4 layers extrapolated from 1 and 3" in notes


def test_the_other_parts_run_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = importlib.import_module("granalign_fast.bench.suites.shapes")

    def broken(*arguments: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(suite, "_tower", broken)
    report = run_suites(["shapes"], QUICK, limits=LIMITS)
    assert "RuntimeError: an illegal memory access" in report.failures["shapes"]
    assert {record.task for record in report.records} >= {"a decode step", "caption new frames"}


def test_a_suite_that_raises_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = importlib.import_module("granalign_fast.bench.suites.shapes")

    def raises(bench: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(suite, "run", raises)
    report = run_suites(["shapes", "scaling"], Settings(size=0.002, rounds=3, seconds=0.0),
                       limits=LIMITS)  # fmt: skip
    assert report.failures == {"shapes": "OSError: no space left on device"}
    assert any(record.suite == "scaling" for record in report.records)


@pytest.mark.parametrize("half", [False, True])
def test_the_tower_is_clips(tmp_path: Path, half: bool) -> None:
    """The graph's rows have unit length and depend only on the frame, not on the batch."""
    shape = random_tower.TOWERS["clip-mini"]
    weights = random_tower.tower_weights(shape)
    path = random_tower.write_tower(shape, weights, tmp_path, half=half)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    (rows,) = session.run(None, {"frames": frames})
    assert rows.shape == (5, shape.out) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    (alone,) = session.run(None, {"frames": frames[3:4]})
    np.testing.assert_allclose(alone[0], rows[3], atol=5e-3 if half else 1e-5)
    assert float((rows @ rows.T - np.eye(5)).max()) < 0.999, "all images alike: nothing is compared"


def test_vit_b32_has_as_many_weights_as_published() -> None:
    shape = random_tower.TOWERS["clip-vit-b32"]
    weights = sum(array.size for array in random_tower.tower_weights(shape).values())
    assert weights == pytest.approx(87.8e6, rel=0.002)
    assert shape.tokens == 50
    # The published 8.8e9 counts all tokens of all layers. Of 12 parts of the last layer, 10 (the
    # query and everything after it) are computed for one token only.
    assert shape.operations == pytest.approx(8.8e9 * (1 - 10 / 12 / 12), rel=0.01)


@pytest.mark.needs_torch
@pytest.mark.parametrize("half", [False, True])
def test_torch_computes_the_same_tower(tmp_path: Path, half: bool) -> None:
    torch = pytest.importorskip("torch")
    shape = random_tower.TOWERS["clip-mini"]
    weights = random_tower.tower_weights(shape)
    path = random_tower.write_tower(shape, weights, tmp_path, half=half)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    (rows,) = session.run(None, {"frames": frames})
    tower = random_tower.torch_tower(shape, weights, "cpu", half=half, compiled=False)
    pixels = random_tower.prepared(frames)
    np.testing.assert_allclose(tower(torch.from_numpy(pixels)), rows, atol=1e-2 if half else 1e-5)


def test_shapes_with_fewer_layers(tmp_path: Path) -> None:
    whole = random_models.shape_of("qwen2.5-vl-7b")
    one, two = (random_models.shape_of(f"qwen2.5-vl-7b@{n}") for n in (1, 2))
    layers = whole.text["num_hidden_layers"]
    text = [shape.weights - _of_vision(shape) for shape in (one, two, whole)]
    assert text[2] == text[0] + (layers - 1) * (text[1] - text[0])
    assert one.vision["depth"] == 1 and one.vision["fullatt_block_indexes"] == [0]
    for name in ("llama-mini@0", "llama-mini@5", "llama-mini@x", "llama-mini@"):
        with pytest.raises(GranAlignError, match=r"expected 1 to 4 layers behind '@'"):
            random_models.shape_of(name)


def _of_vision(shape: Any) -> int:
    vision = random_qwen_vl.vision_shapes(shape.vision)
    return sum(int(np.prod(size)) for size in vision.values())


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would run; one job times out and one writes nothing."""
    commands: list[list[str]] = []

    def run(command: list[str], timeout: float, check: bool, env: dict[str, str]) -> Any:
        commands.append([*command, env.get("CUDA_VISIBLE_DEVICES", "all")])
        out = Path(command[command.index("--json") + 1])
        assert timeout > 0 and not out.exists()
        if "encoders" in command:
            raise subprocess.TimeoutExpired(command, timeout)
        if "index" not in command:
            out.write_text("{}")
        return subprocess.CompletedProcess(command, 1 if "search" in command else 0)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    return commands


def test_every_job_runs_after_failures_of_others(
    jobs: list[list[str]], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "encoders-cuda.json").write_text("earlier")
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert len(jobs) == len(gpu.JOBS)
    shown = capsys.readouterr().out
    for line in ("encoders    ended after", "search      exit code 1", "index       no figures",
                 "kernels     done", "generation  done"):  # fmt: skip
        assert line in shown
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written.pop("encoders-cuda.json") == "earlier"
    names = {f"{job.name}-cuda.json" for job in gpu.JOBS}
    assert written.keys() == names - {"encoders-cuda.json", "index-cuda.json"}


def test_every_job_without_suites_names_a_module(tmp_path: Path) -> None:
    for job in gpu.JOBS:
        command = gpu.command(job, "cuda", tmp_path / "out.json", 1.0)
        if not job.suites:
            assert importlib.util.find_spec(command[command.index("-m") + 1]) is not None


def test_jobs_by_name(jobs: list[list[str]], tmp_path: Path) -> None:
    assert gpu.main(["llm", "kernels", "--out", str(tmp_path), "--device", "cuda:1"]) == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        *("kernels-cuda.json", "llm-cuda.json")
    ]
    assert "llama3-8b" in jobs[1]
    assert all(job[0] == sys.executable and "cuda" in job and job[-1] == "1" for job in jobs)
    with pytest.raises(SystemExit):
        gpu.main(["shapes"])


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [
        *(("cuda", None, None), ("cuda", "4,5", "4,5"), ("cuda:1", None, "1")),
        *(("cuda:1", "4,5", "5"), ("cpu", None, None)),
    ],
)
def test_a_job_sees_only_its_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, seen: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    kind, environment = gpu.chosen_gpu(device)
    assert kind == device.partition(":")[0]
    assert environment.get("CUDA_VISIBLE_DEVICES") == seen


@pytest.mark.parametrize("device", ["gpu:1", "cuda:2"])
def test_a_missing_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, capsys: Any
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(SystemExit):
        gpu.main(["kernels", "--device", device])
    assert f"device '{device}': " in capsys.readouterr().err


def test_a_job_writes_a_report(tmp_path: Path) -> None:
    """Runs the real command in a new process."""
    job = gpu.Job("scaling", ("scaling",), 1.0, ("--seconds", "0", "--rounds", "3"))
    assert gpu.run(job, "cpu", tmp_path, 0.002, 120.0) is None
    report = Report.read(tmp_path / "scaling-cpu.json")
    assert report.records and report.machine["commit"] and report.machine["packages"]
    assert json.loads((tmp_path / "scaling-cpu.json").read_text())["limits"]["bandwidth"] > 0
