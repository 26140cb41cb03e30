"""The user's cache folder: whether it can be used, what lies in it, and its bound.

Each kind of content can be made again, so everything here may be deleted at any time:

- ``embeddings-<hash>.safetensors``: embeddings of a list of texts;
- ``indexes/<hash>``: indexes that ``granalign search VIDEO`` made;
- ``libraries/<hash>``: copies of libraries in object stores: the catalogue, and indexes that were
  searched, which are bounded as those above are;
- ``prefixes``: what the vision-language model computed of frames; bounded by `DiskTier`;
- ``verified``: marks of large model files whose hash was found right;
- ``tensorrt``: engines and timings of TensorRT;
- other folders with a manifest: models that were exported when they were first used.

Embeddings and indexes together are bounded, see `evict`.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.files import check_private, default_cache, make_private

from .engine_stamp import ENGINE_FOLDER

_log = logging.getLogger(__name__)

LIMIT_VARIABLE = "GRANALIGN_CACHE_GIB"
"""The environment variable of the bound, in GiB."""
_DEFAULT_GIB = 2.0
"""A benchmark of 1,500 videos keeps 174 MB of embeddings: ten such runs fit."""
_IN_USE = 3600
"""Seconds since its last change within which an index may still be read or written."""

LIBRARIES = "libraries"
"""The folder of copies of libraries in object stores."""
KINDS = ("embeddings", "indexes", LIBRARIES, "prefixes", "exports", "engines", "verified")
EVICTABLE = ("embeddings", "indexes")
"""Kinds that are made again in seconds or by the search that needs them."""
_FOLDERS = {
    "indexes": "indexes",
    LIBRARIES: LIBRARIES,
    "prefixes": "prefixes",
    "verified": "verified",
    ENGINE_FOLDER: "engines",
}
_warned: set[str] = set()
"""Reasons that a warning was given for: one warning a process is enough."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder of the cache that is removed as a whole.

    Attributes:
        path: where it is.
        kind: one of `KINDS`.
        bytes: of all its files.
        files: their number.
        used: when it was last used or changed, in seconds since the epoch.
    """

    path: Path
    kind: str
    bytes: int
    files: int
    used: float


def check_cache() -> Path:
    """Return the path of the cache folder, which need not exist yet.

    Raises:
        GranAlignError: the folder cannot be made or written, belongs to another user, or others
            can write to it.
    """
    remedy = "set XDG_CACHE_HOME to a folder that can be written"
    folder = default_cache()
    # Unlike Path.exists, os.path.exists is False for what the user may not see.
    lineage = (folder, *folder.absolute().parents)
    existing = next(path for path in lineage if os.path.exists(path))  # noqa: PTH110
    if not existing.is_dir():
        raise GranAlignError(f"cache folder {folder}: {existing} is not a folder; {remedy}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise GranAlignError(f"cache folder {folder}: {existing} cannot be written; {remedy}")
    if existing == folder:
        check_private(folder)
    return folder


def usable_cache(name: str | None = None) -> Path | None:
    """Return the cache folder or a folder in it, for this user alone, made if it does not exist.

    Args:
        name: of the folder in the cache folder; None for the cache folder itself.

    Returns:
        None if the folder cannot be made or written, or is not safe. The first None of a process
        logs a warning. The caller then works without a cache.
    """
    try:
        folder = check_cache()
        try:
            make_private(folder)
            if name is not None:
                folder = make_private(folder / name)
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise GranAlignError(f"cache folder {folder}: cannot be written")
        except OSError as error:
            reason = error.strerror or error
            raise GranAlignError(f"cache folder {folder}: cannot be made ({reason})") from None
    except GranAlignError as error:
        reason = str(error)  # not the error: a handler that keeps it would keep its frames alive
        if reason not in _warned:
            _warned.add(reason)
            _log.warning("%s; working without a cache", reason)
        return None
    return folder


def readable_cache() -> Path | None:
    """Return the cache folder if it is there and safe to read; None if not.

    The cache of a container's image belongs to root and cannot be written.
    """
    try:
        folder = default_cache()
        check_private(folder)
    except (OSError, GranAlignError):
        return None
    return folder


def cache_limit() -> int:
    """Return the bound of embeddings and indexes in bytes.

    Raises:
        GranAlignError: the environment variable is not a number of GiB.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        gib = float(text) if text else _DEFAULT_GIB
    except ValueError:
        gib = -1.0
    if not math.isfinite(gib) or gib < 0:
        raise GranAlignError(f"{LIMIT_VARIABLE}: got {text!r}, expected GiB, 0 or more")
    return int(gib * (1 << 30))


def entries(folder: Path) -> list[Entry]:
    """Return the entries of a cache folder; files of no known kind are left out."""
    known = []
    for path in _children(folder):
        kind = _FOLDERS.get(path.name)
        if kind is None:
            kind = _kind(path)
            if kind is not None:
                known.append(_entry(path, kind))
        elif path.is_dir() and not path.is_symlink():
            known += [_entry(child, kind) for child in _children(path)]
        else:  # nothing that this package makes: only it is removed, and not what it leads to
            known.append(_entry(path, kind))
    return known


def remove(entry: Entry) -> bool:
    """Delete an entry; return whether it is gone. Links are not followed."""
    try:
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    except FileNotFoundError:  # another process was quicker
        return True
    except OSError as error:
        _log.warning("%s: cannot be deleted (%s)", entry.path, error.strerror or error)
        return False
    return True


def evict(folder: Path) -> None:
    """Delete the least recently used embeddings and indexes until the rest is within the bound.

    Indexes that changed within the last hour stay: another process may be working on them.

    Raises:
        GranAlignError: as for `cache_limit`.
    """
    limit, now = cache_limit(), time.time()
    evictable = [entry for entry in entries(folder) if entry.kind in EVICTABLE]
    total = sum(entry.bytes for entry in evictable)
    for entry in sorted(evictable, key=lambda entry: entry.used):
        if total <= limit:
            break
        if entry.kind == "indexes" and now - entry.used < _IN_USE:
            continue
        if remove(entry):
            total -= entry.bytes
            _log.info("removed %s from the cache, over its bound of %d bytes", entry.path, limit)


def mark_used(path: Path) -> None:
    """Note that a file or folder of the cache is used now, for the order of `evict`."""
    with suppress(OSError):
        os.utime(path)


def _kind(path: Path) -> str | None:
    # A file or folder that is being written has a dot before its name, and a random suffix.
    if path.name.lstrip(".").startswith("embeddings-") and ".safetensors" in path.name:
        return "embeddings"
    is_export = path.is_dir() and (path.name.startswith(".") or (path / "manifest.json").is_file())
    return "exports" if is_export else None


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _entry(path: Path, kind: str) -> Entry:
    size, files, used = 0, 0, 0.0
    for one in _tree(path):
        with suppress(OSError):
            status = one.lstat()
            used = max(used, status.st_mtime)
            if one.is_symlink() or not one.is_dir():
                size, files = size + status.st_size, files + 1
    return Entry(path, kind, size, files, used)


def _tree(path: Path) -> Iterator[Path]:
    """Yield a file; or a folder and all that is below it, without following links."""
    yield path
    if not path.is_symlink():
        for top, folders, files in os.walk(path):
            yield from (Path(top) / name for name in (*folders, *files))
