"""Video files of the library, checked before any byte of them is sent or decoded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import read_manifest_source

from .engine import Engine
from .problems import Problem

_KEPT = 4096
"""Files whose check is remembered."""

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of change: equal for a file that was not touched."""


class CheckedFiles:
    """Compares a file with the one that was indexed: once, as long as it is not touched.

    An index that somebody else made could name any file of this machine; only one whose content
    has the hash of the index is opened.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._checked: OrderedDict[tuple[str, str], tuple[Path, Identity]] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, vid: str, stamp: str) -> Path:
        """Return the path of a video's file.

        Args:
            vid: the id of the video.
            stamp: of its index.

        Raises:
            Problem: there is no file, or it is another one than the one that was indexed.
        """
        key = vid, stamp
        with self._lock:
            known = self._checked.get(key)
        if known is not None and identity(known[0]) == known[1]:
            return known[0]
        source = read_manifest_source(self._engine.folder / vid)
        if source is None:
            raise Problem("file-gone", f"video {vid!r}: got captions alone, expected a video file")
        before = identity(source.path)
        try:
            path = source.check()
        except GranAlignError:
            raise Problem(
                "file-gone",
                f"video {vid!r}: its file {source.path.name!r} is gone or is another one; put it "
                f"back, or index it where it is now",
            ) from None
        if before is None or identity(path) != before:
            raise Problem("file-gone", f"video {vid!r}: its file is being changed; try again later")
        with self._lock:
            self._checked[key] = path, before
            while len(self._checked) > _KEPT:
                self._checked.popitem(last=False)
        return path


def identity(path: Path) -> Identity | None:
    """Return what changes when a file is touched; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
