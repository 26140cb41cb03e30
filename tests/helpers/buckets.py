"""A folder that stands in for all buckets of an object store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from granalign_fast.storage import Address


def connect(folder: Path, address: Address) -> Bucket:
    """The file system of an address, in the place of the one that pyarrow connects to."""
    (folder / address.bucket).mkdir(exist_ok=True)
    return Bucket(folder)


class Bucket:
    """A file system of pyarrow that makes the folders of a file, as object stores seem to do.

    An object appears whole when it is closed, also for other processes.
    """

    def __init__(self, folder: Path) -> None:
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        self._folder = folder
        self._system = SubTreeFileSystem(str(folder), LocalFileSystem())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def open_output_stream(self, path: str) -> Any:
        return _Object(self._folder, path)


class _Object:
    """An object that is being written."""

    def __init__(self, folder: Path, path: str) -> None:
        self._path = folder / path
        self._draft = folder / f".{os.urandom(8).hex()}"
        self._sink = self._draft.open("xb")

    def __enter__(self) -> _Object:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._sink.close()
        if kind is not None:
            self._draft.unlink()
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._draft, self._path)

    def write(self, content: bytes) -> None:
        self._sink.write(content)
