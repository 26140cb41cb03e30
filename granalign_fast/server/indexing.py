"""The thread that runs jobs: one video after another, each in a worker process with limits."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import read_manifest_source
from granalign_fast.index.naming import read_library
from granalign_fast.index.work_folder import FolderBusyError
from granalign_fast.library.upkeep import tag_videos
from granalign_fast.runtime.workers import Limits, WorkerError, Workers

from .engine import Engine
from .jobs import CANCELLED, DONE, FAILED, INDEXING, QUEUED, Job, Jobs

if TYPE_CHECKING:
    from granalign_fast.pipeline import ModelFolder

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
"""How often the indexing of a video may end the service before it is given up."""
_LOOK_SECONDS = 0.5
"""How often the thread looks for jobs that another process has added."""
_BUSY_SECONDS = 2.0
"""How often it looks whether another process has ended to index into the library."""
_WRITE_SECONDS = 0.5
"""How often progress is written."""
_SPARE_BYTES = 4 << 30
"""Memory of a worker beside its models."""


class Indexer:
    """Runs the jobs of a library.

    Args:
        engine: is refreshed when a video was indexed.
        jobs: of the library.
    """

    def __init__(self, engine: Engine, jobs: Jobs) -> None:
        self._engine, self._jobs = engine, jobs
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._cancel = threading.Event()
        self._current: str | None = None
        self._thread = threading.Thread(target=self._run, name="indexing", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and the job in work, which the next start of the service resumes."""
        self._ended.set()
        self._cancel.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Look for jobs at once."""
        self._wake.set()

    def cancel(self, job: Job) -> None:
        """Ask that a job ends: it is not begun, or ended where it is.

        Raises:
            GranAlignError: the library cannot be written.
        """
        self._jobs.ask_to_cancel(job)
        if self._current == job.id:
            self._cancel.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._jobs.lead() as leads:
                if leads:
                    self._jobs.recover(_ATTEMPTS)
                    self._work()
            self._ended.wait(_BUSY_SECONDS)

    def _work(self) -> None:
        """Run jobs until the service ends."""
        limits = Limits(
            seconds=self._engine.settings.limits.job_seconds,
            memory=worker_memory(self._engine),
            file_bytes=None,
        )
        workers: Workers | None = None
        try:
            while not self._ended.is_set():
                self._jobs.forget_old()
                job = self._next_job()
                if job is None or _is_busy(self._engine.folder):
                    self._wake.wait(_LOOK_SECONDS if job is None else _BUSY_SECONDS)
                    self._wake.clear()
                    continue
                workers = workers or Workers(1, limits)
                self._run_job(job, workers)
        except GranAlignError as error:
            _log.error("jobs cannot be run: %s", error)
        finally:
            if workers is not None:
                workers.close()

    def _next_job(self) -> Job | None:
        """Return the oldest job that waits; those that were cancelled meanwhile are ended."""
        waiting = [job for job in self._jobs.all() if job.state == QUEUED]
        cancelled = [job for job in waiting if self._jobs.is_to_cancel(job)]
        for job in cancelled:
            self._end_cancelled(job)
        return next((job for job in waiting if job not in cancelled), None)

    def _run_job(self, job: Job, workers: Workers) -> None:
        """Index the video of a job; whatever happens to it is written into the job."""
        path = job.path
        assert path is not None  # its upload is complete
        self._cancel.clear()
        if self._ended.is_set():  # between the last look and the line before
            self._cancel.set()
        self._current = job.id
        job = self._jobs.change(job, INDEXING, attempts=job.attempts + 1)
        progress = _Progress(self._jobs, job, self._cancel)
        settings = self._engine.settings
        try:
            if path.resolve() != path:
                raise GranAlignError(f"{path}: got a link, expected the file itself")
            vid = workers.run(
                index_video,
                str(settings.library),
                None if settings.models is None else str(settings.models),
                None if settings.remote is None else dict(settings.remote),
                settings.device,
                settings.prefix_gib,
                (settings.clip_seconds, settings.frames_per_clip),
                str(path),
                progress=progress,
                cancel=self._cancel,
            )
            if vid is None:  # another process has begun to index meanwhile
                self._jobs.change(job, QUEUED, attempts=job.attempts - 1)
                return
            if job.tags:
                tag_videos(self._engine.folder, [vid], job.tags)
            self._keep_one_file(job, vid)
            self._complete(progress.job, vid)
        except WorkerError as error:
            if error.reason != "cancelled":
                self._fail(job, f"{job.name}: {error}")
            elif self._ended.is_set():
                self._jobs.change(job, QUEUED, attempts=job.attempts - 1)
            else:
                self._end_cancelled(job)
        except GranAlignError as error:
            self._fail(job, self._shown(job, error))
        finally:
            self._current = None

    def _complete(self, job: Job, vid: str) -> None:
        """Serve a video that was indexed."""
        self._engine.refresh()
        video = self._engine.video(vid)
        clips = job.total if video is None else video.clips  # None: it was removed in this instant
        self._jobs.change(job, DONE, vid=vid, done=clips or 0, total=clips)

    def _end_cancelled(self, job: Job) -> None:
        if (vid := self._index_of(job)) is not None:  # it was complete when its process was ended
            self._complete(job, vid)
            return
        self._jobs.change(job, CANCELLED)
        self._delete_upload(job)

    def _fail(self, job: Job, error: str) -> None:
        _log.warning("job %s failed: %s", job.id, error)
        self._jobs.change(job, FAILED, error=error)
        if self._index_of(job) is None:
            self._delete_upload(job)

    def _index_of(self, job: Job) -> str | None:
        """Return the id of the index that has the file of a job; None if there is none."""
        if not job.attempts:
            return None
        library = read_library(self._engine.folder)
        return next((vid for vid, source in library.items() if source.path == job.path), None)

    def _shown(self, job: Job, error: GranAlignError) -> str:
        """Return an error without the paths of this machine."""
        return self._engine.shown(str(error).replace(str(job.path), job.name))

    def _keep_one_file(self, job: Job, vid: str) -> None:
        """Delete an upload whose content the library had already under the same id."""
        source = read_manifest_source(self._engine.folder / vid)
        if source is not None and source.path != job.path:
            self._delete_upload(job)

    def _delete_upload(self, job: Job) -> None:
        if job.upload:
            shutil.rmtree(self._jobs.upload_folder(job.id), ignore_errors=True)


@dataclass(slots=True)
class _Progress:
    """Writes how far a job is, and sees whether another process wants it to end."""

    jobs: Jobs
    job: Job
    cancel: threading.Event
    written: float = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Take what the worker tells."""
        self.job = replace(self.job, done=int(done), total=int(total))
        now = time.monotonic()
        if now - self.written < _WRITE_SECONDS:
            return
        self.written = now
        if self.jobs.is_to_cancel(self.job):
            self.cancel.set()
        self.jobs.write(self.job, durably=False)


