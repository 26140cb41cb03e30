"""Files and folders: written whole or not at all, hashed, and the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import GranAlignError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        GranAlignError: it cannot be written, which every OSError of the block is taken for.
    """
    path = Path(path)
    # Made like any new file, so that the system gives it the permissions of one.
    temporary = path.parent / f".{path.name}.{os.urandom(4).hex()}"
    try:
        sink = temporary.open("xb")
        try:
            with sink:
                yield sink
            os.replace(temporary, path)
            _log.debug("wrote %s", path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise GranAlignError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or write elsewhere"
        ) from None


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well, and vanishes otherwise."""
    if out.exists():
        raise GranAlignError(f"{out}: already exists; name a folder that does not, or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise GranAlignError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp makes it private
        draft.rename(out)
        _log.info("wrote the folder %s", out)
    except OSError as error:
        raise GranAlignError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_json(path: Path) -> Any:
    """The value of a JSON file; errors name the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise GranAlignError(f"{path}: not JSON ({error}); copy or download it again") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None


_LARGE = 1 << 26
"""Bytes: up to here a file is hashed in less than a tenth of a second, beyond in seconds."""


_SETTLED = 2_000_000_000
"""Nanoseconds after which a change gets another time stamp, on every file system."""


def known_sha256(path: Path, expected: str, *, again: bool = False) -> str:
    """As `sha256_of`; a large file that was found to be as expected is not read a second time.

    An empty file in the user's cache remembers it, named by the size, times and number that the
    file system keeps of a file: whoever changes a file changes these. A copy is read once more.

    Args:
        path: the file.
        expected: the one hash that is remembered.
        again: read the file all the same, as only this finds what a disk has lost by itself.

    Raises:
        GranAlignError: the file cannot be read.
    """
    mark = _mark(path, expected)
    if mark is not None and not again and os.access(mark, os.F_OK):
        return expected
    got = sha256_of(path)
    if mark is not None:
        with contextlib.suppress(OSError):  # without a cache the next call takes as long, no more
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch() if got == expected else mark.unlink(missing_ok=True)
    return got


def _mark(path: Path, digest: str) -> Path | None:
    """None for a file that is small, missing, or so new that a change might not show."""
    from granalign_fast.files import default_cache

    try:
        stat, cache = path.stat(), default_cache()
    except (OSError, RuntimeError):  # no such file, no home
        return None
    times = stat.st_mtime_ns, stat.st_ctime_ns
    if stat.st_size <= _LARGE or time.time_ns() - max(times) < _SETTLED:
        return None
    name = json.dumps([digest, stat.st_dev, stat.st_ino, stat.st_size, *times])
    return cache / "verified" / hashlib.sha256(name.encode()).hexdigest()


def default_cache() -> Path:
    """``granalign-fast`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "granalign-fast"
