"""Files and folders: writing them whole or not at all, hashes, and the cache folder's path."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import GranAlignError
from .parsing.json_values import parse_json
from .parsing.limits import MOST_JSON_BYTES
from .reading import open_file, read_file

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` when the block ends, and is deleted on an error.

    The new file has the permissions of the one that it replaces. A device or a pipe, such as
    ``/dev/null`` and ``/dev/stdout``, is written to and stays what it is.

    Args:
        path: the file to write.
        private: make a file that its owner alone reads and writes.

    Raises:
        GranAlignError: `path` is a link to a file, or cannot be written. Every OSError of the block
            is reported so.
    """
    path = Path(path)
    # Not by tempfile: the file gets the permissions of any new file.
    temporary = path.parent / f".{path.name}.{os.urandom(4).hex()}"
    try:
        mode = _mode_to_keep(path)
        if mode is None:
            with path.open("wb") as sink:
                yield sink
            return
        sink = temporary.open("xb")
        try:
            with sink:
                if mode or private:
                    os.fchmod(sink.fileno(), 0o600 if private else mode)
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


def _mode_to_keep(path: Path) -> int | None:
    """Return the permissions of the file that is replaced; 0 for a new file.

    None for a device, a pipe or a socket: it must not be replaced by a file.

    Raises:
        GranAlignError: the path is a link to a file or to nothing. To replace the link would leave
            the file as it was, and to follow it could overwrite a file that nobody named.
    """
    try:
        named = path.lstat().st_mode
    except FileNotFoundError:
        return 0
    mode = named
    if stat.S_ISLNK(named):
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            raise GranAlignError(
                f"{path}: got a link to {path.readlink()}, expected a file; name the file itself"
            )
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # to replace a folder fails, with its reason
        return stat.S_IMODE(mode)
    return None


_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.draft")
"""Names of the folders that `appearing` writes to."""


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Yield a draft folder that becomes `out` when the block ends, and is deleted on an error.

    Its process holds a lock on the draft. A draft without one was abandoned by a process that was
    killed; the next call for the same parent folder deletes it.

    Raises:
        GranAlignError: `out` exists, or cannot be written. Every OSError of the block is reported
            so.
    """
    if out.exists():
        raise GranAlignError(f"{out}: already exists; name a folder that does not, or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(out.parent)
        draft, lock = _new_draft(out)
    except OSError as error:
        raise GranAlignError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        yield draft
        draft.chmod(0o755)  # private until then
        draft.rename(out)
        _log.info("wrote the folder %s", out)
    except OSError as error:
        raise GranAlignError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Delete the drafts in a folder whose processes have ended.

    A file system that knows no locks does not tell which these are; there all drafts stay.
    """
    with os.scandir(parent) as entries:
        drafts = [entry.path for entry in entries if _DRAFT.fullmatch(entry.name)]
    for draft in drafts:
        with contextlib.suppress(OSError):  # in use, deleted meanwhile, or no locks
            lock = _lock(draft)
            try:
                shutil.rmtree(draft, ignore_errors=True)
                _log.info("deleted %s, which a process left behind that was ended", draft)
            finally:
                os.close(lock)


def _new_draft(out: Path) -> tuple[Path, int]:
    """Make a draft folder; return it and the file descriptor that holds its lock."""
    while True:
        # The name may have 255 bytes, and the draft's has some more than the folder's.
        draft = out.parent / f".{out.name[:50]}.{os.urandom(4).hex()}.draft"
        draft.mkdir(mode=0o700)
        try:
            return draft, _lock(draft)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took it for abandoned in this instant
        except OSError:  # no locks here
            return draft, os.open(draft, os.O_RDONLY)


def _lock(folder: str | Path) -> int:
    """Lock a folder for this process; return the file descriptor, whose end is the lock's.

    Raises:
        OSError: the folder is locked or gone, or its file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), Path(folder).stat()):
            raise FileNotFoundError(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_json(path: Path, *, inside: Path | None = None) -> Any:
    """Return the value of a JSON file; errors name the file.

    Args:
        path: of the file.
        inside: the folder that a link to the file must not leave.

    Raises:
        GranAlignError: as for `read_file`, or the file is not JSON.
    """
    content = read_file(path, MOST_JSON_BYTES, inside=inside)
    try:
        return parse_json(content)
    except ValueError as error:
        raise GranAlignError(f"{path}: not JSON ({error}); copy or download it again") from None


def escape_undecodable(name: str) -> str:
    """Return a file name with each byte that is not UTF-8 as ``%XX``, so that JSON can hold it."""
    parts = []
    for character in name:
        if "\udc80" <= character <= "\udcff":  # Python's stand-in for one such byte
            parts.append(f"%{ord(character) - 0xDC00:02X}")
        elif "\ud800" <= character <= "\udfff":
            parts += [f"%{byte:02X}" for byte in character.encode(errors="surrogatepass")]
        else:
            parts.append(character)
    return "".join(parts)


_CHUNK = 1 << 23
"""Bytes that are hashed between two reports: 8 MiB take some milliseconds."""


def sha256_of(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file, in hex.

    Args:
        path: the file.
        advance: called with the number of bytes that were read since the last call.

    Raises:
        GranAlignError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                if advance is not None:
                    advance(len(chunk))
        return digest.hexdigest()
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None


_LARGE = 1 << 26
"""Bytes. A file of this size is hashed in less than a tenth of a second, larger ones in seconds."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a change gets another time stamp, on every file system: 2 s on FAT."""


