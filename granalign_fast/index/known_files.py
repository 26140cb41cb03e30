"""Remember the hashes of video files, so that an unchanged file is not read again.

The file ``.files.json`` of a folder of indexes lists, for the file of each index, its size, its
times and its SHA-256. Nothing is lost with it: without it the files are read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_INDEX_BYTES
from granalign_fast.reading import read_file

from .manifest import path_record, read_path, write_durably

FILE_NAME = ".files.json"
"""The name of the list in a folder of indexes."""

_FORMAT = 1
"""Format version of the list; a list of another version is ignored."""

_SETTLED = 2_000_000_000
"""Nanoseconds after which a change gets another time stamp on every file system: 2 s on FAT."""


@dataclass(frozen=True, slots=True)
class _KnownFile:
    """The size, the times and the hash of a file that was read completely."""

    bytes: int
    modified_ns: int
    changed_ns: int
    """The time of the last change of the content or of the file's attributes."""
    sha256: str


class KnownFiles:
    """The hashes of files, as long as the files' sizes and times stay the same.

    Args:
        out: the folder of indexes; it may be missing.
        trusted: whether hashes of earlier calls count. If not, every file is read again.
    """

    def __init__(self, out: Path, *, trusted: bool = True) -> None:
        self._list = out / FILE_NAME
        self._trusted = trusted
        self._files: dict[Path, _KnownFile] = {}
        self._written = b""
        self._written_ns = 0
        try:
            self._written = read_file(self._list, MOST_INDEX_BYTES, inside=out)
            self._written_ns = self._list.stat().st_mtime_ns
            record = parse_json(self._written)
            if record["format"] == _FORMAT:
                for file in record["files"]:
                    sizes = (file["bytes"], file["modified_ns"], file["changed_ns"])
                    self._files[read_path(file)] = _KnownFile(*sizes, str(file["sha256"]))
        except (OSError, ValueError, KeyError, TypeError, GranAlignError):
            self._files = {}

    def sha256(self, path: Path, status: os.stat_result) -> str | None:
        """Return the hash of a file, or None if it must be read.

        A change shortly after the file was read could leave its times as they are. So a file counts
        as known only if its last change is well before the list was written.
        """
        known = self._files.get(path)
        newest = max(status.st_mtime_ns, status.st_ctime_ns)
        if not self._trusted or known is None or newest + _SETTLED > self._written_ns:
            return None
        return known.sha256 if known == _known_file(status, known.sha256) else None

    def add(self, path: Path, status: os.stat_result, sha256: str) -> None:
        """Record a file that was read; `status` was taken before."""
        self._files[path] = _known_file(status, sha256)

    def write(self, paths: Collection[Path]) -> None:
        """Write the list with the files of these paths, unless it is the same as before.

        The caller holds the lock of the folder.

        Raises:
            GranAlignError: the list cannot be written.
        """
        files = [
            {
                **path_record(path),
                "bytes": known.bytes,
                "modified_ns": known.modified_ns,
                "changed_ns": known.changed_ns,
                "sha256": known.sha256,
            }
            for path, known in sorted(self._files.items())
            if path in paths
        ]
        content = (json.dumps({"format": _FORMAT, "files": files}, indent=1) + "\n").encode()
        # A process that died while it wrote the list has left a temporary file.
        for stale in self._list.parent.glob(f".{FILE_NAME}.*"):
            stale.unlink(missing_ok=True)
        if content != self._written:
            write_durably(self._list, content)
            self._written = content


def _known_file(status: os.stat_result, sha256: str) -> _KnownFile:
    return _KnownFile(status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256)
