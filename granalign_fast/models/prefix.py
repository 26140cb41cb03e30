"""The keys and values of the tokens that prompts begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from granalign_fast.runtime.array_device import Array, ArrayDevice

from .decoder import Cache


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of the tokens that prompts begin with: computed once, used many times.

    Attributes:
        cache: read-only arrays (rows, kv_heads, length, head_dim), keys and values in turn. One row
            serves any number of prompts; several rows serve one prompt each.
        model: the fingerprint of the model that computed them.
        next_position: the position of the token that follows. A text has one position per token; an
            image takes fewer positions than it has tokens.
        mask: (rows, length) int64 on the host, 0 for padding, which is anywhere in a row. It is
            None if there is no padding. The rows of a masked prefix are texts of different lengths,
            and `next_positions` takes the place of `next_position`, which is that of the longest.
    """

    cache: Cache
    model: str
    next_position: int
    mask: npt.NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.cache[0].shape[0])

    @property
    def length(self) -> int:
        """Number of tokens in each row, with padding."""
        return int(self.cache[0].shape[2])

    @property
    def next_positions(self) -> npt.NDArray[np.int64]:
        """The position of the token that follows each row, (rows,) int64."""
        if self.mask is None:
            return np.full(self.rows, self.next_position)
        positions: npt.NDArray[np.int64] = self.mask.sum(axis=1)
        return positions

    @classmethod
    def stack(
        cls,
        arrays: Sequence[Array],
        model: str,
        next_position: int,
        device: ArrayDevice | None = None,
    ) -> Prefix:
        """Join rows that `unstack` returned, of one prefix or of several, into one prefix.

        Args:
            arrays: one for each row, on any device.
            model: the model's fingerprint.
            next_position: the same for all rows.
            device: the prefix's device; by default the CPU.
        """
        device = ArrayDevice(np) if device is None else device
        moved = [device.put(array) for array in arrays]
        count, *rest = moved[0].shape
        with device.guarded():
            stacked = device.xp.empty((count, len(moved), *rest), moved[0].dtype)
            # Copy all layers of a row at once: on a GPU that is one launch a row.
            for row, array in enumerate(moved):
                stacked[:, row] = array
            return cls(tuple(stacked[i] for i in range(count)), model, next_position)

    def take(self, prompts: npt.NDArray[np.int64]) -> Prefix:
        """Return the rows of some prompts, of all those that take the rows in turn.

        Args:
            prompts: numbers of the prompts.
        """
        if self.rows == 1:
            return self
        rows = prompts % self.rows
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, cache=tuple(array[rows] for array in self.cache), mask=mask)

    def unstack(self, device: ArrayDevice | None = None) -> list[Array]:
        """Return one read-only array (2 * layers, kv_heads, length, head_dim) for each row.

        Args:
            device: the prefix's device; by default the CPU.
        """
        device = ArrayDevice(np) if device is None else device
        with device.guarded():
            rows = [
                device.xp.stack([cached[row] for cached in self.cache]) for row in range(self.rows)
            ]
        return [read_only(row) for row in rows]

    @property
    def nbytes(self) -> int:
        """Bytes: 2 * layers * kv_heads * head_dim * length a row, times 4 (fp32) or 2 (fp16)."""
        return sum(array.nbytes for array in self.cache)


def read_only(array: Array) -> Array:
    """Return the array, write-protected if it is NumPy's; CuPy has no such flag."""
    if isinstance(array, np.ndarray):
        array.setflags(write=False)
    return array
