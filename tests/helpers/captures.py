"""A stand-in for ONNX Runtime on a GPU with CUDA graphs: it computes on the CPU provider."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK
from granalign_fast.runtime.cuda_graphs import GraphRun

from . import fake_cupy

BATCHES = (1, 4, 16)
"""Batch sizes of the runs of `graph_run`."""


class CpuBinding:
    """A binding that takes a GPU's calls and binds the arrays on the CPU.

    Attributes:
        pointers: the bound addresses, by the name of the input or output.
    """

    def __init__(self, real: Any) -> None:
        self.real, self.pointers = real, {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.pointers[name] = value.data_ptr()
        self.real.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.pointers[name] = value.data_ptr()
        self.real.bind_ortvalue_output(name, value)

    def bind_input(
        self, name: str, device: str, index: int, kind: Any, shape: Any, address: int
    ) -> None:
        self.pointers[name] = address
        self.real.bind_input(name, "cpu", 0, kind, shape, address)

    def bind_output(
        self,
        name: str,
        device: str,
        index: int,
        kind: Any = None,
        shape: Any = (),
        address: int = 0,
    ) -> None:
        if address:
            self.pointers[name] = address
            self.real.bind_output(name, "cpu", 0, kind, shape, address)
        else:
            self.real.bind_output(name, "cpu", 0)

    def synchronize_outputs(self) -> None:
        self.real.synchronize_outputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()


class CapturingSession:
    """An ONNX Runtime session that computes on the CPU and keeps the rules of CUDA graphs.

    A graph replays the run that it was captured from, at the addresses of that run. The outputs of
    a plain run are overwritten by the next run, as on a GPU.

    Args:
        path: the ``.onnx`` file.
        refuse: the number of a graph whose capture fails.

    Attributes:
        graphs: the bindings of the captured graphs, by number.
        ids: the graph number of each run: 0 for none given, -1 for a plain run.
        threads: the threads that ran it.
        exclusive: for each run, whether the capture lock was held exclusively.
    """

    def __init__(self, path: Path, refuse: int | None = None) -> None:
        self.real = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.graphs: dict[int, CpuBinding] = {}
        self.ids: list[int] = []
        self.threads: set[int] = set()
        self.refuse = refuse
        self.exclusive: list[bool] = []
        self._plain_outputs: list[Any] = []

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def io_binding(self) -> CpuBinding:
        return CpuBinding(self.real.io_binding())

    def run_with_iobinding(self, binding: CpuBinding, options: Any = None) -> None:
        self.exclusive.append(CAPTURE_LOCK._writing)
        graph = int(options.get_run_config_entry("gpu_graph_id")) if options else 0
        self.ids.append(graph)
        self.threads.add(threading.get_ident())
        if graph == self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing")
        # Overwrite the outputs of the last plain run: a caller must have copied them by now.
        for value in self._plain_outputs:
            value.numpy()[...] = 113
        if graph > 0:
            binding = self.graphs.setdefault(graph, binding)
        self.real.run_with_iobinding(binding.real)
        self._plain_outputs = (
            [] if graph > 0 else [v for v in binding.get_outputs() if 0 not in v.shape()]
        )


ARRAY_DEVICES = {"NumPy": ArrayDevice(np), "CuPy": ArrayDevice(fake_cupy, 0)}


def graph_run(
    path: Path, device: str, refuse: int | None = None
) -> tuple[GraphRun, CapturingSession]:
    """Return a `GraphRun` on one of `ARRAY_DEVICES`, and its session.

    Args:
        path: the ``.onnx`` file.
        device: a name in `ARRAY_DEVICES`.
        refuse: the number of a graph whose capture fails.
    """
    session = CapturingSession(path, refuse)
    buffers = ARRAY_DEVICES[device]
    run = GraphRun(path.name, session, BATCHES, buffers, lambda: CapturingSession(path))
    return run, session


def ids_of(rows: int, tokens: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return random token ids, int32 `(rows, tokens)`."""
    return np.random.default_rng(seed).integers(1, 30, (rows, tokens)).astype(np.int32)
