"""Where a model's arrays live: in this machine's memory, or on a GPU."""

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
"""Decode steps on a GPU between two looks at what they gave. A row that has ended costs nothing
but its share of a step; waiting for the GPU costs the time in which the next step is queued."""


@dataclass(frozen=True)
class ArrayDevice:
    """NumPy for the CPU, CuPy for a GPU, and the way from one to the other.

    Attributes:
        xp: the module of the arrays that live here.
        index: of the GPU; None for the CPU.
        stream: of a GPU, on which a model's runs and all arithmetic on its arrays are queued, so
            that nothing between them has to wait for the device. It keeps its order with CuPy's
            default stream, as CUDA's blocking streams do: other code may use the arrays too.
    """

    xp: Any
    index: int | None = None
    stream: Any = None

    @classmethod
    def of(cls, device: str) -> ArrayDevice:
        """The place of a device, as `Session` names it, with a stream of its own.

        Raises:
            GranAlignError: there is no such device name, no such GPU, or no driver for it.
            MissingExtraError: it is a GPU, and CuPy is not installed.
        """
        wanted = Device.parse(device)
        if wanted.kind == "cpu":
            return cls(np)
        try:
            import cupy
        except ImportError:
            raise MissingExtraError(f"device {device!r}", wanted.extra) from None
        index = wanted.index or 0
        try:
            with CAPTURE_LOCK.shared(), cupy.cuda.Device(index):
                return cls(cupy, index, cupy.cuda.Stream())
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise GranAlignError(
                f"device {device!r}: GPU {index} cannot be had ({one_line(error)}), expected one "
                f"that nvidia-smi lists, with a driver for CUDA 13; or ask for 'cpu'"
            ) from None

    @property
    def look_every(self) -> int:
        """After how many decode steps to look for rows that have ended.

        On a CPU after each: nothing runs ahead there, and a row that goes saves its arithmetic.
        """
        return 1 if self.index is None else _LOOK_EVERY

    @contextmanager
    def activate(self) -> Iterator[None]:
        """While it lasts, new arrays are made here, and runs are queued on the stream."""
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
        """`activate`, for a short while in which nothing is captured: around all calls of CuPy's.

        Raises:
            GranAlignError: the GPU fails, such as for want of memory.
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
                f"GPU {self.index} failed ({one_line(error)}); ask for less at a time, free its "
                f"memory, or see nvidia-smi"
            ) from None

    def put(self, array: Array) -> Array:
        """The array here; the same one if it is here already."""
        with self.guarded():
            return self.xp.asarray(array)

    def staging(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A new array of this machine's memory, to be filled and put here, or the other way.

        Of a GPU it is pinned, which the GPU reads and writes by itself; all other memory the driver
        first has to copy to such memory.
        """
        if self.index is None:
            return np.empty(shape, dtype)
        count = math.prod(shape)
        with self.guarded():
            memory = self.xp.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """The array in this machine's memory; the same one if it is there already."""
        if isinstance(array, np.ndarray) and self.xp is np:
            return array
        with self.guarded():
            found: npt.NDArray[Any] = array.get()
            return found

    def fetch(self, arrays: Sequence[Array]) -> Callable[[], npt.NDArray[Any]]:
        """Begin to bring arrays of one shape to this machine's memory, as one array.

        Returns:
            A function that waits for it. Work queued meanwhile is not waited for.
        """
        if self.index is None:
            here = np.stack(arrays)
            return lambda: here
        with self.guarded():
            stacked = self.xp.stack(arrays)
            # Only into pinned memory does a copy go on while the caller does.
            found = self.staging(stacked.shape, stacked.dtype)
            stacked.get(out=found, blocking=False)
            done = self.xp.cuda.Event(disable_timing=True)
            done.record()

        def wait() -> npt.NDArray[Any]:
            with self.guarded():
                done.synchronize()
            return found

        return wait
