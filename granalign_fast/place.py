"""Where a model's arrays live: in this machine's memory, or on a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MissingExtraError
from .session import Device

Array = Any
"""A NumPy or CuPy array."""


@dataclass(frozen=True)
class Place:
    """NumPy for the CPU, CuPy for a GPU, and the way from one to the other.

    Attributes:
        xp: the module of the arrays that live here.
        index: of the GPU; None for the CPU.
    """

    xp: Any
    index: int | None = None

    @classmethod
    def of(cls, device: str) -> Place:
        """The place of a device, as `Session` names it.

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
        return cls(cupy, wanted.index or 0)

    def here(self) -> AbstractContextManager[Any]:
        """While it lasts, new arrays are made here."""
        return nullcontext() if self.index is None else self.xp.cuda.Device(self.index)

    def put(self, array: Array) -> Array:
        """The array here; the same one if it is here already."""
        with self.here():
            return self.xp.asarray(array)

    def host(self, array: Array) -> npt.NDArray[Any]:
        """The array in this machine's memory; the same one if it is there already."""
        return array if isinstance(array, np.ndarray) and self.xp is np else array.get()
