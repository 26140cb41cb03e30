"""A byte-bounded LRU cache of arrays that are derived from other arrays."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from typing import Any

import numpy.typing as npt

from granalign_fast.runtime.array_device import Array


class DerivedArrayCache:
    """LRU cache of derived arrays; an entry dies with its source array.

    If the entries exceed the capacity, the least recently used ones go. The newest entry stays even
    if it alone exceeds the capacity. Threads may share a cache.

    Args:
        capacity: bytes of all derived arrays.
    """

    def __init__(self, capacity: int) -> None:
        self.nbytes = 0
        """Bytes of all derived arrays in the cache."""
        self._capacity = capacity
        self._entries: OrderedDict[int, tuple[weakref.ref[Any], Array]] = OrderedDict()
        # Reentrant: the garbage collector may free a source array, and so call `_drop`, in any
        # line of any thread, also in one that holds the lock.
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def get_or_create(
        self, source: npt.NDArray[Any], derive: Callable[[npt.NDArray[Any]], Array]
    ) -> Array:
        """Return the derived array of a source, from the cache if it is there.

        Args:
            source: the array; it is recognised by identity.
            derive: computes the derived array. It runs outside the lock, so two threads may both
                compute it for the same source; the later result stays.
        """
        key = id(source)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][1]
        derived = derive(source)

        # The callback must not keep this cache alive, nor its GPU memory.
        cache_ref = weakref.ref(self)

        def source_freed(_: object) -> None:
            cache = cache_ref()
            if cache is not None:
                cache._drop(key)

        with self._lock:
            self._drop(key)  # another thread may have derived it meanwhile
            self._entries[key] = weakref.ref(source, source_freed), derived
            self.nbytes += derived.nbytes
            while self.nbytes > self._capacity and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))
        return derived

    def _drop(self, key: int) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            self.nbytes -= 0 if entry is None else entry[1].nbytes
