"""Run a TensorRT engine on CuPy arrays: one profile per batch size, one CUDA graph per shape.

This code has not run on a GPU yet. It is tested against a stand-in for TensorRT that computes on
the CPU. The stand-in's methods and parameters are compared with those of TensorRT's own bindings
(``make tensorrt-bindings``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.parsing.limits import MOST_ENGINE_BYTES
from granalign_fast.reading import read_file

from .capture_lock import CAPTURE_LOCK
from .engine_stamp import EngineStamp
from .shapes import Shape, runs
from .tensorrt_library import Machine, libraries, logged_errors, logger

Array = Any
"""A `numpy.ndarray` or a `cupy.ndarray`."""

_SLOTS = 64
"""Capacity of the LRU cache of shapes, each with an execution context and a CUDA graph. A shape is
a batch size and a text length."""


@dataclass
class _Slot:
    """One shape: its execution context, and its CUDA graph once it is captured."""

    context: Any
    profile: int
    runs: int = 0
    graph: Any = None


class Engine:
    """A loaded TensorRT engine. Any number of threads may call it: they take turns.

    `shapes.runs` splits a request of any number of rows into runs of the engine's batch sizes. A
    run with too few rows is padded with copies of its last row, and the padding's outputs are
    dropped. Each batch size has its own kernels, so the last bits of a row's outputs may differ
    between batch sizes.

    TensorRT itself executes the first run of a shape, which prepares the context. The second run is
    captured as a CUDA graph; from then on a run is one launch. All work is queued on the caller's
    current CuPy stream.

    Args:
        path: the engine file; its stamp is in the same folder.
        folder: the folder of the graph that the engine was built from.
        device: the GPU's number.

    Attributes:
        stamp: the record of the engine's build.
        inputs: names of the inputs.
        outputs: names of the outputs.

    Raises:
        GranAlignError: the engine does not fit its stamp, the graph or this machine; see
            `EngineStamp.check`.
        MissingExtraError: TensorRT or CuPy is not installed.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, path: Path, folder: Path, *, device: int = 0) -> None:
        self.path = path
        self.stamp = EngineStamp.read(path)
        self._trt, self._cupy = libraries()
        self.stamp.check(path, folder, Machine.current(device))
        self._device = device
        self._lock = Lock()
        self._slots: OrderedDict[Any, _Slot] = OrderedDict()
        self._buffers: dict[int, dict[str, Array]] = {}
        self._log = logger(self._trt)
        # In a profile, the upper bound of any input's first axis is the batch size.
        self._batches = [next(iter(p.values())).most[0] for p in self.stamp.profiles]
        try:
            with CAPTURE_LOCK.shared(), self._cupy.cuda.Device(device):
                self._open()
        except self._cuda_errors() as error:
            raise self._gpu_error(error) from None

    def _open(self) -> None:
        """Load the engine, read its tensors' names and types, and allocate scratch memory."""
        self._log.errors.clear()
        self._runtime = self._trt.Runtime(self._log)
        plan = read_file(self.path, MOST_ENGINE_BYTES, inside=self.path.parent)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise GranAlignError(
                f"{self.path}: TensorRT cannot load it ({logged_errors(self._log)}); run "
                f"granalign export tensorrt {self.path.parent.parent}"
            )
        engine, mode = self._engine, self._trt.TensorIOMode.INPUT
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if engine.get_tensor_mode(name) == mode)
        self.outputs = tuple(name for name in names if name not in self.inputs)
        self._dtypes = {
            name: np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))) for name in names
        }
        # Contexts run one after the other, so one scratch memory serves them all.
        self._scratch = self._empty((max(256, engine.device_memory_size_v2),), np.uint8)
        # Captures need a stream of their own: CUDA cannot capture the default stream.
        self._capture_stream = self._cupy.cuda.Stream(non_blocking=True)
        self._done = self._cupy.cuda.Event(disable_timing=True)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine.

        Args:
            arrays: one for each input, all NumPy's or all CuPy's, with equal numbers of rows.

        Returns:
            One array for each output, NumPy's or CuPy's like the inputs. CuPy arrays are ready once
            the current stream has done its work.

        Raises:
            GranAlignError: an array has another type, or a shape that the engine was not built for;
                or the GPU fails.
        """
        rows = self._check(arrays)
        try:
            with CAPTURE_LOCK.shared(), self._lock, self._cupy.cuda.Device(self._device):
                return self._run(arrays, rows)
        except self._cuda_errors() as error:
            raise self._gpu_error(error) from None

    def _check(self, arrays: Mapping[str, Array]) -> int:
        """Check types and shapes of the inputs; return the number of rows."""
        on_gpu = {isinstance(array, self._cupy.ndarray) for array in arrays.values()}
        counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        if len(on_gpu) != 1 or len(counts) != 1:
            raise GranAlignError(
                f"{self.path.name}: got arrays of {sorted(counts)} rows, expected as many in each, "
                f"all of NumPy or all of CuPy"
            )
        (rows,) = counts
        for name, array in arrays.items():
            bounds = self.stamp.profiles[0][name]
            if array.dtype != self._dtypes[name] or not bounds.admits((1, *array.shape[1:])):
                expected = " x ".join(str(bounds).split(" x ")[1:])
                raise GranAlignError(
                    f"{self.path.name}: got {name} of {array.dtype} {array.shape}, expected "
                    f"{self._dtypes[name]} with rows of {expected}; export the engine again for "
                    f"other shapes"
                )
        return rows

    def _run(self, arrays: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Run a request in batches, and copy the outputs of each into the results."""
        on_gpu = isinstance(next(iter(arrays.values())), self._cupy.ndarray)
        empty = self._empty if on_gpu else np.empty
        results: dict[str, Array] = {}
        start = 0
        # A request without rows still makes a run, which shows the shapes of the empty results.
        for used, batch in runs(rows, self._batches) or [(0, self._batches[0])]:
            part = {name: array[start : start + used] for name, array in arrays.items()}
            for name, view in self._run_batch(part, used, batch).items():
                if name not in results:
                    results[name] = empty((rows, *view.shape[1:]), view.dtype)
                output = view[:used]
                results[name][start : start + used] = output if on_gpu else output.get()
            # The next run, on whatever stream, waits for this event before it uses the buffers.
            self._done.record(self._cupy.cuda.get_current_stream())
            start += used
        return results

    def _run_batch(self, arrays: Mapping[str, Array], used: int, batch: int) -> dict[str, Array]:
        """Run `used` rows at one batch size; return views of the output buffers, with padding."""
        stream = self._cupy.cuda.get_current_stream()
        stream.wait_event(self._done)
        slot = self._slot(batch, {name: (batch, *a.shape[1:]) for name, a in arrays.items()})
        # Copy the rows into the input buffers, and pad them.
        for name, array in arrays.items():
            view = self._view(slot, name)
            if not used:
                view[...] = 0
            elif isinstance(array, np.ndarray) and not isinstance(array, self._cupy.ndarray):
                view[:used].set(np.ascontiguousarray(array), stream=stream)
            else:
                view[:used] = array
            if used and used < batch:
                view[used:] = view[used - 1]
        self._launch(slot, stream)
        return {name: self._view(slot, name) for name in self.outputs}

    def _launch(self, slot: _Slot, stream: Any) -> None:
        """Queue one run of a shape: through TensorRT, or as its CUDA graph from the second on."""
        slot.runs += 1
        if slot.runs == 2:
            slot.graph = self._capture(slot)
        if slot.graph is not None:
            slot.graph.launch(stream)
            return
        self._log.errors.clear()
        if not slot.context.execute_async_v3(stream.ptr):
            raise GranAlignError(f"{self.path}: TensorRT failed ({logged_errors(self._log)})")

    def _capture(self, slot: _Slot) -> Any:
        """Capture a context's run as a CUDA graph; None if CUDA cannot capture some of its work."""
        try:
            self._capture_stream.begin_capture()
            try:
                queued = slot.context.execute_async_v3(self._capture_stream.ptr)
            finally:
                graph = self._capture_stream.end_capture()
        except self._cupy.cuda.runtime.CUDARuntimeError:
            return None
        return graph if queued else None

    def _slot(self, batch: int, shapes: dict[str, Shape]) -> _Slot:
        """Return the context of a shape, creating it if necessary."""
        key = tuple(shapes.items())
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        # Buffers belong to a profile, and are allocated for its largest shapes.
        profile = self._batches.index(batch)
        if profile not in self._buffers:
            most = {name: bounds.most for name, bounds in self.stamp.profiles[profile].items()}
            self._buffers[profile] = self._allocate(self._context(profile, most))
        context = self._context(profile, shapes)
        for name, buffer in self._buffers[profile].items():
            self._expect(context.set_tensor_address(name, buffer.data.ptr), f"address of {name}")
        # If the cache is full, drop the least recently used shape. It may still be running.
        if len(self._slots) >= _SLOTS:
            self._done.synchronize()
            self._slots.popitem(last=False)
        slot = self._slots[key] = _Slot(context, profile)
        return slot

    def _context(self, profile: int, shapes: dict[str, Shape]) -> Any:
        """Create a context for one shape; its captured graph keeps using it."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        self._expect(context, "context")
        self._expect(
            context.set_optimization_profile_async(profile, self._capture_stream.ptr),
            f"profile {profile}",
        )
        for name, shape in shapes.items():
            self._expect(context.set_input_shape(name, shape), f"{name} of shape {shape}")
        context.set_device_memory(self._scratch.data.ptr, self._scratch.nbytes)
        self._capture_stream.synchronize()
        return context

    def _allocate(self, context: Any) -> dict[str, Array]:
        """Allocate byte buffers for every input and output at the shapes of a context."""
        return {
            name: self._empty((max(256, _tensor_bytes(context, name, dtype)),), np.uint8)
            for name, dtype in self._dtypes.items()
        }

    def _view(self, slot: _Slot, name: str) -> Array:
        """Return the part of a buffer that one shape uses, as an array of that shape."""
        shape, dtype = tuple(slot.context.get_tensor_shape(name)), self._dtypes[name]
        buffer = self._buffers[slot.profile][name]
        return buffer[: _tensor_bytes(slot.context, name, dtype)].view(dtype).reshape(shape)

    def _empty(self, shape: Shape, dtype: Any) -> Array:
        return self._cupy.empty(shape, dtype)

    def _expect(self, accepted: Any, what: str) -> None:
        """Raise if TensorRT did not accept a setting."""
        if not accepted:
            raise GranAlignError(
                f"{self.path}: TensorRT refuses the {what} ({logged_errors(self._log)}); run "
                f"granalign export tensorrt {self.path.parent.parent}"
            )

    def _cuda_errors(self) -> tuple[type[Exception], ...]:
        return self._cupy.cuda.runtime.CUDARuntimeError, self._cupy.cuda.memory.OutOfMemoryError

    def _gpu_error(self, error: Exception) -> GranAlignError:
        return GranAlignError(
            f"{self.path}: the GPU failed ({one_line(error)}); free its memory, or see nvidia-smi"
        )


def _tensor_bytes(context: Any, name: str, dtype: np.dtype[Any]) -> int:
    """Return the size of one input or output at the shapes of a context."""
    shape = tuple(context.get_tensor_shape(name))
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
