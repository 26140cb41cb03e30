"""Files of the catalogue that are on disk when they are closed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Sink:
    """A new file that counts and hashes what is written, and is on disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self.bytes, self.digest = 0, hashlib.sha256()
        self.closed = False
        self._file: IO[bytes] = path.open("xb")

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())

    def write(self, content: Any) -> int:
        """Append bytes."""
        self._file.write(content)
        self.digest.update(content)
        size = len(content)
        self.bytes += size
        return size

    def tell(self) -> int:
        """Return the position, which pyarrow asks for."""
        return self.bytes

    def flush(self) -> None:
        """Do nothing: pyarrow calls it often, and the file is flushed at its end."""
