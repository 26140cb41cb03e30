"""Measure the machine's best rates, and compute how long a stage would take at them.

The suite that measures a stage counts its bytes and operations by formula. The limit is the longer
of two times: its bytes at the copy bandwidth, and its operations at the rate of large matrix
products. No stage with these counts can be faster, and few can be as fast (the roofline model).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.models.encoder import cpu_threads
from granalign_fast.runtime.device import Device

_COPY_BYTES = 1 << 28
"""Bytes of the array that is copied on a CPU: several times the largest cache."""
_EDGE = 1536
"""Rows and columns of the matrices on a CPU: large enough that arithmetic bounds the product."""
_BEST_OF = 5
"""Runs of each measurement, of which the fastest counts."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a stage, whatever software does it.

    Attributes:
        bytes: bytes read and written, each counted once.
        operations: arithmetic operations; a multiplication and an addition are two.
        kind: type of the numbers: ``fp32``, ``fp16`` or ``int8``.
    """

    bytes: float = 0.0
    operations: float = 0.0
    kind: str = "fp32"

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations, self.kind)


@dataclass(frozen=True, slots=True)
class Limits:
    """A device's best measured rates.

    Attributes:
        bandwidth: bytes a second, read plus written, of a copy that fits in no cache.
        rates: operations a second of large matrix products, by type of number.
        overhead: seconds of the shortest kernel launch on a GPU; nothing is faster. 0 on a CPU.
    """

    bandwidth: float
    rates: dict[str, float] = field(default_factory=dict)
    overhead: float = 0.0

    def seconds(self, work: Work) -> tuple[float, str]:
        """Return the least seconds for this work, and its bound: ``bytes`` or ``operations``."""
        moving = work.bytes / self.bandwidth
        rate = self.rates.get(work.kind) or max(self.rates.values())
        computing = work.operations / rate
        bound = "bytes" if moving >= computing else "operations"
        return max(moving, computing) + self.overhead, bound


class Yardstick:
    """A fixed piece of work on the device: a few milliseconds of products and sums.

    On a CPU every core does the work, and the call waits for all of them. A core that another
    program uses makes models slower, and shows only here. The products are small, so that none
    starts further threads.

    Args:
        to_device: moves a NumPy array to the device.
        threads: number of threads that do the work at the same time; one on a GPU.
    """

    def __init__(self, to_device: Callable[[npt.NDArray[Any]], Any], threads: int = 1) -> None:
        rng = np.random.default_rng(0)
        self.matrices = to_device(rng.standard_normal((96, 60, 60), dtype=np.float32))
        self.row = to_device(rng.standard_normal(1 << 20, dtype=np.float32))
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._threads = threads

    def __call__(self, _: object) -> object:
        """Do the work once."""
        if self._pool is None:
            return self._work()
        return sum(self._pool.map(lambda _: self._work(), range(self._threads)))

    def _work(self) -> Any:
        return (self.matrices @ self.matrices).sum() + (self.row * self.row).sum()


def measure_limits(
    device: str, *, copy_bytes: int = _COPY_BYTES, edge: int = _EDGE, seconds: float = 0.0
) -> Limits:
    """Measure a device's limits.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        copy_bytes: bytes of the copied array; several times the largest cache. A GPU copies four
            times as many.
        edge: rows and columns of the matrices; four times as many on a GPU.
        seconds: time for which each measurement is repeated on a CPU, at least a few times: other
            programs may slow the machine down for a moment.

    Raises:
        MissingExtraError: ONNX Runtime is missing (for a CPU's int8 rate) or CuPy (for a GPU).
    """
    if Device.parse(device).kind == "cpu":
        return _host_limits(copy_bytes, edge, seconds)
    return _device_limits(Device.parse(device).index or 0, copy_bytes * 4, edge * 4)


def _host_limits(copy_bytes: int, edge: int, seconds: float) -> Limits:
    threads = cpu_threads(None)
    source = np.ones(copy_bytes, np.uint8)
    target = np.zeros_like(source)
    parts = [
        slice(i * copy_bytes // threads, (i + 1) * copy_bytes // threads) for i in range(threads)
    ]

    def copy_all(pool: ThreadPoolExecutor) -> None:
        list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))

    with ThreadPoolExecutor(threads) as pool:
        copying = best_seconds(lambda: copy_all(pool), seconds)
    matrix = np.random.default_rng(0).standard_normal((edge, edge), dtype=np.float32)
    operations = 2.0 * edge**3
    rates = {
        "fp32": operations
        / min(
            best_seconds(run, seconds) for run in (lambda: matrix @ matrix, _onnx_product(matrix))
        ),
    }
    small = np.clip(matrix * 40, -127, 127).astype(np.int8)
    # Some processors have no instruction for two unsigned factors, so try signed weights as well.
    rates["int8"] = operations / min(
        best_seconds(_onnx_product(weights), seconds) for weights in (small, small.view(np.uint8))
    )
    return Limits(2 * copy_bytes / copying, rates)


def _onnx_product(weights: npt.NDArray[Any]) -> Callable[[], object]:
    """Return a matrix product by ONNX Runtime, whose code for it differs from NumPy's.

    Args:
        weights: float32, int8 or uint8, also the activations; 8-bit activations are unsigned.
    """
    from onnx import helper, numpy_helper
    from onnxruntime import InferenceSession

    edge, single = len(weights), weights.dtype == np.float32
    activations = weights if single else weights.view(np.uint8)
    kind, result = (
        helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        for dtype in (activations.dtype, np.float32 if single else np.int32)
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul" if single else "MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, (edge, edge))],
        [helper.make_tensor_value_info("y", result, (edge, edge))],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": activations})


def _device_limits(index: int, copy_bytes: int, edge: int) -> Limits:
    import cupy

    def timed(run: Callable[[], object]) -> float:
        from .timing import CudaClock

        return min(CudaClock().time(lambda _: run(), None)[0] for _ in range(_BEST_OF + 1))

    with cupy.cuda.Device(index):
        rng = cupy.random.default_rng(0)
        source = cupy.ones(copy_bytes, cupy.uint8)
        target = cupy.zeros_like(source)
        copying = timed(lambda: cupy.copyto(target, source))
        # Random numbers: equal ones take less power, which allows a higher clock.
        values = rng.standard_normal((edge, edge), dtype=cupy.float32)
        rates = {}
        for kind in ("fp32", "fp16"):
            matrix = values.astype({"fp32": cupy.float32, "fp16": cupy.float16}[kind])
            rates[kind] = 2.0 * edge**3 / timed(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
        one = cupy.zeros(1, cupy.float32)
        overhead = timed(lambda: cupy.copyto(one, one))
    return Limits(2 * copy_bytes / copying, rates, overhead)


def best_seconds(run: Callable[[], object], seconds: float = 0.0) -> float:
    """Return the seconds of the fastest of `_BEST_OF` runs, or of as many as fit in `seconds`.

    The fastest counts, because a limit is the best that can be reached.
    """
    end = time.perf_counter() + seconds
    best = min(host_seconds(run, _BEST_OF))
    while time.perf_counter() < end:
        best = min(best, *host_seconds(run, _BEST_OF))
    return best


def host_seconds(run: Callable[[], object], rounds: int) -> list[float]:
    """Return the seconds of each of `rounds` runs by the host's clock, after one warm-up run."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times
