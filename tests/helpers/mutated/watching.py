"""See whether any library, in whatever language, opens a file of a folder."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_IN_NONBLOCK, _IN_ALL_EVENTS = os.O_NONBLOCK, 0xFFF
_HEAD = struct.Struct("iIII")


class Watch:
    """A watch of the kernel (inotify) on one folder."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(_IN_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0 or (
            libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _IN_ALL_EVENTS) < 0
        ):
            raise OSError(ctypes.get_errno(), "inotify")

    def changes(self) -> list[str]:
        """Return the names of the files that were opened or changed since the last call."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        names, at = [], 0
        while at < len(data):
            *_, size = _HEAD.unpack_from(data, at)
            names.append(os.fsdecode(data[at + _HEAD.size : at + _HEAD.size + size].rstrip(b"\0")))
            at += _HEAD.size + size
        return [f"opened outside/{name}" for name in dict.fromkeys(names)]
