"""The unfinished work of an indexing run on disk, from which the next run resumes.

All of it lies in the folder ``.indexing`` next to the finished indexes:

- ``job.json``: the request, and the videos that were pending when the run began;
- ``parts/<vid>/part-<first clip>.safetensors``: the rows of one video in one batch;
- ``draft/<vid>``: an index that is being written;
- ``old/<vid>``: the index that a new one is about to replace.

Every step ends with one rename, so each state that an interrupted run can leave has one meaning.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_INDEX_BYTES
from granalign_fast.parsing.tensors import read_tensors
from granalign_fast.reading import read_file

from .manifest import IndexManifest, write_durably
from .own_folders import check_own_folder
from .records import VideoSource
from .video_index import VideoIndex, write_index

_FORMAT = 2
"""Format version of job.json and of the parts; unfinished work of another version is discarded."""


@dataclass(frozen=True, slots=True)
class ClipRows:
    """The rows of consecutive clips of one video, beginning with clip `first`."""

    first: int
    times: npt.NDArray[np.float64]
    """`(rows,)`, of the first frame of each clip."""
    hashes: tuple[str, ...]
    captions: tuple[str, ...] | None
    """None for an index without captions."""
    embeddings: npt.NDArray[Any] | None
    """`(rows, dim)`, of the captions; None without captions."""
    frame_embeddings: npt.NDArray[Any] | None
    """`(rows, dim)`, of the frames; None without a frame encoder."""
    missing: npt.NDArray[np.bool_]
    """`(rows,)`: True if the file lacks a picture of the clip."""
    later: npt.NDArray[np.float64] | None = None
    """`(rows, frames - 1)`, the times of the frames of each clip after the first; None for one
    frame per clip."""

    @property
    def end(self) -> int:
        """The number of the last clip plus one."""
        return self.first + len(self.hashes)

    def to_safetensors(self) -> bytes:
        """Return the rows as safetensors; the strings are JSON in a tensor of bytes."""
        from safetensors.numpy import save

        texts = json.dumps({"hashes": self.hashes, "captions": self.captions}).encode()
        tensors: dict[str, npt.NDArray[Any]] = {
            "texts": np.frombuffer(texts, np.uint8),
            "times": np.ascontiguousarray(self.times),
            "missing": np.ascontiguousarray(self.missing),
        }
        if self.later is not None:
            tensors["later"] = np.ascontiguousarray(self.later)
        if self.embeddings is not None:
            tensors["embeddings"] = np.ascontiguousarray(self.embeddings)
        if self.frame_embeddings is not None:
            tensors["frames"] = np.ascontiguousarray(self.frame_embeddings)
        return save(tensors)

    @classmethod
    def from_safetensors(cls, first: int, content: bytes) -> ClipRows:
        """Read what `to_safetensors` returned; other content raises exceptions of any type."""
        tensors = read_tensors(content)
        texts = parse_json(tensors["texts"].tobytes())
        hashes, listed = tuple(texts["hashes"]), texts["captions"]
        captions = None if listed is None else tuple(listed)
        times, missing = tensors["times"], tensors["missing"]
        embeddings, frames = tensors.get("embeddings"), tensors.get("frames")
        later = tensors.get("later")
        columns = captions, times, later, embeddings, frames, missing
        if {len(part) for part in columns if part is not None} != {len(hashes)}:
            raise ValueError("the columns differ in length")
        if (captions is None) != (embeddings is None):
            raise ValueError("captions and their embeddings do not fit together")
        return cls(first, times, hashes, captions, embeddings, frames, missing, later)


class FolderBusyError(GranAlignError):
    """Another process is indexing into a folder."""


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Create the folder of indexes, and lock it against other indexing processes for the block.

    Raises:
        FolderBusyError: another process holds the lock.
        GranAlignError: the folder cannot be created or locked.
    """
    import fcntl

    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise GranAlignError(
            f"{out}: cannot be a folder of indexes ({error.strerror or error})"
        ) from None
    try:
        # Lock the folder itself: the system drops the lock when the process ends, however it
        # ends, and no lock file is left behind.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderBusyError(
                f"{out}: another process is indexing into it; wait until that one has ended, or "
                f"name another folder"
            ) from None
        except OSError as error:
            raise GranAlignError(
                f"{out}: cannot be locked ({error.strerror or error}); "
                f"name a folder on a local disk"
            ) from None
        yield
    finally:
        os.close(handle)


