"""The indexes of the videos last searched, in memory up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex

from .records import CataloguedVideo

_OVERHEAD = 64
"""Bytes of a caption beside its characters, about."""


class IndexCache:
    """An LRU cache of indexes. The newest stays even if it alone exceeds the capacity.

    Several libraries over one catalogue may share a cache, and so may threads.

    Args:
        capacity: bytes of all indexes. One of a video of 150 seconds by MiniLM takes 130 KB.
        failed: called with each video whose index cannot be read, and the reason.
    """

    def __init__(
        self,
        capacity: int,
        *,
        failed: Callable[[CataloguedVideo, GranAlignError], None] | None = None,
    ) -> None:
        self.nbytes = 0
        """Bytes of the indexes in the cache."""
        self._capacity, self._failed = capacity, failed
        self._entries: OrderedDict[tuple[str, str], tuple[VideoIndex, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get_or_load(self, video: CataloguedVideo, load: Callable[[], VideoIndex]) -> VideoIndex:
        """Return the index of a video, from the cache if it is there.

        Args:
            video: is recognised by id and stamp, so a new index of it replaces an old one in time.
            load: reads the index, outside the lock.

        Raises:
            GranAlignError: as `load` does.
        """
        key = video.vid, video.stamp
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        try:
            index = load()
        except GranAlignError as error:
            if self._failed is not None:
                self._failed(video, error)
            raise
        size = index_bytes(index)
        with self._lock:
            _, replaced = self._entries.pop(key, (None, 0))  # another thread may have read it too
            self._entries[key] = index, size
            self.nbytes += size - replaced
            while self.nbytes > self._capacity and len(self._entries) > 1:
                _, (_, gone) = self._entries.popitem(last=False)
                self.nbytes -= gone
        return index

    def keep(self, videos: Iterable[CataloguedVideo]) -> None:
        """Drop the indexes of all other videos, and those of earlier indexings."""
        known = {(video.vid, video.stamp) for video in videos}
        with self._lock:
            for key in self._entries.keys() - known:
                self.nbytes -= self._entries.pop(key)[1]


def index_bytes(index: VideoIndex) -> int:
    """Return how many bytes an index takes in memory, about."""
    arrays = [index.embeddings, None if index.frames is None else index.frames.embeddings]
    captions = index.video.captions or ()
    return sum(array.nbytes for array in arrays if array is not None) + sum(
        len(caption) + _OVERHEAD for caption in captions
    )
