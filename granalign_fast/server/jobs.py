"""Jobs: videos that are to be indexed, kept in files, so that no end of the process loses one."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import escape_undecodable, remove_abandoned, replacing
from granalign_fast.index.manifest import write_durably
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.reading import read_file

_log = logging.getLogger(__name__)

FOLDER, UPLOADS = ".jobs", ".uploads"
RECEIVING, QUEUED, INDEXING = "receiving", "queued", "indexing"
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
STATES = (RECEIVING, QUEUED, INDEXING, DONE, FAILED, CANCELLED)
ENDED = (DONE, FAILED, CANCELLED)
_KEPT = 1000
"""Jobs that have ended whose files stay."""
_MOST_BYTES = 1 << 20
"""Bytes of the file of a job: its tags are the largest part."""
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Job:
    """A video that is to be indexed.

    Attributes:
        id: of the job.
        name: of the video file.
        path: of the video file; None until an upload is complete.
        upload: whether the service received the file, and owns it.
        tags: that the video gets.
        state: one of `STATES`.
        vid: id of the video, once it is indexed.
        done: clips that are indexed, or bytes that were received.
        total: clips that are to be, or bytes; None if unknown.
        error: why it failed.
        attempts: how often indexing has begun.
        created: when, in ISO 8601.
        changed: when its state changed last.
    """

    name: str
    upload: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    path: Path | None = None
    tags: tuple[str, ...] = ()
    state: str = QUEUED
    vid: str | None = None
    done: int = 0
    total: int | None = None
    error: str | None = None
    attempts: int = 0
    created: str = field(default_factory=lambda: _now())
    changed: str = field(default_factory=lambda: _now())

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ENDED

    def shown(self) -> dict[str, Any]:
        """Return the job as a client sees it: without paths of this machine."""
        return {
            "id": self.id,
            "state": self.state,
            "name": self.name,
            "vid": self.vid,
            "done": self.done,
            "total": self.total,
            "unit": "byte" if self.state == RECEIVING else "clip",
            "error": self.error,
            "tags": list(self.tags),
            "created": self.created,
            "changed": self.changed,
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Jobs:
    """The jobs of a library, each a file in its folder ``.jobs``.

    Any process of the service reads and adds jobs; the one that holds `lead` runs them.

    Args:
        library: the folder of the library.
    """

    def __init__(self, library: Path) -> None:
        self.library = library
        self.folder = library / FOLDER
        self.uploads = library / UPLOADS
        self._known: dict[str, tuple[tuple[int, ...], Job | None]] = {}
        """The job of each file that was read, and what changes when the file is replaced."""

    def create_folders(self) -> None:
        """Create the folders of jobs and uploads, for this user alone.

        Raises:
            GranAlignError: the library cannot be written.
        """
        for folder in (self.folder, self.uploads):
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                if folder.is_symlink():
                    raise GranAlignError(f"{folder}: got a link, expected a folder; remove it")
            except OSError as error:
                raise GranAlignError(
                    f"{folder}: cannot be created ({error.strerror or error}); correct the "
                    f"permissions, or serve with --read-only"
                ) from None

    @contextmanager
    def lead(self) -> Iterator[bool]:
        """Try to become the process that runs jobs; yields whether this one is.

        The system ends the lock when the process ends, however it ends.
        """
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def get(self, id: str) -> Job | None:
        """Return a job; None if there is none, or its file is damaged."""
        if not _ID.fullmatch(id):
            return None
        return self._read(self.folder / f"{id}.json")

    def all(self) -> list[Job]:
        """Return all jobs, the oldest first."""
        before, known = self._known, {}
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.name.endswith(".json"):
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    stamp = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
                    held = before.get(entry.name)
                    if held is None or held[0] != stamp:
                        held = stamp, self._read(Path(entry.path))
                    known[entry.name] = held
        self._known = known
        jobs = (job for _, job in known.values() if job)
        return sorted(jobs, key=lambda job: (job.created, job.id))

    def _read(self, path: Path) -> Job | None:
        try:
            record = parse_json(read_file(path, _MOST_BYTES, inside=self.folder))
            where = record.pop("path")
            job = Job(
                **record
                | {"path": None if where is None else Path(os.fsdecode(bytes.fromhex(where)))}
                | {"tags": tuple(record["tags"])}
            )
        except (GranAlignError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return job if job.state in STATES and job.id == path.stem else None

    def write(self, job: Job, *, durably: bool = True) -> Job:
        """Write a job.

        Args:
            job: as it is now.
            durably: so that it survives a loss of power; progress need not.

        Raises:
            GranAlignError: the library cannot be written.
        """
        # As hex, because a path can hold bytes that are not UTF-8.
        path = None if job.path is None else os.fsencode(job.path).hex()
        content = json.dumps(asdict(job) | {"path": path}).encode()
        target = self.folder / f"{job.id}.json"
        if durably:
            write_durably(target, content)
        else:
            with replacing(target) as sink:
                sink.write(content)
        return job

    def change(self, job: Job, state: str, **changes: Any) -> Job:
        """Write a job in a new state, and return it."""
        return self.write(replace(job, state=state, changed=_now(), **changes))

    def ask_to_cancel(self, job: Job) -> None:
        """Leave a mark that a job is to end, which the process that runs it sees.

        Raises:
            GranAlignError: the library cannot be written.
        """
        write_durably(self._mark(job), b"")

    def is_to_cancel(self, job: Job) -> bool:
        """Return whether a job is to end."""
        return self._mark(job).exists()

    def _mark(self, job: Job) -> Path:
        return self.folder / f"{job.id}.cancel"

    def forget(self, job: Job) -> None:
        """Delete the files of a job."""
        (self.folder / f"{job.id}.json").unlink(missing_ok=True)
        self._mark(job).unlink(missing_ok=True)

    def upload_folder(self, id: str) -> Path:
        """Return the folder that holds an upload alone."""
        return self.uploads / id

    def uploaded(self, path: Path) -> Path | None:
        """Return the folder of an upload that a path lies in; None for any other file."""
        folder = path.parent
        inside = folder.parent == self.uploads.absolute() and _ID.fullmatch(folder.name)
        return folder if inside and not folder.is_symlink() else None

    def recover(self, most_attempts: int) -> None:
        """Put jobs right that the end of a process has left, and clean up; for the leader.

        An upload that was not complete is failed by name. A job that was being indexed is queued
        again, unless it has ended the service too often. Drafts of uploads are deleted.
        """
        with suppress(OSError):
            remove_abandoned(self.uploads)
        for job in self.all():
            if job.state == RECEIVING and not self._is_being_received(job):
                self.change(
                    job,
                    FAILED,
                    error=f"{job.name}: the service ended while it was uploaded; upload it again",
                )
            elif job.state == INDEXING and job.attempts >= most_attempts:
                self.change(
                    job,
                    FAILED,
                    error=f"{job.name}: the service ended {job.attempts} times while it was "
                    f"indexed; convert it to MP4, or leave it out",
                )
            elif job.state == INDEXING:
                self.change(job, QUEUED)

    def forget_old(self, kept: int = _KEPT) -> None:
        """Delete the files of jobs that have ended, but those of the last ones."""
        ended = [job for job in self.all() if job.has_ended]
        for job in ended[: max(0, len(ended) - kept)]:
            self.forget(job)

    def _is_being_received(self, job: Job) -> bool:
        """Return whether another process of the service is receiving an upload."""
        return any(self.uploads.glob(f".{job.id}.*.draft"))


def file_name(name: str) -> str:
    """Return a name that a client gave as one for a file: without folders and control characters.

    >>> file_name("../../etc/pass\\nwd.mp4"), file_name("C:\\\\videos\\\\a.mp4"), file_name("..")
    ('passwd.mp4', 'a.mp4', 'video')
    """
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(c for c in escape_undecodable(last) if c.isprintable()).strip().lstrip(".")
    stem, dot, suffix = kept.rpartition(".")
    if not dot:
        stem, suffix = kept, ""
    # A folder of the library can have 255 bytes; the hash of a second file of the name follows.
    stem = stem.encode()[:200].decode(errors="ignore").strip()
    suffix = suffix.encode()[:16].decode(errors="ignore")
    return (stem or "video") + dot + suffix
