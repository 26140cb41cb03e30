"""ONNX Runtime on the CPU that behaves like a GPU whose runs are captured as CUDA graphs."""

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


class Binding:
    """A binding of the CPU's, for a caller who believes in a GPU."""

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


class Capturing:
    """ONNX Runtime on the CPU, with a GPU's manners: a graph replays the run that it was made of.

    Plain runs leave their outputs in memory that the next run of any kind writes to.
    """

    def __init__(self, path: Path, refuse: int | None = None) -> None:
        self.real = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.graphs: dict[int, Binding] = {}
        self.ids: list[int] = []
        self.threads: set[int] = set()
        self.refuse = refuse
        self.lent: list[Any] = []
        self.alone: list[bool] = []

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def io_binding(self) -> Binding:
        return Binding(self.real.io_binding())

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        self.alone.append(CAPTURE_LOCK._writing)
        graph = int(options.get_run_config_entry("gpu_graph_id")) if options else 0
        self.ids.append(graph)
        self.threads.add(threading.get_ident())
        if graph == self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing")
        for value in self.lent:
            value.numpy()[...] = 113
        if graph > 0:
            binding = self.graphs.setdefault(graph, binding)
        self.real.run_with_iobinding(binding.real)
        self.lent = [] if graph > 0 else [v for v in binding.get_outputs() if 0 not in v.shape()]


PLACES = {"NumPy": ArrayDevice(np), "CuPy": ArrayDevice(fake_cupy, 0)}


def graph_run(path: Path, place: str, refuse: int | None = None) -> tuple[GraphRun, Capturing]:
    session = Capturing(path, refuse)
    made = GraphRun(path.name, session, BATCHES, PLACES[place], lambda: Capturing(path))
    return made, session


def ids_of(rows: int, tokens: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(1, 30, (rows, tokens)).astype(np.int32)
