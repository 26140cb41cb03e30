"""A bounded store of pictures that were made."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Set

Source = tuple[str, str]
"""The id of a video, and the stamp of its index."""
Key = tuple[Source, int, int]
"""The source of a picture, the number of its step in time, and its width."""


class Pictures:
    """Keeps the pictures that were asked for last, up to a number of bytes.

    >>> a, b = ((("yard", "1"), number, 320) for number in range(2))
    >>> pictures = Pictures(10)
    >>> pictures.put(a, b"123456"); pictures.put(b, b"654321")
    >>> pictures.get(a), pictures.get(b)
    (None, b'654321')
    >>> pictures.keep({("street", "2")}); pictures.get(b)
    """

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> bytes | None:
        """Return a picture; None if it is not kept."""
        with self._lock:
            content = self._kept.get(key)
            if content is not None:
                self._kept.move_to_end(key)
            return content

    def put(self, key: Key, content: bytes) -> None:
        """Keep a picture; those that were not asked for longest give way."""
        with self._lock:
            self._bytes += len(content) - len(self._kept.pop(key, b""))
            self._kept[key] = content
            while self._bytes > self._most:
                self._bytes -= len(self._kept.popitem(last=False)[1])

    def keep(self, sources: Set[Source]) -> None:
        """Forget the pictures of all other videos."""
        with self._lock:
            for key in [key for key in self._kept if key[0] not in sources]:
                self._bytes -= len(self._kept.pop(key))
