"""Sessions: their results, and the errors of loading and running them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.models.exported_graph import open_session
from granalign_fast.runtime.device import Device


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    """A model that computes ``y = x + x``."""
    shape = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", shape, result)
    opsets = [helper.make_opsetid("", 21)]
    path = tmp_path / "doubler.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_runs_and_names_its_inputs_and_outputs(doubler: Path) -> None:
    session = open_session(doubler, threads=1)
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(session(x=x)["y"], 2 * x)
    assert session(x=x[:0])["y"].shape == (0, 2)


def test_many_threads_share_a_session(doubler: Path) -> None:
    session = open_session(doubler, threads=1)
    inputs = [np.full((4, 2), i, np.float32) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: session(x=x)["y"], inputs))
    for x, y in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(y, 2 * x)


def test_threads_do_not_spin_after_a_run(doubler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = []
    original = onnxruntime.InferenceSession

    def session(*args: Any, **kwargs: Any) -> Any:
        sessions.append(original(*args, **kwargs))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    open_session(doubler)
    (options,) = (one.get_session_options() for one in sessions)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"got inputs \[\], expected \['x'\]"),
        ({"z": np.zeros((1, 2), np.float32)}, r"got inputs \['z'\]"),
        ({"x": np.zeros((1, 2), np.float64)}, "wrong input"),
        ({"x": np.zeros((1, 3), np.float32)}, "wrong input"),
    ],
)
def test_wrong_inputs(doubler: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        open_session(doubler)(**arrays)


@pytest.mark.parametrize("keep", [0, 1, 20, -1])
def test_a_truncated_file_is_an_error_of_one_line(doubler: Path, keep: int) -> None:
    doubler.write_bytes(doubler.read_bytes()[:keep])
    with pytest.raises(GranAlignError, match=r"doubler\.onnx: ONNX Runtime cannot load") as error:
        open_session(doubler)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="no such file"):
        open_session(tmp_path / "none.onnx")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "CUDA"])
def test_unknown_devices(doubler: Path, device: str) -> None:
    with pytest.raises(GranAlignError, match="expected 'cpu', 'cuda'"):
        open_session(doubler, device=device)


def test_device_numbers() -> None:
    assert Device.parse("cuda:1").options() == {"device_id": "1"}
    assert Device.parse("cuda").options() == {}


def test_zero_threads(doubler: Path) -> None:
    with pytest.raises(GranAlignError, match="at least 1"):
        open_session(doubler, threads=0)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_built_in(
    doubler: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingExtraError, match=rf"run .*pip install .*\[{device}\]"):
        open_session(doubler, device=device)


def test_a_provider_that_was_silently_dropped(
    doubler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime has the provider but cannot start it, and falls back to the CPU silently."""
    real = onnxruntime.InferenceSession

    def falls_back(path: Path, options: object, providers: object, enable_fallback: int) -> object:
        return real(path, options, providers=["CPUExecutionProvider"])

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(GranAlignError, match=r"fell back to .*extra \[cuda\]"):
        open_session(doubler, device="cuda")


def test_a_provider_that_fails_is_not_tried_again_on_the_cpu(
    doubler: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default ONNX Runtime would print a banner and load the model again on the CPU."""
    loads: list[Any] = []

    def create(session: Any, providers: Any, *_: Any) -> None:
        session._fallback_providers = ["CPUExecutionProvider"]
        loads.append(providers)
        raise RuntimeError("CUDA failure 2: out of memory")

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
    with pytest.raises(GranAlignError, match=r"CUDA failure 2: out of memory.*see nvidia-smi"):
        open_session(doubler, device="cuda")
    assert len(loads) == 1 and capsys.readouterr().out == ""
