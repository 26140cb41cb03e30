"""What a model has made of frames, kept within bounds: on the device, in memory, on disk."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK

_log = logging.getLogger(__name__)

Array = Any
"""A NumPy or CuPy array: (2 * layers, kv_heads, tokens, head_dim), keys and values in turn."""


_ABANDONED = 3600
"""Seconds after which nobody writes to a half-written file any more."""


def _to_host(array: Array) -> npt.NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    with CAPTURE_LOCK.shared():
        return np.asarray(array.get())


class Tier(Protocol):
    """One place to keep arrays by their keys, the least recently used of which leave first."""

    name: str
    limit: int
    """Bytes."""
    lasting: bool
    """Whether it outlives the process; such a tier gets every array at once."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...

    def get(self, key: str) -> Array | None:
        """The array of a key, now the most recently used; None where there is none."""
        ...

    def put(self, key: str, array: Array) -> list[tuple[str, Array]]:
        """Keep an array; what had to leave for it, or the array itself if it is too large."""
        ...

    def discard(self, key: str) -> None:
        """Forget a key, if it is there."""
        ...


class MemoryTier:
    """Arrays in memory, this machine's or a GPU's.

    Args:
        limit: bytes that it may hold.
        name: in the counters.
        move: makes an array of this place from one of another, such as `ArrayDevice.put`.
    """

    lasting = False

    def __init__(
        self,
        limit: int,
        *,
        name: str = "host",
        move: Callable[[Array], Array] = _to_host,
    ) -> None:
        self.name = name
        self.limit = _checked(limit, name)
        self._move = move
        self._arrays: OrderedDict[str, Array] = OrderedDict()
        self._held = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held

    def get(self, key: str) -> Array | None:
        """The array of a key; None where there is none."""
        if key not in self._arrays:
            return None
        self._arrays.move_to_end(key)
        return self._arrays[key]

    def put(self, key: str, array: Array) -> list[tuple[str, Array]]:
        """Keep an array; what had to leave for it, or the array itself if it is too large."""
        self.discard(key)
        if array.nbytes > self.limit:
            return [(key, array)]
        left = []
        while self._held + array.nbytes > self.limit:
            oldest, old = self._arrays.popitem(last=False)
            self._held -= old.nbytes
            left.append((oldest, old))
        self._arrays[key] = self._move(array)
        self._held += array.nbytes
        return left

    def discard(self, key: str) -> None:
        """Forget a key, if it is there."""
        if key in self._arrays:
            self._held -= self._arrays.pop(key).nbytes


