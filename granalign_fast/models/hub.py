"""Models on the Hugging Face hub: look up a commit, fetch its files, and verify their hashes.

`huggingface_hub` makes the requests, keeps the files in its own cache, and continues a download
whose connection was cut. It compares sizes but no hashes, so `fetch` does.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.files import known_sha256, read_json
from granalign_fast.parsing.limits import MOST_JSON_BYTES
from granalign_fast.reading import read_file

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
"""Files to fetch: weights in a format that cannot hold code, settings, templates and vocabularies.
They may lie in folders of the model, such as ``1_Pooling``."""

COMMIT = re.compile(r"[0-9a-f]{40}")
"""The full form of a commit, which alone cannot come to mean other weights."""

_WORKERS = 2
"""Files that are fetched at once. What a killed process has of an unfinished file is fetched again,
so there should be few; and one connection does not fill a fast line."""
_ATTEMPTS = 5
"""How often a download is begun whose connection is cut."""
_SECONDS = 30.0
"""How long the hub may take to answer a look-up."""


class HubError(GranAlignError):
    """A model cannot be had from the hub.

    Attributes:
        missing: True if the hub did not answer, so that the files may be put in place by hand.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model: its path, its bytes, and its hash as the hub states it.

    `sha256` is of large files, `blob` of all others: the SHA-1 that git gives the file.
    """

    path: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model at one commit, with the files that match `PATTERNS`."""

    name: str
    commit: str
    files: tuple[HubFile, ...]

    def missing_bytes(self) -> int:
        """Return the bytes that are not in huggingface_hub's cache yet."""
        from huggingface_hub import try_to_load_from_cache

        return sum(
            file.size
            for file in self.files
            if not isinstance(
                try_to_load_from_cache(self.name, file.path, revision=self.commit), str
            )
        )


def look_up(name: str, revision: str | None = None) -> HubModel:
    """Ask the hub for a model's commit and files.

    Args:
        name: ``org/name``.
        revision: a commit, a branch or a tag; None for the main branch.

    Raises:
        HubError: the hub does not answer, does not have the model, or wants a login.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = _library(name)
    with _translated(name, revision):
        from huggingface_hub.utils import filter_repo_objects

        info = hub.HfApi().model_info(
            name, revision=revision, files_metadata=True, timeout=_SECONDS
        )
        if not COMMIT.fullmatch(str(info.sha)):
            raise HubError(f"{name}: the hub gave the commit {info.sha!r}, expected 40 hex digits")
        wanted = filter_repo_objects(
            info.siblings or [], allow_patterns=list(PATTERNS), key=lambda file: file.rfilename
        )
        files = [
            HubFile(
                file.rfilename,
                int(file.size or 0),
                None if file.lfs is None else str(file.lfs.sha256),
                None if file.lfs is not None else file.blob_id,
            )
            for file in wanted
        ]
    return HubModel(name, str(info.sha), tuple(files))


def fetch(name: str, revision: str | None = None) -> Path:
    """Fetch a model's files into huggingface_hub's cache, verify them, and return their folder.

    The folder's name is the commit. A model that is in the cache as a whole needs no network, if
    its commit is given.

    Raises:
        HubError: as for `look_up`; or a file has another hash than the hub states, which is then
            deleted, so that the next call fetches it again.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = _library(name)
    try:
        model = look_up(name, revision)
    except HubError as error:
        cached = cached_folder(name, revision) if error.missing else None
        if cached is None:
            raise
        return cached
    shown = nullcontext() if sys.stderr.isatty() else without_bars()
    with _translated(name, model.commit), shown:
        folder = _download(hub, name, model.commit)
    for file in model.files:
        _verify(folder / file.path, file, f"{name}@{model.commit}")
    return folder


def _download(hub: Any, name: str, commit: str) -> Path:
    """Fetch what the cache lacks of a model, and return its folder."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            return Path(
                hub.snapshot_download(
                    name, revision=commit, allow_patterns=list(PATTERNS), max_workers=_WORKERS
                )
            )
        except Exception as error:
            # huggingface_hub continues a download whose connection was cut, from version 1 on by
            # itself, before that when it is called again.
            if type(error).__name__ != "ChunkedEncodingError" or not left:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextmanager
def without_bars() -> Iterator[None]:
    """Let huggingface_hub draw no progress bars inside the block."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # A choice that the user has made in the environment stays.
    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def cached_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of a model that is in the cache as a whole; None without its commit."""
    if revision is None or not COMMIT.fullmatch(revision):
        return None
    hub = _library(name)
    try:
        folder = Path(
            hub.snapshot_download(
                name, revision=revision, local_files_only=True, allow_patterns=list(PATTERNS)
            )
        )
    except Exception:  # nothing of it is there, or not all
        return None
    return folder if _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    """Return whether all weights are there: huggingface_hub below 1.0 gives partial folders too."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / name).is_file() for name in set(read_json(index)["weight_map"].values()))


def cache_folder() -> Path:
    """Return the folder in which huggingface_hub keeps models."""
    return Path(_library("the cache of the hub").constants.HF_HUB_CACHE)


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError(f"the hub id {name}", "hub") from None
    return huggingface_hub


@contextmanager
def _translated(name: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub and of its HTTP library into one line; its own warnings are left out.

    They repeat what the error says, over several lines.
    """
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import logging

    label = name if revision is None else f"{name}@{revision}"
    page = f"{constants.ENDPOINT}/{name}"
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except GranAlignError:
        raise
    except errors.GatedRepoError:
        raise HubError(
            f"{label}: is gated; accept its licence at {page}, then run hf auth login with a token "
            f"of that account, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{label}: the hub has no such revision; see {page}/commits") from None
    except errors.RepositoryNotFoundError:
        # The hub answers so for a private model as well.
        raise HubError(
            f"{label}: the hub has no such model, or it is private; check the name, or run "
            f"hf auth login"
        ) from None
    except errors.HFValidationError as error:
        raise HubError(f"{label}: no name of a model ({one_line(error)})") from None
    except Exception as error:  # of the hub, or of its HTTP library
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 429:
            raise HubError(
                f"{label}: the hub refuses further requests for now (HTTP 429); wait some minutes "
                f"and run the command again, or run hf auth login for a higher limit"
            ) from None
        if status in (401, 403):
            raise HubError(
                f"{label}: the hub refuses access (HTTP {status}); run hf auth login with a token "
                f"that may read it"
            ) from None
        reason = one_line(error) if status is None else f"the hub answers HTTP {status}"
        raise HubError(
            f"{label}: cannot be fetched ({reason}); check the network and run the "
            f"command again, or put its {', '.join(PATTERNS)} into a folder and name that",
            missing=True,
        ) from None
    finally:
        logging.set_verbosity(level)


def _verify(path: Path, file: HubFile, label: str) -> None:
    """Compare a file with what the hub states; delete it if it differs."""
    expected = file.sha256 or file.blob
    if expected is None:
        return
    got = known_sha256(path, expected) if file.sha256 else _git_sha1(path)
    if got == expected:
        return
    # The file in the cache's snapshot is a link.
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise HubError(
        f"{label}: {file.path} arrived damaged, got hash {got}, expected {expected}; it was "
        f"deleted, so run the command again"
    )


def _git_sha1(path: Path) -> str:
    """Return the hash that git gives a small file."""
    content = read_file(path, MOST_JSON_BYTES)
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
