"""The keys and values of the tokens that prompts begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from granalign_fast.runtime.array_device import Array, ArrayDevice

from .decoder import Cache


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of the tokens that prompts begin with: computed once, used many times.

    Attributes:
        cache: read-only arrays (rows, kv_heads, length, head_dim), keys and values in turn. One row
            serves any number of prompts; several rows serve a prompt each.
        model: the fingerprint of the model they belong to.
        next_position: of the token that follows. Text counts its tokens; an image takes fewer
            positions than it has tokens.
    """

    cache: Cache
    model: str
    next_position: int

    @property
    def rows(self) -> int:
        """How many beginnings it holds."""
        return int(self.cache[0].shape[0])

    @property
    def length(self) -> int:
        """How many tokens each row stands for."""
        return int(self.cache[0].shape[2])

    @classmethod
    def stack(
        cls,
        arrays: Sequence[Array],
        model: str,
        next_position: int,
        device: ArrayDevice | None = None,
    ) -> Prefix:
        """A prefix of several rows from what `unstack` gave, of one prefix or of many.

        Args:
            arrays: one for each row, wherever they are.
            model: the model's fingerprint.
            next_position: the same for all.
            device: where the prefix is to be, by default in this machine's memory.
        """
        device = ArrayDevice(np) if device is None else device
        there = [device.put(array) for array in arrays]
        count, *rest = there[0].shape
        with device.guarded():
            whole = device.xp.empty((count, len(there), *rest), there[0].dtype)
            for row, array in enumerate(there):  # on a GPU a launch for each, not for each layer
                whole[:, row] = array
            return cls(tuple(whole[i] for i in range(count)), model, next_position)

    def unstack(self, device: ArrayDevice | None = None) -> list[Array]:
        """Each row by itself: (2 * layers, kv_heads, length, head_dim), read-only."""
        device = ArrayDevice(np) if device is None else device
        with device.guarded():
            rows = [
                device.xp.stack([cached[row] for cached in self.cache]) for row in range(self.rows)
            ]
        return [read_only(row) for row in rows]

    @property
    def nbytes(self) -> int:
        """Memory held: 2 * layers * kv_heads * head_dim * length a row, 4 bytes each (fp16: 2)."""
        return sum(array.nbytes for array in self.cache)


def read_only(array: Array) -> Array:
    """The array, protected from writing where it can be."""
    if isinstance(array, np.ndarray):  # CuPy has no such flag
        array.setflags(write=False)
    return array