class DiskTier:
    """Arrays in a folder, a safetensors file each; a later process finds what an earlier one left.

    Files appear under their names when they are whole. One that cannot be read is a miss, and goes;
    where none can be written or removed, those that are there serve on. What a process left
    half-written when it ended is removed when a later one opens the folder, after an hour.

    Args:
        folder: made if it is not there; nothing else should be in it.
        limit: bytes that its files may take.
    """

    name = "disk"
    lasting = True
    _SUFFIX = ".safetensors"

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = _checked(limit, self.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = self._files(f"*{self._SUFFIX}")
            left = self._files(f".*{self._SUFFIX}.*")
        except OSError as error:
            raise GranAlignError(
                f"{self.folder}: cannot be used ({error.strerror or error}); name another folder"
            ) from None
        found.sort(key=lambda pair: pair[1].st_mtime_ns)
        self._sizes = OrderedDict((path.stem, status.st_size) for path, status in found)
        self._held = sum(self._sizes.values())
        self._make_room(0)
        for path, status in left:
            if time.time() - status.st_mtime > _ABANDONED:
                _remove(path)

    def _files(self, pattern: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob(pattern):
            with suppress(FileNotFoundError):  # another process made room meanwhile
                found.append((path, path.stat()))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return self._held

    def get(self, key: str) -> Array | None:
        """The array of a key; None where there is none that can be read."""
        from safetensors.numpy import load

        if key not in self._sizes:
            return None
        path = self._path(key)
        try:
            array = load(path.read_bytes())["prefix"]
        except Exception:  # gone, torn or foreign: whatever safetensors makes of it
            self.discard(key)
            return None
        with suppress(OSError):
            os.utime(path)  # so that a later process knows the order
        self._sizes.move_to_end(key)
        return array

    def put(self, key: str, array: Array) -> list[tuple[str, Array]]:
        """Keep an array; what leaves is gone, so nothing comes back."""
        from safetensors.numpy import save

        if key in self._sizes:  # the same key names the same array
            return []
        data = save({"prefix": np.ascontiguousarray(_to_host(array))})
        if len(data) <= self.limit:
            self._make_room(len(data))
            with suppress(GranAlignError):  # what is not kept is computed again
                with replacing(self._path(key)) as file:
                    file.write(data)
                self._sizes[key] = len(data)
                self._held += len(data)
        return []

    def discard(self, key: str) -> None:
        """Forget a key, if it is there."""
        if key in self._sizes:
            self._held -= self._sizes.pop(key)
            _remove(self._path(key))

    def _make_room(self, more: int) -> None:
        while self._sizes and self.nbytes + more > self.limit:
            self.discard(next(iter(self._sizes)))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{self._SUFFIX}"


@dataclass(slots=True)
class CacheCounts:
    """What a `PrefixCache` has been asked, and what it did."""

    hits: dict[str, int] = field(default_factory=dict)
    """Found, by tier."""
    misses: int = 0
    evictions: dict[str, int] = field(default_factory=dict)
    """Left a tier for want of room, by tier; into the next one, or for good from the last."""


class PrefixCache:
    """Arrays by their keys, in tiers from the fastest to the largest. Threads may share one.

    What leaves a tier for want of room goes to the next one, and from the last it is gone; what is
    found in a lower tier returns to the first. A tier that outlives the process has a copy of all
    that it has room for, so that a search finds what an earlier process indexed.

    Args:
        tiers: by default 1 GiB of this machine's memory. A 7 B model in fp16 takes 15 MB a frame.
    """

    def __init__(self, tiers: Sequence[Tier] | None = None) -> None:
        self.tiers: tuple[Tier, ...] = (MemoryTier(1 << 30),) if tiers is None else tuple(tiers)
        if not self.tiers:
            raise GranAlignError(
                "tiers: got none, expected at least one, such as MemoryTier(limit)"
            )
        self.counts = CacheCounts(
            {tier.name: 0 for tier in self.tiers}, 0, {tier.name: 0 for tier in self.tiers}
        )
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes held, by tier."""
        with self._lock:
            return {tier.name: tier.nbytes for tier in self.tiers}

    def get(self, key: str) -> Array | None:
        """The array of a key; None where no tier has it."""
        with self._lock:
            for level, tier in enumerate(self.tiers):
                array = tier.get(key)
                if array is None:
                    continue
                self.counts.hits[tier.name] += 1
                _log.debug("prefix %s is in the cache: %s", key, tier.name)
                if level:
                    if not tier.lasting:
                        tier.discard(key)
                    self._put(key, array)
                return array
            self.counts.misses += 1
            return None

    def put(self, key: str, array: Array) -> None:
        """Keep an array, which must not be written to any more."""
        with self._lock:
            for tier in self.tiers:
                if tier.lasting:
                    tier.put(key, array)
            self._put(key, array)

    def _put(self, key: str, array: Array) -> None:
        arriving = [(key, array)]
        for tier in self.tiers:
            leaving = []
            for name, value in arriving:
                left = tier.put(name, value)
                # An array that is too large for this tier was never in it.
                self.counts.evictions[tier.name] += sum(other != name for other, _ in left)
                leaving += left
            arriving = leaving


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _checked(limit: int, name: str) -> int:
    if not isinstance(limit, int) or limit < 0:
        raise GranAlignError(f"limit of the {name} tier: got {limit!r}, expected bytes, 0 or more")
    return limit
