"""A tiered LRU cache of prefixes: on the device, in memory and on disk, each tier bounded."""

from __future__ import annotations

import hashlib
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
from granalign_fast.files import make_private, replacing
from granalign_fast.parsing.limits import MOST_GIB, MOST_INDEX_BYTES
from granalign_fast.parsing.tensors import read_tensors
from granalign_fast.reading import read_file
from granalign_fast.runtime.cache_folder import usable_cache
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK

_log = logging.getLogger(__name__)

Array = Any
"""A NumPy or CuPy array: (2 * layers, kv_heads, tokens, head_dim), keys and values in turn."""

_STALE = 3600
"""Seconds. A half-written file that has not changed for so long belongs to a process that ended: a
file takes seconds to write."""


KEPT_BYTES = 1 << 30
"""Bytes of memory that a cache without other tiers may take: 70 frames of a 7 B model in fp16."""

CPU_MEMORY_BYTES = 1 << 25
"""Bytes of memory that a cache with a tier on disk takes on a CPU, which reads prefixes much faster
than it computes them."""


def _to_host(array: Array) -> npt.NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    with CAPTURE_LOCK.shared():
        return np.asarray(array.get())


class Tier(Protocol):
    """One level of the cache: a byte-bounded LRU map from keys to arrays."""

    name: str
    limit: int
    """Capacity in bytes."""
    persistent: bool
    """Whether its arrays outlive the process. Such a tier gets a copy of every array at once."""

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        ...

    def get(self, key: str) -> Array | None:
        """Return a key's array and mark it as the most recently used; None if absent."""
        ...

    def put(self, key: str, array: Array) -> list[tuple[str, Array]]:
        """Store an array, evicting the least recently used ones.

        Returns:
            The evicted keys and arrays, or the array itself if it exceeds the tier's capacity.
        """
        ...

    def discard(self, key: str) -> None:
        """Remove a key, if present."""
        ...


class MemoryTier:
    """Arrays in this machine's memory or in a GPU's.

    Args:
        limit: capacity in bytes.
        name: in the counters.
        move: copies an array from another tier to this one's device, such as `ArrayDevice.put`.
    """

    persistent = False

    def __init__(
        self,
        limit: int,
        *,
        name: str = "host",
        move: Callable[[Array], Array] = _to_host,
    ) -> None:
        self.name = name
        self.limit = _checked_limit(limit, name)
        self._move = move
        self._arrays: OrderedDict[str, Array] = OrderedDict()  # the least recently used first
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._nbytes

    def get(self, key: str) -> Array | None:
        """Return a key's array and mark it as the most recently used; None if absent."""
        if key not in self._arrays:
            return None
        self._arrays.move_to_end(key)
        return self._arrays[key]

    def put(self, key: str, array: Array) -> list[tuple[str, Array]]:
        """Store an array and return what is evicted; see `Tier`."""
        self.discard(key)
        if array.nbytes > self.limit:
            return [(key, array)]
        evicted = []
        while self._nbytes + array.nbytes > self.limit:
            oldest_key, oldest = self._arrays.popitem(last=False)
            self._nbytes -= oldest.nbytes
            evicted.append((oldest_key, oldest))
        self._arrays[key] = self._move(array)
        self._nbytes += array.nbytes
        return evicted

    def discard(self, key: str) -> None:
        """Remove a key, if present."""
        if key in self._arrays:
            self._nbytes -= self._arrays.pop(key).nbytes


class DiskTier:
    """Arrays in a folder, one safetensors file each, which later processes find again.

    A file gets its name when it is whole. An unreadable file is a miss and is removed. If files
    cannot be written or removed, the existing ones are still read. Half-written files of ended
    processes are removed when the folder is opened, an hour after their last change.

    Args:
        folder: created if missing; nothing else should be in it.
        limit: capacity in bytes of files.

    Raises:
        GranAlignError: the folder cannot be used.
    """

    name = "disk"
    persistent = True
    _SUFFIX = ".safetensors"

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = _checked_limit(limit, self.name)
        try:
            make_private(self.folder)
            files = self._files(f"*{self._SUFFIX}")
            partial = self._files(f".*{self._SUFFIX}.*")
        except OSError as error:
            raise GranAlignError(
                f"{self.folder}: cannot be used ({error.strerror or error}); name another folder"
            ) from None
        # `get` touches a file, so the modification times are the order of use.
        files.sort(key=lambda pair: pair[1].st_mtime_ns)
        self._sizes = OrderedDict((path.stem, status.st_size) for path, status in files)
        self._nbytes = sum(self._sizes.values())
        self._evict_for(0)
        for path, status in partial:
            if time.time() - status.st_mtime > _STALE:
                _remove(path)

    def _files(self, pattern: str) -> list[tuple[Path, os.stat_result]]:
        files = []
        for path in self.folder.glob(pattern):
            with suppress(FileNotFoundError):  # another process has evicted it meanwhile
                files.append((path, path.stat()))
        return files

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return self._nbytes

    def get(self, key: str) -> Array | None:
        """Return a key's array and mark it as the most recently used; None if absent or unreadable.

        A file that is unreadable, or holds NaN or infinity, is removed.
        """
        name = _file_name(key)
        if name not in self._sizes:
            return None
        path = self._path(name)
        try:
            content = read_file(path, MOST_INDEX_BYTES, inside=self.folder)
            array = read_tensors(content)["prefix"]
            if not _is_finite(array):
                raise ValueError("not finite")
        except Exception:  # missing, damaged or not safetensors, which raises many types
            self._remove(name)
            return None
        with suppress(OSError):
            os.utime(path)  # tells later processes the order of use
        self._sizes.move_to_end(name)
        return array

    def put(self, key: str, array: Array) -> list[tuple[str, Array]]:
        """Store an array; return nothing, as evicted files are deleted."""
        from safetensors.numpy import save

        name = _file_name(key)
        if name in self._sizes:  # equal keys name equal arrays
            return []
        data = save({"prefix": np.ascontiguousarray(_to_host(array))})
        if len(data) <= self.limit:
            self._evict_for(len(data))
            with suppress(GranAlignError):  # an array that is not stored is computed again
                with replacing(self._path(name), private=True) as file:
                    file.write(data)
                self._sizes[name] = len(data)
                self._nbytes += len(data)
        return []

    def discard(self, key: str) -> None:
        """Remove a key and its file, if present."""
        self._remove(_file_name(key))

    def _remove(self, name: str) -> None:
        if name in self._sizes:
            self._nbytes -= self._sizes.pop(name)
            _remove(self._path(name))

    def _evict_for(self, size: int) -> None:
        """Evict the least recently used files until `size` more bytes fit."""
        while self._sizes and self.nbytes + size > self.limit:
            self._remove(next(iter(self._sizes)))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{self._SUFFIX}"


