"""The lock of a library's catalogue, and the errors of writing it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.index.own_folders import check_own_folder

from .pointer import FOLDER

_PATIENCE = 5.0
"""Seconds that a writer waits for another process that brings the catalogue up to date."""
_PUBLISHING = 600.0
"""Seconds that it waits for one that publishes the catalogue in an object store."""


@contextmanager
def locked_catalogue(library: Path) -> Iterator[None]:
    """Keep other writers of catalogue and tags out for the block; wait for one that is at work.

    Removals hold it too, but no indexing run does.

    Raises:
        GranAlignError: the folder cannot be written, or another process does not end.
    """
    root = library / FOLDER
    check_own_folder(root)
    with explaining(library):
        root.mkdir(exist_ok=True)
    with _locked(root, library, _PATIENCE):
        yield


@contextmanager
def locked_copy(folder: Path) -> Iterator[None]:
    """Keep other publishers of this machine out for the block; wait for one that is at work.

    Args:
        folder: of this machine's copy of a library in an object store.

    Raises:
        GranAlignError: the folder cannot be written, or another process does not end.
    """
    with _locked(folder, folder, _PUBLISHING):
        yield


@contextmanager
def _locked(folder: Path, library: Path, patience: float) -> Iterator[None]:
    with explaining(library):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise GranAlignError(
                        f"{library}: another process is writing the catalogue; wait until it has "
                        f"ended, and try again"
                    ) from None
                time.sleep(0.02)
            except OSError as error:
                raise GranAlignError(
                    f"{library}: cannot be locked ({error.strerror or error}); move the library "
                    f"to a local disk"
                ) from None
        yield
    finally:
        os.close(descriptor)  # the lock goes with it, however the process ends


@contextmanager
def explaining(library: Path) -> Iterator[None]:
    """Turn an OSError of the block into a GranAlignError."""
    try:
        yield
    except OSError as error:
        raise GranAlignError(
            f"{library}: its catalogue cannot be written ({error.strerror or error}); free disk "
            f"space, or correct the permissions"
        ) from None