class WorkFolder:
    """The unfinished work in a folder of indexes; only the process that holds its lock uses it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._folder = out / ".indexing"
        self._job = self._folder / "job.json"

    def recover(self) -> None:
        """Undo the step during which the last run was interrupted."""
        if not self._check():
            return
        with self._explain_os_errors():
            for old in _children(self._folder / "old"):
                check_own_folder(old)
                # A hidden folder is no index: it would take the place of one of the library's own.
                if old.name.startswith(".") or os.path.lexists(self.out / old.name):
                    _remove_tree(old)  # the new index is complete and in its final folder
                else:
                    old.rename(self.out / old.name)
            _remove_tree(self._folder / "draft")

    def read_job(self, request: dict[str, Any]) -> list[str] | None:
        """Return the video ids of the unfinished job, or None if its request was another one."""
        try:
            job = parse_json(read_file(self._job, MOST_INDEX_BYTES, inside=self.out))
            if job["format"] != _FORMAT or job["request"] != request:
                return None
            return [str(vid) for vid in job["todo"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def start_job(self, request: dict[str, Any], pending: Sequence[str]) -> None:
        """Discard earlier unfinished work, and record the request and the pending videos."""
        self.discard()
        with self._explain_os_errors():
            self._folder.mkdir()
        job = {"format": _FORMAT, "request": request, "todo": list(pending)}
        write_durably(self._job, (json.dumps(job, indent=2) + "\n").encode())

    def discard(self) -> None:
        """Remove all unfinished work."""
        self._check()
        with self._explain_os_errors():
            self._job.unlink(missing_ok=True)  # first: no run uses parts without a job
            _remove_tree(self._folder)

    def write_rows(self, vid: str, rows: ClipRows) -> None:
        """Write rows of a video to disk."""
        folder = self._parts_folder(vid)
        self._check()
        check_own_folder(folder)
        with self._explain_os_errors():
            folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / f"part-{rows.first:08d}.safetensors", rows.to_safetensors())

    def read_rows(self, vid: str) -> list[ClipRows]:
        """Read the stored rows of a video, from clip 0 up to the first gap."""
        parts: list[ClipRows] = []
        while True:
            first = parts[-1].end if parts else 0
            path = self._parts_folder(vid) / f"part-{first:08d}.safetensors"
            try:
                content = read_file(path, MOST_INDEX_BYTES, inside=self.out)
                rows = ClipRows.from_safetensors(first, content)
            except Exception:  # missing or damaged: these clips are described again
                return parts
            if not rows.hashes:
                return parts
            parts.append(rows)

    def forget_rows(self, vid: str) -> None:
        """Delete the rows of a video."""
        if self._check():
            with self._explain_os_errors():
                _remove_tree(self._parts_folder(vid))

    def publish(self, index: VideoIndex) -> None:
        """Write a finished index, move it to its final folder, and remove the video's rows.

        An index that is already in the final folder is replaced.
        """
        vid = index.video.vid
        draft, old, final = self._folder / "draft" / vid, self._folder / "old" / vid, self.out / vid
        self._check()
        check_own_folder(final)
        with self._explain_os_errors():
            draft.mkdir(parents=True)
            old.parent.mkdir(exist_ok=True)
        write_index(index, draft)
        with self._explain_os_errors():
            with suppress(FileNotFoundError):  # a new one, or one that was removed in this instant
                final.rename(old)
            # `recover` restores the old index if the run is interrupted between the two renames.
            draft.rename(final)
            _remove_tree(old)
            _remove_tree(self._parts_folder(vid))

    def update_source(self, vid: str, source: VideoSource) -> None:
        """Record the new path of a video file that was moved, in the manifest of its index."""
        folder = self.out / vid
        check_own_folder(folder)
        replace(IndexManifest.read(folder), source=source).write(folder)

    def _check(self) -> bool:
        """Return whether there is unfinished work, after a look at its folders.

        Raises:
            GranAlignError: as for `check_own_folder`.
        """
        if not check_own_folder(self._folder):
            return False
        for name in ("parts", "draft", "old"):
            check_own_folder(self._folder / name)
        return True

    def _parts_folder(self, vid: str) -> Path:
        return self._folder / "parts" / vid

    @contextmanager
    def _explain_os_errors(self) -> Iterator[None]:
        """Turn an OSError of the block into a GranAlignError that names the file."""
        try:
            yield
        except OSError as error:
            raise GranAlignError(
                f"{error.filename or self._folder}: cannot be changed "
                f"({error.strerror or error}); free disk space, or correct the permissions"
            ) from None


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove_tree(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
