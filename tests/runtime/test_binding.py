"""Bound runs equal plain runs. NumPy on the CPU takes the path that CuPy takes on a GPU."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiny_llm import CONFIGS, write_unchecked

from granalign_fast.models.exported_graph import open_session
from granalign_fast.runtime.binding import bind_input, bind_output, queued_options, run_bound


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("past", [0, 5])
def test_a_bound_decoder_equals_the_plain_one(tmp_path: Path, precision: str, past: int) -> None:
    config = CONFIGS["llama-gqa-untied"]
    session = open_session(write_unchecked(tmp_path, config, precision=precision) / "model.onnx")
    random = np.random.default_rng(0)
    dtype = np.float16 if precision == "fp16" else np.float32
    arrays = {
        "input_ids": random.integers(200, size=(3, 4)),
        "position_ids": past + np.tile(np.arange(4), (3, 1)),
        "attention_mask": np.ones((3, past + 4), np.int64),
    }
    for name in session.inputs[3:]:
        # Not contiguous, like a prefix that is a view of a larger key/value cache.
        arrays[name] = random.standard_normal((3, 2, 8, past)).astype(dtype).swapaxes(2, 3)
    expected = session(**{name: np.ascontiguousarray(array) for name, array in arrays.items()})
    outputs = run_bound(session._run.session, arrays, np, "cpu")
    gc.collect()  # frees everything that only the run itself referenced
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype and outputs[name].shape == array.shape
        np.testing.assert_array_equal(outputs[name], array)


def test_outputs_feed_the_next_step(tmp_path: Path) -> None:
    config = CONFIGS["qwen2-gqa-tied"]
    session = open_session(write_unchecked(tmp_path, config) / "model.onnx")
    past = {name: np.empty((2, 2, 0, 8), np.float32) for name in session.inputs[3:]}
    plain, bound = dict(past), dict(past)
    ids = np.array([[5, 9, 17], [3, 3, 8]])
    for step in range(4):
        first = 0 if step == 0 else step + 2
        inputs = {
            "input_ids": ids,
            "position_ids": np.tile(np.arange(first, first + ids.shape[1]), (2, 1)),
            "attention_mask": np.ones((2, first + ids.shape[1]), np.int64),
        }
        expected = session(**inputs, **plain)
        outputs = run_bound(session._run.session, inputs | bound, np, "cpu")
        np.testing.assert_array_equal(expected["logits"], outputs["logits"])
        plain, bound = (
            {name: out[name.replace("past_key_values", "present")] for name in past}
            for out in (expected, outputs)
        )
        ids = expected["logits"][:, 0].argmax(axis=1)[:, None]


class DeviceArray:
    """An array with only the attributes by which CuPy arrays are bound: type, shape, address."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype, self.shape, self.size = array, array.dtype, array.shape, array.size
        self.data = SimpleNamespace(ptr=array.ctypes.data if array.size else 0)


@pytest.mark.parametrize("past", [0, 5])
def test_device_arrays_are_bound_by_address(tmp_path: Path, past: int) -> None:
    folder = write_unchecked(tmp_path, CONFIGS["llama-gqa-untied"], precision="fp16")
    session = open_session(folder / "model.onnx")
    random = np.random.default_rng(0)
    arrays = {
        name: random.standard_normal((3, 2, past, 8)).astype(np.float16)
        for name in session.inputs[3:]
    } | {
        "input_ids": random.integers(200, size=(3, 4)),
        "position_ids": past + np.tile(np.arange(4), (3, 1)),
        "attention_mask": np.ones((3, past + 4), np.int64),
    }
    expected = session(**arrays)
    onnx_session = session._run.session
    binding, bound = onnx_session.io_binding(), []
    for name, array in arrays.items():
        bound.append(bind_input(binding, name, DeviceArray(array), "cpu", 0))
    outputs = {name: np.full_like(array, 113) for name, array in expected.items()}
    for name, array in outputs.items():
        bound.append(bind_output(binding, name, DeviceArray(array), "cpu", 0))
    onnx_session.run_with_iobinding(binding)
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)


def test_a_queued_run_does_not_wait(tmp_path: Path) -> None:
    """A CPU run has nothing to wait for, so the test checks the run's option."""
    session = open_session(write_unchecked(tmp_path, CONFIGS["qwen2-gqa-tied"]) / "model.onnx")
    inputs = {name: np.empty((2, 2, 0, 8), np.float32) for name in session.inputs[3:]} | {
        "input_ids": np.array([[5, 9], [3, 8]]),
        "position_ids": np.array([[0, 1], [0, 1]]),
        "attention_mask": np.ones((2, 2), np.int64),
    }
    options = queued_options()
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
    outputs = run_bound(session._run.session, inputs, np, "cpu", options=options, queued=True)
    np.testing.assert_array_equal(outputs["logits"], session(**inputs)["logits"])