def index_video(
    library: str,
    models: str | None,
    remote: dict[str, Any] | None,
    device: str,
    prefix_gib: float,
    clip_form: tuple[float, int],
    video: str,
    *,
    progress: Callable[[int, int], None],
) -> str | None:
    """Index one video; this runs in a worker process, which keeps the models for the next one.

    Args:
        library: the folder of the library.
        models: a folder of models, or ``miniatures``; None if all are on servers.
        remote: the arguments of `RemoteModels`; None for none.
        device: of the folder's models.
        prefix_gib: as for `open_models`.
        clip_form: length of a clip in seconds, and its number of frames.
        video: the path of the file.
        progress: called with the clips that are indexed, and all that there are.

    Returns:
        The id of the video; None if another process is indexing into the library.

    Raises:
        GranAlignError: the file is no video, or cannot be indexed.
    """
    opened = _models(models, remote, device, prefix_gib)
    clip_seconds, frames_per_clip = clip_form
    try:
        (folder,) = opened.index(
            [video],
            library,
            clip_seconds=clip_seconds,
            frames_per_clip=frames_per_clip,
            progress=lambda done, total, _: progress(done, total),
        )
    except FolderBusyError:
        return None
    return folder.name


_opened: dict[str, ModelFolder] = {}


def _models(
    models: str | None, remote: dict[str, Any] | None, device: str, prefix_gib: float
) -> ModelFolder:
    from .engine import open_service_models

    key = repr((models, remote, device, prefix_gib))
    if key not in _opened:
        _opened.clear()
        folder = None if models is None else Path(models)
        _opened[key] = open_service_models(folder, remote, device, prefix_gib)
    return _opened[key]


def worker_memory(engine: Engine) -> int | None:
    """Return the bytes of memory that a worker may take; None for no limit, on a GPU."""
    if engine.models is None or engine.settings.device != "cpu":
        return None  # CUDA maps more address space than it takes memory
    folders = engine.models.paths.values()
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return _SPARE_BYTES + 3 * sum(path.stat().st_size for path in files)


def _is_busy(folder: Path) -> bool:
    """Return whether another process is indexing into a library."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no locks here; indexing says so
    finally:
        os.close(handle)
    return False
