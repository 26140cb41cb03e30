"""What an unfinished indexing run leaves on disk, so that the next one goes on from there.

All of it is in the folder ``.indexing`` beside the finished indexes:

- ``job.json``: what was asked for, and which videos were still to do;
- ``parts/<vid>/part-<first clip>.safetensors``: the rows of one video in one batch;
- ``draft/<vid>``: an index that is being put together;
- ``old/<vid>``: the index that a new one is about to replace.

Every step is one rename, and whatever is there when a run begins has one meaning only.
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

from .manifest import IndexManifest, put
from .records import VideoSource
from .video_index import VideoIndex, write

_FORMAT = 1
"""Of job.json and the parts: work of another format is done again."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of some clips of a video, in a stretch that begins at clip `first`."""

    first: int
    times: npt.NDArray[np.float64]
    hashes: tuple[str, ...]
    captions: tuple[str, ...]
    embeddings: npt.NDArray[Any]
    """`(rows, dim)`, of the captions."""
    frames: npt.NDArray[Any] | None
    """`(rows, dim)`, of the frames; None without CLIP."""

    @property
    def end(self) -> int:
        """The clip after the last."""
        return self.first + len(self.hashes)

    def pack(self) -> bytes:
        """As safetensors; the texts are JSON in a tensor of bytes."""
        from safetensors.numpy import save

        texts = json.dumps({"hashes": self.hashes, "captions": self.captions}).encode()
        tensors: dict[str, npt.NDArray[Any]] = {
            "texts": np.frombuffer(texts, np.uint8),
            "times": np.ascontiguousarray(self.times),
            "embeddings": np.ascontiguousarray(self.embeddings),
        }
        if self.frames is not None:
            tensors["frames"] = np.ascontiguousarray(self.frames)
        return save(tensors)

    @classmethod
    def unpack(cls, first: int, content: bytes) -> Rows:
        """The reverse of `pack`; raises whatever comes of other bytes."""
        from safetensors.numpy import load

        tensors = load(content)
        texts = json.loads(tensors["texts"].tobytes())
        hashes, captions = tuple(texts["hashes"]), tuple(texts["captions"])
        times, embeddings, frames = tensors["times"], tensors["embeddings"], tensors.get("frames")
        if {len(part) for part in (captions, times, embeddings)} != {len(hashes)}:
            raise ValueError("the rows do not fit together")
        return cls(first, times, hashes, captions, embeddings, frames)


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Make the folder of indexes, and keep every other process from indexing into it.

    Raises:
        GranAlignError: the folder cannot be made, or another process is at work.
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
        # The lock is the folder's own: it goes with the process, however that ends, and leaves
        # no file behind.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GranAlignError(
                f"{out}: another process is indexing into it; wait for that, or name another folder"
            ) from None
        except OSError as error:
            raise GranAlignError(
                f"{out}: cannot be locked ({error.strerror or error}); name one of a local disk"
            ) from None
        yield
    finally:
        os.close(handle)


class WorkFolder:
    """The unfinished work in a folder of indexes; one process at a time may have it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._folder = out / ".indexing"
        self._job = self._folder / "job.json"

    def recover(self) -> None:
        """Undo the step at which the last run was ended."""
        with self._changing():
            # Both may be there when the new index is in place: then the old one is no more needed.
            for old in _children(self._folder / "old"):
                if (self.out / old.name).exists():
                    _remove(old)
                else:
                    old.rename(self.out / old.name)
            _remove(self._folder / "draft")

    def todo(self, request: dict[str, Any]) -> list[str] | None:
        """The videos of the unfinished run, if it was asked for just this; otherwise None."""
        try:
            job = json.loads(self._job.read_bytes())
            if job["format"] != _FORMAT or job["request"] != request:
                return None
            return [str(vid) for vid in job["todo"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def begin(self, request: dict[str, Any], todo: Sequence[str]) -> None:
        """Discard what an earlier run left, and write down what this one has to do."""
        self.discard()
        with self._changing():
            self._folder.mkdir()
        job = {"format": _FORMAT, "request": request, "todo": list(todo)}
        put(self._job, (json.dumps(job, indent=2) + "\n").encode())

    def discard(self) -> None:
        """Remove all unfinished work."""
        with self._changing():
            self._job.unlink(missing_ok=True)  # first: parts without their job mean nothing
            _remove(self._folder)

    def add(self, vid: str, rows: Rows) -> None:
        """Keep rows of a video."""
        folder = self._parts(vid)
        with self._changing():
            folder.mkdir(parents=True, exist_ok=True)
        put(folder / f"part-{rows.first:08d}.safetensors", rows.pack())

    def rows(self, vid: str) -> list[Rows]:
        """The rows of a video that are kept, from clip 0 on without a gap."""
        found: list[Rows] = []
        while True:
            first = found[-1].end if found else 0
            path = self._parts(vid) / f"part-{first:08d}.safetensors"
            try:
                rows = Rows.unpack(first, path.read_bytes())
            except Exception:  # not there yet, or damaged: it is made again
                return found
            if not rows.hashes:
                return found
            found.append(rows)

    def publish(self, index: VideoIndex) -> None:
        """Put a finished index in its place, instead of an earlier one; its rows may go."""
        vid = index.video.vid
        draft, old, final = self._folder / "draft" / vid, self._folder / "old" / vid, self.out / vid
        with self._changing():
            draft.mkdir(parents=True)
            old.parent.mkdir(exist_ok=True)
        write(index, draft)
        with self._changing():
            if final.exists():
                final.rename(old)
            # A run that ends here is put right by `recover`.
            draft.rename(final)
            _remove(old)
            _remove(self._parts(vid))

    def relocate(self, vid: str, source: VideoSource) -> None:
        """Correct where a finished index says that its video is."""
        folder = self.out / vid
        replace(IndexManifest.read(folder), source=source).write(folder)

    def _parts(self, vid: str) -> Path:
        return self._folder / "parts" / vid

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise GranAlignError(
                f"{error.filename or self._folder}: cannot be changed "
                f"({error.strerror or error}); make room, or allow it"
            ) from None


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
