"""The standard definitions of ONNX Runtime's own operators equal these operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from granalign_fast.errors import GranAlignError
from granalign_fast.export.graphs.builder import make_model
from granalign_fast.runtime.standard_operators import MICROSOFT, standard_bytes, standardise

Arrays = dict[str, np.ndarray]
WIDTH = 16


def array(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size)


ROWS, OTHER = array(2, 5, WIDTH), array(2, 5, WIDTH, seed=1)
GAIN, SHIFT, BIAS = (array(WIDTH, seed=seed) for seed in (2, 3, 4))
VALUES = array(2, 5, WIDTH, seed=6)
MASK = np.where(array(2, 1, 5, 5, seed=5) > 1, -1e4, 0.0) * (1 - np.eye(5))
CASES: dict[str, tuple[str, list[Any], list[str], dict[str, Any]]] = {
    # Operator, inputs (None for an absent one), outputs, attributes.
    "norm": ("SkipLayerNormalization", [ROWS, OTHER, GAIN, SHIFT], ["y"], {"epsilon": 1e-2}),
    "norm-bias": (
        "SkipLayerNormalization",
        [ROWS, OTHER, GAIN, SHIFT, BIAS],
        ["y", "", "", "sum"],
        {"epsilon": 1e-5},
    ),
    "norm-without-shift": ("SkipLayerNormalization", [ROWS, OTHER, GAIN, None, BIAS], ["y"], {}),
    "norm-same-for-all": ("SkipLayerNormalization", [ROWS, OTHER[0], GAIN, SHIFT], ["y"], {}),
    "rms": ("SkipSimplifiedLayerNormalization", [ROWS, OTHER, GAIN], ["y"], {"epsilon": 1e-2}),
    "rms-bias": (
        "SkipSimplifiedLayerNormalization",
        [ROWS, OTHER, GAIN, BIAS],
        ["y", "", "", "sum"],
        {"epsilon": 1e-5},
    ),
    "quick-gelu": ("QuickGelu", [ROWS], ["y"], {}),
    "quick-gelu-alpha": ("QuickGelu", [ROWS], ["y"], {"alpha": 0.5}),
    "attention": (
        "Attention",
        [ROWS, array(WIDTH, 3 * WIDTH), array(3 * WIDTH)],
        ["y"],
        {"num_heads": 4},
    ),
    "attention-causal": (
        "Attention",
        [ROWS, array(WIDTH, 3 * WIDTH), array(3 * WIDTH)],
        ["y"],
        {"num_heads": 2, "unidirectional": 1, "scale": 0.3},
    ),
    "attention-mask": (
        "Attention",
        [ROWS, array(WIDTH, 3 * WIDTH), array(3 * WIDTH), None, None, MASK],
        ["y"],
        {"num_heads": 2},
    ),
    "heads": ("MultiHeadAttention", [ROWS, OTHER, VALUES], ["y"], {"num_heads": 4}),
    "heads-mask": (
        "MultiHeadAttention",
        [ROWS, OTHER, VALUES, None, None, MASK],
        ["y"],
        {"num_heads": 2, "scale": 0.3},
    ),
}


def write(case: str, dtype: Any) -> tuple[Any, Arrays]:
    """Return a model of one operator, and its inputs."""
    kind, inputs, outputs, attributes = CASES[case]
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    arrays = {f"x{i}": x.astype(dtype) for i, x in enumerate(inputs) if x is not None}
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = make_model(
        case,
        nodes=[helper.make_node(kind, names, outputs, domain=MICROSOFT, **attributes)],
        inputs=[helper.make_tensor_value_info(n, code, x.shape) for n, x in arrays.items()],
        outputs=[helper.make_tensor_value_info(n, code, None) for n in outputs if n],
        tensors=[],
    )
    return model, arrays


def run(model: Any, arrays: Arrays) -> list[np.ndarray]:
    """Run a model, or its serialised bytes; return its outputs."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, arrays)
    return outputs


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", sorted(CASES))
def test_definitions(case: str, dtype: Any) -> None:
    model, arrays = write(case, dtype)
    expected = run(model, arrays)
    standardise(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    outputs = run(model, arrays)
    scale = 2e-6 if dtype is np.float32 else 4e-3
    for got, value in zip(outputs, expected, strict=True):
        assert got.dtype == value.dtype
        np.testing.assert_allclose(got, value, 0, scale * max(1.0, float(abs(value).max())))
    assert all(float(np.ptp(value)) > 0.1 for value in expected)


def test_only_chosen_and_defined_operators_are_replaced(tmp_path: Path) -> None:
    """An operator without a definition stays, and the model still declares its domain."""
    model, arrays = write("norm", np.float32)
    names = {"input": ["y", "scale", "zero"], "output": ["eight"]}
    node = helper.make_node("QuantizeLinear", *names.values(), domain=MICROSOFT)
    model.graph.node.append(node)
    for name, value in (("scale", np.float32(0.1)), ("zero", np.uint8(3))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.output.append(helper.make_tensor_value_info("eight", 2, None))
    expected = run(model, arrays)
    before = model.SerializeToString()
    standardise(model, {"QuickGelu"})
    assert model.SerializeToString() == before
    standardise(model)
    kinds = [(node.domain, node.op_type) for node in model.graph.node]
    assert kinds == [("", "Add"), ("", "LayerNormalization"), (MICROSOFT, "QuantizeLinear")]
    (y, eight), (expected_y, expected_eight) = run(model, arrays), expected
    tolerance, step = 2e-6, 0.1
    np.testing.assert_allclose(y, expected_y, atol=tolerance)
    # The quantised levels are comparable only if no value is within rounding error of an edge
    # between two levels.
    levels = expected_y / np.float32(step) + 3
    assert np.abs(levels - np.floor(levels) - 0.5).min() > 10 * tolerance / step
    np.testing.assert_array_equal(eight, expected_eight)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model, arrays = write("quick-gelu", np.float32)
    onnx.save(model, path)
    data = standard_bytes(path)
    assert data is not None and path.read_bytes() == model.SerializeToString()
    np.testing.assert_allclose(run(data, arrays)[0], run(model, arrays)[0], atol=1e-6)
    large = numpy_helper.from_array(np.zeros(1000, np.float32), "large")
    model.graph.initializer.append(large)
    onnx.save(model, path, save_as_external_data=True, location="data")
    assert standard_bytes(path) is None
    model, _ = write("quick-gelu", np.float32)
    standardise(model)
    onnx.save(model, path)
    assert standard_bytes(path) is None
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(GranAlignError, match="not an ONNX model"):
        standard_bytes(path)


def test_every_definition_is_tested() -> None:
    from granalign_fast.runtime import standard_operators as standard

    definitions: dict[str, Callable[..., None]] = standard._DEFINITIONS
    assert {kind for kind, *_ in CASES.values()} == set(definitions)