def _is_finite(array: npt.NDArray[Any]) -> bool:
    """Return whether an array holds neither NaN nor infinity."""
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    # Their exponents are all ones. NumPy would convert each float16 to find that, which is slower.
    # A piece of 128 KiB stays in a core's cache.
    bits = array.view(np.int16).reshape(-1)
    pieces = (bits[start : start + (1 << 16)] for start in range(0, len(bits), 1 << 16))
    return all((piece & 0x7FFF).max() < 0x7C00 for piece in pieces)


def _file_name(key: str) -> str:
    """Return the name of a key's file: hex digits, as many for every key, and never a path."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(slots=True)
class CacheCounts:
    """Counters of a `PrefixCache`."""

    hits: dict[str, int] = field(default_factory=dict)
    """Keys found, by tier."""
    misses: int = 0
    """Keys that no tier had."""
    evictions: dict[str, int] = field(default_factory=dict)
    """Arrays evicted for lack of capacity, by tier: into the next tier, or deleted by the last."""


class PrefixCache:
    """A map from keys to arrays in tiers, from the fastest to the largest. Threads may share one.

    An array that a tier evicts moves to the next tier; the last tier deletes it. An array found in
    a lower tier returns to the first. A tier that outlives the process has a copy of every array
    within its capacity, so a search finds what an earlier process indexed.

    Args:
        tiers: by default 1 GiB of this machine's memory. A 7 B model in fp16 takes 15 MB a frame.

    Raises:
        GranAlignError: `tiers` is empty.
    """

    def __init__(self, tiers: Sequence[Tier] | None = None) -> None:
        self.tiers: tuple[Tier, ...] = (MemoryTier(KEPT_BYTES),) if tiers is None else tuple(tiers)
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
        """Bytes in use, by tier."""
        with self._lock:
            return {tier.name: tier.nbytes for tier in self.tiers}

    def get(self, key: str, fits: Callable[[Array], bool] | None = None) -> Array | None:
        """Return a key's array; None if no tier has it.

        Args:
            key: the array's key.
            fits: tells whether an array can be the one that was kept. One that cannot is removed,
                as if it had not been there.
        """
        with self._lock:
            for level, tier in enumerate(self.tiers):
                array = tier.get(key)
                if array is not None and fits is not None and not fits(array):
                    tier.discard(key)
                    array = None
                if array is None:
                    continue
                self.counts.hits[tier.name] += 1
                _log.debug("prefix %s is in the cache: %s", key, tier.name)
                # Promote the array to the first tier. Persistent tiers keep their copy.
                if level:
                    if not tier.persistent:
                        tier.discard(key)
                    self._put(key, array)
                return array
            self.counts.misses += 1
            return None

    def put(self, key: str, array: Array) -> None:
        """Store an array, which nobody may write to from now on."""
        with self._lock:
            for tier in self.tiers:
                if tier.persistent:
                    tier.put(key, array)
            self._put(key, array)

    def _put(self, key: str, array: Array) -> None:
        """Put an array into the first tier, and what each tier evicts into the next."""
        incoming = [(key, array)]
        for tier in self.tiers:
            outgoing = []
            for name, value in incoming:
                rejected = tier.put(name, value)
                # An array that exceeds the tier's capacity comes back at once. That is no eviction.
                self.counts.evictions[tier.name] += sum(other != name for other, _ in rejected)
                outgoing += rejected
            incoming = outgoing


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _checked_limit(limit: int, name: str) -> int:
    if not isinstance(limit, int) or limit < 0:
        raise GranAlignError(f"limit of the {name} tier: got {limit!r}, expected bytes, 0 or more")
    return limit


def user_prefix_cache(gib: float, *, on_cpu: bool) -> PrefixCache:
    """Return a cache in memory and in the user's cache folder, where later processes find it.

    Args:
        gib: the bound on disk, in GiB; 0 for none.
        on_cpu: whether the model runs on a CPU.

    Raises:
        GranAlignError: `gib` is out of range.
    """
    if not 0 <= gib <= MOST_GIB:
        raise GranAlignError(f"prefix_gib: got {gib}, expected 0 to {MOST_GIB} GiB")
    on_disk, folder = int(gib * (1 << 30)), usable_cache("prefixes")
    small = on_cpu and folder is not None and on_disk
    tiers: list[Tier] = [MemoryTier(CPU_MEMORY_BYTES if small else KEPT_BYTES)]
    if folder is not None:
        tiers.append(DiskTier(folder, on_disk))
    return PrefixCache(tiers)
