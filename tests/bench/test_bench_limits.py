"""Limits of a machine, and the counted work of stages."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from granalign_fast.bench.harness import limits, random_models, timing
from granalign_fast.bench.harness.limits import Limits, Work, measure_limits
from granalign_fast.bench.harness.timing import HostClock
from granalign_fast.bench.suites.generation import Matrices, decoder_work
from granalign_fast.export.specs import WEIGHT_LEVELS


def test_limits_are_the_longer_of_bytes_and_operations() -> None:
    limits = Limits(100.0, {"fp32": 10.0, "int8": 40.0}, overhead=0.5)
    assert limits.seconds(Work(bytes=400.0, operations=10.0)) == (4.5, "bytes")
    assert limits.seconds(Work(bytes=100.0, operations=80.0)) == (8.5, "operations")
    assert limits.seconds(Work(100.0, 80.0, "int8")) == (2.5, "operations")
    assert Work(1.0, 2.0) + Work(3.0, 4.0) == Work(4.0, 6.0)


def test_the_machines_limits_are_measured() -> None:
    limits = measure_limits("cpu", copy_bytes=1 << 20, edge=64)
    assert limits.bandwidth > 0 and set(limits.rates) == {"fp32", "int8"}
    assert min(limits.rates.values()) > 0


def test_the_int8_rate_is_the_better_of_both_signs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {"float32": 4.0, "int8": 0.5, "uint8": 1.0}
    monkeypatch.setattr(limits, "_onnx_product", lambda weights: weights.dtype.name)
    monkeypatch.setattr(
        limits, "best_seconds", lambda run, _: seconds[run] if isinstance(run, str) else 8.0
    )
    rates = measure_limits("cpu", copy_bytes=1 << 10, edge=8).rates
    assert rates == {"fp32": 2 * 8**3 / 4.0, "int8": 2 * 8**3 / 0.5}
    seconds["uint8"] = 0.25
    assert measure_limits("cpu", copy_bytes=1 << 10, edge=8).rates["int8"] == 2 * 8**3 / 0.25


@pytest.mark.parametrize("weights", ["float32", "int8", "uint8"])
def test_timed_products_are_matrix_products(weights: str) -> None:
    # Our int8 weights are at most 64: a processor without VNNI adds pairs of products in 16 bits.
    most = WEIGHT_LEVELS
    values = np.random.default_rng(0).integers(-most, most + 1, (24, 24)).astype(np.int8)
    factor = values.astype(np.float32) if weights == "float32" else values.view(weights)
    activations = factor if weights == "float32" else factor.view(np.uint8)
    (product,) = limits._onnx_product(factor)()  # type: ignore[misc]
    np.testing.assert_array_equal(product, activations.astype(np.int64) @ factor.astype(np.int64))


def test_the_named_gpu_is_measured_with_random_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    class Clock(HostClock):
        def time(self, run: Any, inputs: Any) -> tuple[float, Any]:
            seconds, output = super().time(run, inputs)
            seen.append(output)
            return seconds, output

    def device(index: int) -> Any:
        seen.append(index)
        return contextlib.nullcontext()

    cupy: Any = types.ModuleType("cupy")
    vars(cupy).update({name: getattr(np, name) for name in np.__all__ if name != "long"})
    cupy.random, cupy.cuda = np.random, types.SimpleNamespace(Device=device)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(timing, "CudaClock", Clock)
    measured = measure_limits("cuda:1", copy_bytes=1 << 10, edge=8)
    assert seen[0] == 1 and set(measured.rates) == {"fp32", "fp16"}
    products = [one for one in seen if isinstance(one, np.ndarray)]
    assert {one.dtype.name for one in products} == {"float32", "float16"}
    assert all(len(np.unique(one)) > 32 for one in products)


def decoder_of(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def read_by(graph: Any) -> list[tuple[bool, int, int]]:
    """Return for each product with weights: whether it gets only last tokens, numbers, bytes."""
    tensors = {one.name: one for one in graph.initializer}
    last, products = False, []
    for node in graph.node:
        last |= node.op_type == "Gather" and node.attribute[0].i == 1
        weights = [tensors[name] for name in node.input if name in tensors]
        if node.op_type in ("MatMul", "Gemm"):
            numbers = int(np.prod(weights[0].dims))
        elif node.op_type == "MatMulNBits":
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            numbers = attributes["K"] * attributes["N"]
        else:
            continue
        size = sum(
            int(np.prod(one.dims)) * onnx.helper.tensor_dtype_to_np_dtype(one.data_type).itemsize
            for one in weights
        )
        products.append((last, numbers, size))
    return products


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_the_counted_work_of_a_decoder_is_that_of_its_graph(tmp_path: Path, precision: str) -> None:
    """The graph reads every weight; after the last attention it computes only last tokens."""
    folder = random_models.write_export("llama-mini", tmp_path, precision=precision)
    products = read_by(decoder_of(folder))
    manifest = types.SimpleNamespace(
        precision=precision, layers=4, kv_heads=2, head_dim=8, cache_dtype=np.dtype(np.float16)
    )
    model: Any = types.SimpleNamespace(manifest=manifest)
    matrices = Matrices.read(folder)
    # The zero point of a row's last block may fill only half a byte.
    size = sum(size for _, _, size in products)
    assert matrices.bytes(precision) == pytest.approx(size, rel=0.005 if precision == "int4" else 0)
    work = decoder_work(model, matrices, rows=7, tokens=64)
    assert work.bytes == matrices.bytes(precision)
    tokens = {True: 1, False: 64}
    assert work.operations == sum(2 * 7 * tokens[last] * n for last, n, _ in products)
    step = decoder_work(model, matrices, rows=7, past=10)
    assert step.operations == sum(2 * 7 * n for _, n, _ in products)
    assert step.bytes - work.bytes == 7 * 10 * (2 * 4) * 2 * 8 * 2
