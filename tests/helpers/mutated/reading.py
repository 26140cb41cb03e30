"""Read a changed file in a worker process, and see what that does to the process and the disk."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError

from .cases import CASES

_WRITES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
}
_FORBIDDEN = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.bind",
    "pty.spawn",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_escapes: list[str] = []
_allowed: list[str] = []
_warm: set[str] = set()


def examine(name: str, seeds: str, folder: str, outside: str) -> dict[str, Any]:
    """Read the files of a folder.

    Args:
        name: of the case.
        seeds: the valid files of the case, which are read first.
        folder: the changed files.
        outside: a folder that nothing may open.

    Returns:
        ``outcome`` (``read`` or ``refused``), ``message``, ``growth`` (of the peak of memory, in
        bytes), ``seconds`` of processors, and ``escapes``: what was opened, written or run beyond
        the given folders.
    """
    case = CASES[name]
    if not _allowed:
        # Audit hooks stay for the life of the process, and see each open of Python itself.
        _allowed.extend((os.environ["TMPDIR"], outside))
        sys.addaudithook(_watch)
    warnings.simplefilter("ignore")
    if name not in _warm:
        _read_seeds(case.read, Path(seeds), Path(folder).with_name("warm"), alone=case.alone)
        _warm.add(name)
        _base[name] = _resident()
    os.chdir(os.environ["TMPDIR"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    _escapes.clear()
    _allowed[2:] = [folder]
    begin = time.process_time()
    outcome, message = "read", ""
    try:
        case.read(Path(folder))
    except GranAlignError as error:
        outcome, message = "refused", str(error)
    seconds = time.process_time() - begin
    _allowed[2:] = []
    return {
        "outcome": outcome,
        "message": message[:5000],
        "growth": _status("VmHWM") - _base[name],
        "seconds": seconds,
        "escapes": list(_escapes[:5]),
    }


_base: dict[str, int] = {}
"""Resident bytes after the valid files of a case were read."""


def _read_seeds(read: Callable[[Path], object], seeds: Path, copy: Path, *, alone: bool) -> None:
    """Read valid files: every library is loaded, and every model has run."""
    for path in sorted(seeds.iterdir()) if alone else [seeds]:
        shutil.rmtree(copy, ignore_errors=True)
        if alone:
            copy.mkdir()
            shutil.copy(path, copy)
        else:
            shutil.copytree(path, copy)
        read(copy)
    shutil.rmtree(copy)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what leaves the given folders, or starts something."""
    if len(_allowed) < 3:  # between two files
        return
    if event in _FORBIDDEN:
        _escapes.append(f"{event} {arguments!r:.200}")
    elif event in _WRITES:
        for path in arguments[:2]:
            named = isinstance(path, str | bytes | os.PathLike)
            if named and not _is_inside(path, [*_allowed[:1], *_allowed[2:]]):
                _escapes.append(f"{event} {path!r:.200}")
    elif event == "open":
        path, _, flags = arguments
        if not isinstance(path, str | bytes | os.PathLike):
            return
        writes = isinstance(flags, int) and flags & _WRITING
        if _is_inside(path, _allowed[1:2]):
            _escapes.append(f"open {path!r:.200}")
        elif writes and not _is_inside(path, [*_allowed[:1], *_allowed[2:]]):
            _escapes.append(f"write {path!r:.200}")


def _is_inside(path: Any, folders: list[str]) -> bool:
    text = os.path.normpath(Path(os.fsdecode(path)).absolute())
    return text == "/dev/null" or any(f"{text}/".startswith(f"{one}/") for one in folders)


def _resident() -> int:
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise KeyError(key)
