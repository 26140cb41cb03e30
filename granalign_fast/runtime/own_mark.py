"""The mark of a file that this user made here: an HMAC, whose key nobody else has.

A TensorRT plan is machine code, and Faiss trusts what it reads. Whoever gives a folder away can
write any stamp beside such a file, but not its mark.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.reading import read_file

_BYTES = 32
"""Bytes of the key, as many as those of the mark."""


def make_mark(content: bytes) -> str:
    """Return the mark of a stamp's content; the key is made if there is none.

    Raises:
        GranAlignError: the key cannot be read or written.
    """
    return _mark(_read_key() or _make_key(), content)


def is_own_mark(mark: str, content: bytes) -> bool:
    """Whether this user's key made the mark of this content; without a key there is none.

    Raises:
        GranAlignError: the key cannot be read.
    """
    key = _read_key()
    return key is not None and hmac.compare_digest(
        mark.encode(errors="replace"), _mark(key, content).encode()
    )


def _mark(key: bytes, content: bytes) -> str:
    return hmac.digest(key, content, "sha256").hex()


def _key_path() -> Path:
    """Return the path of the key: not in the cache, because a cache may be deleted."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(given) if Path(given).is_absolute() else Path.home() / ".config"
    except RuntimeError:  # no home folder
        raise GranAlignError(
            "key of own files: got a user without a home folder; set XDG_CONFIG_HOME"
        ) from None
    return folder / "granalign-fast" / "engine.key"


def _read_key() -> bytes | None:
    """Return the key; None if there is none.

    Raises:
        GranAlignError: it cannot be read, or others can read it.
    """
    path = _key_path()
    try:
        status = path.lstat()
    except OSError:
        return None
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise GranAlignError(
            f"{path}: got a key that others own or can read, expected mode 0600; delete it, and "
            f"make engines and approximate indexes again"
        )
    key = read_file(path, _BYTES, inside=path.parent)
    if len(key) != _BYTES:
        raise GranAlignError(
            f"{path}: got {len(key)} bytes, expected {_BYTES}; delete it, and make engines and "
            f"approximate indexes again"
        )
    return key


def _make_key() -> bytes:
    """Make the key, whole or not at all; return it, or that of a process that was faster."""
    path = _key_path()
    draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    key = os.urandom(_BYTES)
    try:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123  # of a descriptor
                file.write(key)
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename, it replaces no key
        finally:
            draft.unlink()
    except OSError as error:
        raise GranAlignError(
            f"{path}: cannot be written ({error.strerror or error}); set XDG_CONFIG_HOME to a "
            f"folder that can be written"
        ) from None
    return _read_key() or key
