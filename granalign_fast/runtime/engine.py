"""Runs a TensorRT engine on CuPy's memory: a profile for each batch size, a CUDA graph each shape.

None of this has met a GPU yet. It is tested against a stand-in that computes on the CPU, whose
methods and their parameters are compared with TensorRT's own bindings (``make tensorrt-bindings``).
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

from .capture_lock import CAPTURE_LOCK
from .engine_stamp import EngineStamp
from .shapes import Shape, runs
from .tensorrt_library import Machine, libraries, logged_errors, logger

Array = Any
"""A `numpy.ndarray` or a `cupy.ndarray`."""

_SLOTS = 64
"""Shapes that are kept ready, each with an execution context and a CUDA graph; the one that was not
used for longest makes room. A batch size and a length of text are a shape."""


@dataclass
class _Slot:
    """An execution context that only ever sees one shape, and the CUDA graph of it."""

    context: Any
    profile: int
    runs: int = 0
    graph: Any = None


class Engine:
    """A TensorRT engine, loaded. Any number of threads may call it: they take turns.

    A request of any number of rows is cut as `profiles.runs` says; what a run lacks is filled up
    with copies of its last row, and cut off again. Batch sizes have kernels of their own: the same
    row may differ in its last bits from one batch size to another.

    The first run of a shape goes through TensorRT, which prepares it; the second is captured as a
    CUDA graph, and from then on it is one launch. Work goes to the caller's current CuPy stream.

    Args:
        path: the engine, with its stamp beside it.
        folder: where the graph lies that it was built from.
        device: the GPU's number.

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
        # The greatest bounds of a profile's batch axis: the batch size itself.
        self._batches = [next(iter(p.values())).most[0] for p in self.stamp.profiles]
        try:
            with CAPTURE_LOCK.shared(), self._cupy.cuda.Device(device):
                self._open()
        except self._failures() as error:
            raise self._failed(error) from None

    def _open(self) -> None:
        self._log.errors.clear()
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
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
        # Contexts run one after the other, so they can share their scratch memory.
        self._scratch = self._empty((max(256, engine.device_memory_size_v2),), np.uint8)
        self._own = self._cupy.cuda.Stream(non_blocking=True)  # the default one cannot be captured
        self._done = self._cupy.cuda.Event(disable_timing=True)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine.

        Args:
            arrays: one for each input, all NumPy's or all CuPy's, with as many rows as each other.

        Returns:
            One array for each output, of the same kind. CuPy's are ready when the current stream
            is; NumPy's are ready.

        Raises:
            GranAlignError: an array has another type, or a shape that the engine was not built for;
                or the GPU fails.
        """
        rows = self._check(arrays)
        try:
            with CAPTURE_LOCK.shared(), self._lock, self._cupy.cuda.Device(self._device):
                return self._run(arrays, rows)
        except self._failures() as error:
            raise self._failed(error) from None

    def _check(self, arrays: Mapping[str, Array]) -> int:
        """The number of rows."""
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
        on_gpu = isinstance(next(iter(arrays.values())), self._cupy.ndarray)
        empty = self._empty if on_gpu else np.empty
        results: dict[str, Array] = {}
        start = 0
        # Without rows there is still a result of none, whose shape only a run can tell.
        for used, batch in runs(rows, self._batches) or [(0, self._batches[0])]:
            piece = {name: array[start : start + used] for name, array in arrays.items()}
            for name, view in self._piece(piece, used, batch).items():
                if name not in results:
                    results[name] = empty((rows, *view.shape[1:]), view.dtype)
                part = view[:used]
                results[name][start : start + used] = part if on_gpu else part.get()
            # Not before this point may another run use these buffers, whatever its stream.
            self._done.record(self._cupy.cuda.get_current_stream())
            start += used
        return results

    def _piece(self, arrays: Mapping[str, Array], used: int, batch: int) -> dict[str, Array]:
        """One run; views of the output buffers, of which the first `used` rows count."""
        stream = self._cupy.cuda.get_current_stream()
        stream.wait_event(self._done)
        slot = self._slot(batch, {name: (batch, *a.shape[1:]) for name, a in arrays.items()})
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
        """The CUDA graph of a context; None if it has work in it that no graph can hold."""
        try:
            self._own.begin_capture()
            try:
                done = slot.context.execute_async_v3(self._own.ptr)
            finally:
                graph = self._own.end_capture()
        except self._cupy.cuda.runtime.CUDARuntimeError:
            return None
        return graph if done else None

    def _slot(self, batch: int, shapes: dict[str, Shape]) -> _Slot:
        """The context of a shape, made if there is none."""
        key = tuple(shapes.items())
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        profile = self._batches.index(batch)
        if profile not in self._buffers:
            most = {name: bounds.most for name, bounds in self.stamp.profiles[profile].items()}
            self._buffers[profile] = self._allocate(self._context(profile, most))
        context = self._context(profile, shapes)
        for name, buffer in self._buffers[profile].items():
            self._expect(context.set_tensor_address(name, buffer.data.ptr), f"address of {name}")
        if len(self._slots) >= _SLOTS:
            self._done.synchronize()  # it may still be running
            self._slots.popitem(last=False)
        slot = self._slots[key] = _Slot(context, profile)
        return slot

    def _context(self, profile: int, shapes: dict[str, Shape]) -> Any:
        """A context for one shape. A captured graph holds on to what it was captured from."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        self._expect(context, "context")
        self._expect(
            context.set_optimization_profile_async(profile, self._own.ptr), f"profile {profile}"
        )
        for name, shape in shapes.items():
            self._expect(context.set_input_shape(name, shape), f"{name} of shape {shape}")
        context.set_device_memory(self._scratch.data.ptr, self._scratch.nbytes)
        self._own.synchronize()
        return context

    def _allocate(self, context: Any) -> dict[str, Array]:
        """Bytes for every input and output at the shapes of a context."""
        return {
            name: self._empty((max(256, _bytes(context, name, dtype)),), np.uint8)
            for name, dtype in self._dtypes.items()
        }

    def _view(self, slot: _Slot, name: str) -> Array:
        """The part of a buffer that a shape takes."""
        shape, dtype = tuple(slot.context.get_tensor_shape(name)), self._dtypes[name]
        buffer = self._buffers[slot.profile][name]
        return buffer[: _bytes(slot.context, name, dtype)].view(dtype).reshape(shape)

    def _empty(self, shape: Shape, dtype: Any) -> Array:
        return self._cupy.empty(shape, dtype)

    def _expect(self, done: Any, what: str) -> None:
        if not done:
            raise GranAlignError(
                f"{self.path}: TensorRT refuses the {what} ({logged_errors(self._log)}); run "
                f"granalign export tensorrt {self.path.parent.parent}"
            )

    def _failures(self) -> tuple[type[Exception], ...]:
        return self._cupy.cuda.runtime.CUDARuntimeError, self._cupy.cuda.memory.OutOfMemoryError

    def _failed(self, error: Exception) -> GranAlignError:
        return GranAlignError(
            f"{self.path}: the GPU failed ({one_line(error)}); free its memory, or see nvidia-smi"
        )


def _bytes(context: Any, name: str, dtype: np.dtype[Any]) -> int:
    shape = tuple(context.get_tensor_shape(name))
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
