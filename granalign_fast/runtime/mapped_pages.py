"""Give back memory that this process holds and no longer uses: freed blocks, pages of files."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_DONT_NEED = 4
"""madvise's advice MADV_DONTNEED: a page of a file is read again when it is used again."""
_MAPS = Path("/proc/self/smaps")
_HEAD = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)")


def release_memory(folder: Path) -> None:
    """Give back what the C library keeps of freed memory, and the pages of a folder's files.

    Systems without these calls, such as macOS, keep it.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    release_pages(folder)


def release_pages(folder: Path) -> int:
    """Release the memory of all mapped files of a folder; return the number of mapped bytes.

    ONNX Runtime maps external data and copies most weights into a layout of its own. The scales and
    zero points of rounded weights stay mapped, although the copy holds them too. They count as the
    process's memory until they are released. A page that is used again, such as a row of a table,
    is read again from the file.

    Systems other than Linux release nothing.
    """
    try:
        mappings = list(_clean_mappings(folder))
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return 0
    for start, size in mappings:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONT_NEED)
    return sum(size for _, size in mappings)


def _clean_mappings(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield address and size of each mapping of a folder's files that nobody has written to."""
    prefix = str(folder.resolve()).encode() + b"/"
    place: tuple[int, int] | None = None
    for line in _MAPS.read_bytes().splitlines():
        # Each mapping has a line of its own, followed by counters, whose names are capitalised.
        if not line[:1].isupper():
            head = _HEAD.fullmatch(line)
            place = None
            if head and head[3].startswith(prefix):
                start, end = int(head[1], 16), int(head[2], 16)
                place = start, end - start
        # A written page of a private mapping is anonymous: releasing it would lose what it holds.
        elif place is not None and line.startswith(b"Anonymous:"):
            if line.split()[1] == b"0":
                yield place
            place = None
