"""Where a model's arrays live: in this machine's memory, or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import Device
from .errors import MissingExtraError

Array = Any
"""A NumPy or CuPy array."""

_LOOK_EVERY = 8
"""Decode steps on a GPU between two looks at what they gave. A row that has ended costs nothing
but its share of a step; waiting for the GPU costs the time in which the next step is queued."""


@dataclass(frozen=True)
class Place:
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
    def of(cls, device: str) -> Place:
        """The place of a device, as `Session` names it, with a stream of its own.

        Raises:
            GranAlignError: there is no such device name.
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
        with cupy.cuda.Device(index):
            return cls(cupy, index, cupy.cuda.Stream())

    @property
    def look_every(self) -> int:
        """After how many decode steps to look for rows that have ended.

        On a CPU after each: nothing runs ahead there, and a row that goes saves its arithmetic.
        """
        return 1 if self.index is None else _LOOK_EVERY

    @contextmanager
    def here(self) -> Iterator[None]:
        """While it lasts, new arrays are made here."""
        if self.index is None:
            yield
        elif self.stream is None:
            with self.xp.cuda.Device(self.index):
                yield
        else:
            with self.xp.cuda.Device(self.index), self.stream:
                yield

    def put(self, array: Array) -> Array:
        """The array here; the same one if it is here already."""
        with self.here():
            return self.xp.asarray(array)

    def host(self, array: Array) -> npt.NDArray[Any]:
        """The array in this machine's memory; the same one if it is there already."""
        if isinstance(array, np.ndarray) and self.xp is np:
            return array
        with self.here():
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
        with self.here():
            stacked = self.xp.stack(arrays)
            # Only into pinned memory does a copy go on while the caller does.
            memory = self.xp.cuda.alloc_pinned_memory(stacked.nbytes)
            found = np.frombuffer(memory, stacked.dtype, stacked.size).reshape(stacked.shape)
            stacked.get(out=found, blocking=False)
            done = self.xp.cuda.Event(disable_timing=True)
            done.record()

        def wait() -> npt.NDArray[Any]:
            done.synchronize()
            return found

        return wait
