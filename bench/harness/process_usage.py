"""Reads memory, descriptors, threads and child processes of a running process from /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class Usage(NamedTuple):
    """Memory, descriptors, threads and children of a process at one moment."""

    resident: int
    """Bytes of its memory, without that of its children."""
    anonymous: int
    """Bytes of these that are not pages of files."""
    descriptors: int
    threads: int
    children: int
    """Processes below it, those of its children included."""
    child_resident: int
    """Bytes of the memory of all of them; pages that they share count for each."""


def usage(pid: int) -> Usage:
    """Return what a process holds now.

    Raises:
        OSError: it has ended, or is another user's.
    """
    own = _status(pid)
    below = _descendants(pid)
    return Usage(
        resident=own["VmRSS"] << 10,
        anonymous=own["RssAnon"] << 10,
        descriptors=sum(1 for _ in (_PROC / str(pid) / "fd").iterdir()),
        threads=own["Threads"],
        children=len(below),
        child_resident=sum(_resident(child) for child in below),
    )


def open_files(pid: int) -> list[str]:
    """Return the path of each open file of a process; `` (deleted)`` ends those of deleted files.

    Raises:
        OSError: it has ended, or is another user's.
    """
    paths = []
    for entry in (_PROC / str(pid) / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            paths.append(str(entry.readlink()))
    return paths


def _status(pid: int) -> dict[str, int]:
    """Return the numbers of ``/proc/PID/status`` by name; sizes are in KiB."""
    lines = (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0])
    return found


def _resident(pid: int) -> int:
    try:
        return _status(pid).get("VmRSS", 0) << 10
    except OSError:  # it has ended
        return 0


def _descendants(pid: int) -> list[int]:
    """Return the processes below one, without those that have ended and were not waited for."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                # The name of the program, in brackets, can hold spaces.
                words = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            state, parent = words.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: list[int] = []
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += level
    return found
