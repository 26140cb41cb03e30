"""The device on which a model's arrays live: the host, or one GPU.

The models and the ranker compute on arrays of one `ArrayDevice`, so that data crosses between host
and GPU only where they call for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line

from .capture_lock import CAPTURE_LOCK
from .device import Device

Array = Any
"""A NumPy or CuPy array."""

_LOOK_EVERY = 8
"""Decode steps on a GPU between two checks for rows that have ended. A row that has ended costs
only its share of a step. A check waits for the GPU, in which time the next step could be queued."""


@dataclass(frozen=True)
class ArrayDevice:
    """NumPy for the CPU or CuPy for a GPU, and copies between the device and the host.

    Attributes:
        xp: the array module: NumPy or CuPy.
        index: the GPU's number; None for the CPU.
        stream: a GPU's stream, on which a model's runs and all arithmetic on its arrays are queued,
            so that no step between them has to wait for the GPU. It is a blocking stream: CUDA
            orders it with CuPy's default stream, so other code may use the arrays too.
    """

    xp: Any
    index: int | None = None
    stream: Any = None

    @classmethod
    def of(cls, device: str) -> ArrayDevice:
        """Open a device by its name, such as ``"cuda:1"``, with a new stream on a GPU.

        Raises:
            GranAlignError: there is no such device name, no such GPU, or no driver for it.
            MissingExtraError: it is a GPU, and CuPy is not installed.
        """
        parsed = Device.parse(device)
        if parsed.kind == "cpu":
            return cls(np)
        try:
            import cupy
        except ImportError:
            raise MissingExtraError(f"device {device!r}", parsed.extra) from None
        index = parsed.index or 0
        try:
            with CAPTURE_LOCK.shared(), cupy.cuda.Device(index):
                return cls(cupy, index, cupy.cuda.Stream())
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise GranAlignError(
                f"device {device!r}: GPU {index} cannot be opened ({one_line(error)}), expected "
                f"one that nvidia-smi lists, with a driver for CUDA 13; or use 'cpu'"
            ) from None

    @property
    def look_every(self) -> int:
        """The number of decode steps between two checks for rows that have ended.

        It is 1 on a CPU: no work is queued ahead there, and removing a row saves its arithmetic.
        """
        return 1 if self.index is None else _LOOK_EVERY

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Make this the current device: new arrays live on it, runs are queued on its stream."""
        if self.index is None:
            yield
        elif self.stream is None:
            with self.xp.cuda.Device(self.index):
                yield
        else:
            with self.xp.cuda.Device(self.index), self.stream:
                yield

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Activate the device and keep captures out; every call of CuPy's belongs inside.

        Keep it short: captures of other threads wait until it ends.

        Raises:
            GranAlignError: the GPU fails, for example because its memory is full.
        """
        if self.index is None:
            yield
            return
        try:
            with CAPTURE_LOCK.shared(), self.activate():
                yield
        except (
            self.xp.cuda.memory.OutOfMemoryError,
            self.xp.cuda.runtime.CUDARuntimeError,
        ) as error:
            raise GranAlignError(
                f"GPU {self.index} failed ({one_line(error)}); use smaller batches, free its "
                f"memory, or see nvidia-smi"
            ) from None

    def put(self, array: Array) -> Array:
        """Copy an array to this device; an array that is already on it is returned unchanged."""
        with self.guarded():
            return self.xp.asarray(array)

    def staging(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Allocate a host array for copies to or from this device; its values are undefined.

        For a GPU it is pinned memory, which the GPU reads and writes by itself. From other memory
        the driver would first copy into pinned memory.
        """
        if self.index is None:
            return np.empty(shape, dtype)
        count = math.prod(shape)
        with self.guarded():
            memory = self.xp.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """Copy an array to the host and wait; a host array is returned unchanged."""
        if isinstance(array, np.ndarray) and self.xp is np:
            return array
        with self.guarded():
            copy: npt.NDArray[Any] = array.get()
            return copy

    def fetch(self, arrays: Sequence[Array]) -> Callable[[], npt.NDArray[Any]]:
        """Start to copy arrays of one shape to the host, stacked into one array.

        Returns:
            A function that waits for the copy and returns it, `(len(arrays), *shape)`. It does not
            wait for work that was queued after this call.
        """
        if self.index is None:
            stacked = np.stack(arrays)
            return lambda: stacked
        with self.guarded():
            batch = self.xp.stack(arrays)
            # The copy overlaps with the caller's work only if its target is pinned memory.
            target = self.staging(batch.shape, batch.dtype)
            batch.get(out=target, blocking=False)
            done = self.xp.cuda.Event(disable_timing=True)
            done.record()

        def wait() -> npt.NDArray[Any]:
            with self.guarded():
                done.synchronize()
            return target

        return wait