def known_sha256(path: Path, expected: str, *, again: bool = False) -> str:
    """Return the SHA-256 of a file; a large file that had the expected one is not read again.

    The user's cache then holds an empty file, a mark. Its name is a keyed hash of the size, the
    times and the inode number of the file, which change when the file changes. A copy is read once
    more. The key is random and lies in the cache, which other users can neither read nor write: who
    made the file cannot make its mark.

    Args:
        path: the file.
        expected: the hash that a mark stands for.
        again: read the file even if it has a mark. Only this finds bits that a disk has lost.

    Raises:
        GranAlignError: the file cannot be read.
    """
    mark = _mark(path, expected)
    if mark is not None and not again and _is_own_file(mark):
        return expected
    got = sha256_of(path)
    if got == expected:
        remember_sha256(path, got)
    elif mark is not None:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
    return got


def is_sha256_cheap(path: Path, expected: str) -> bool:
    """Return whether `known_sha256` answers in an instant: a small file, or a marked one."""
    try:
        if path.stat().st_size <= _LARGE:
            return True
    except OSError:
        return False
    mark = _mark(path, expected)
    return mark is not None and _is_own_file(mark)


def remember_sha256(path: Path, digest: str) -> None:
    """Keep that a file, which was read completely, has this SHA-256, for `known_sha256`."""
    with contextlib.suppress(OSError, GranAlignError):  # without a mark it is only read again
        if _facts(path) is None:
            return
        make_private(default_cache())
        marks = make_private(default_cache() / _MARKS)
        if not (marks / _KEY).exists():
            with replacing(marks / _KEY, private=True) as sink:
                sink.write(os.urandom(32))
        if (mark := _mark(path, digest)) is not None:
            mark.touch(mode=0o600)


def _mark(path: Path, digest: str) -> Path | None:
    """Return the path of a file's mark; None for a small, a missing or a very new file.

    A change of a file that is younger than `_SETTLED` might leave its times as they are.
    """
    try:
        if (facts := _facts(path)) is None:
            return None
        marks = default_cache() / _MARKS
        check_private(marks.parent)
        check_private(marks)
        key = read_file(marks / _KEY, 32, inside=marks)
    except (OSError, GranAlignError):  # no such file, no cache yet, or one that others write
        return None
    name = json.dumps([digest, *facts])
    return marks / hmac.digest(key, name.encode(), "sha256").hex()


def _facts(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file changes; None for a small or a very new file.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    if status.st_size <= _LARGE or time.time_ns() - max(times) < _SETTLED:
        return None
    return status.st_dev, status.st_ino, status.st_size, *times


_MARKS, _KEY = "verified", "key"
"""The folder of the marks in the cache, and the key of their names in it."""


def _is_own_file(path: Path) -> bool:
    """Return whether there is a file, not a link, that this user or root made."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.geteuid(), 0)


def default_cache() -> Path:
    """Return ``granalign-fast`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    Raises:
        GranAlignError: the variable is relative; or it is not set, and the user has no home folder.
    """
    remedy = "set XDG_CACHE_HOME to a folder that can be written"
    try:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise GranAlignError(f"cache folder: got a user without a home folder; {remedy}") from None
    if not parent.is_absolute():
        raise GranAlignError(
            f"XDG_CACHE_HOME: got {str(parent)!r}, expected a path that begins with a slash"
        )
    return parent / "granalign-fast"


def make_private(folder: Path) -> Path:
    """Make a folder for this user alone, if there is none; return it.

    Raises:
        OSError: it cannot be made.
        GranAlignError: as for `check_private`.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    check_private(folder)
    return folder


def check_private(folder: Path) -> None:
    """Check that a folder of the cache is one that other users cannot write to.

    Raises:
        FileNotFoundError: there is none.
        GranAlignError: it is a link or a file, belongs to another user than this one and root, or
            others can write to it.
    """
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISDIR(status.st_mode):
        raise GranAlignError(
            f"{folder}: got a link or a file, expected a folder; delete it, or name another"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise GranAlignError(
            f"{folder}: got a folder of user {status.st_uid}, expected one of user {os.geteuid()}; "
            f"name another, for the cache folder by XDG_CACHE_HOME"
        )
    if status.st_mode & 0o022:
        raise GranAlignError(
            f"{folder}: got a folder that other users can write to, so that its content may be "
            f"theirs; delete it, or run chmod go-w on it if they are trusted"
        )
