"""Run an indexing job: plan it, pass every video through the stages, and join what is complete."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from granalign_fast.errors import GranAlignError
from granalign_fast.index.records import CLIP_SECONDS
from granalign_fast.index.work_folder import WorkFolder, lock_folder
from granalign_fast.storage import Address, Store
from granalign_fast.video.frames import (
    DamagedVideoWarning,
    check_clip_seconds,
    check_frames_per_clip,
)

from .claims import claimed_videos
from .local import LocalExecutor
from .output import update_source
from .records import PARTS, Job, Outcome, SourceVideo, StageModels, Workers
from .sources import OnFailure, find_sources, plan, shown

_log = logging.getLogger(__name__)

_ABANDONED = 30 * 24 * 3600 * 1_000_000_000
"""Nanoseconds after which the rows of a video that is in no job are deleted: 30 days."""

Progress = Callable[[int, int, str], None]
"""Called with the number of videos that are done, the number of all, and the last one's id."""


class Executor(Protocol):
    """Runs the stages of a job: in this process, or by Ray."""

    def hasher(self, names: Sequence[str], /) -> Iterable[str | GranAlignError]:
        """Return the SHA-256 of each of the named files, or the reason why it cannot be read."""
        ...

    def fingerprints(self, open_models: Callable[[], StageModels]) -> dict[str, str]:
        """Return the fingerprints of the models."""
        ...

    def run(self, job: Job, videos: Sequence[SourceVideo]) -> Iterator[Outcome]:
        """Yield an outcome for each chunk of the videos, as they come."""
        ...

    def join(self, job: Job, outcome: Outcome) -> None:
        """Begin to write the index of a video from its stored rows."""
        ...

    def joined(self, *, wait: bool) -> Iterator[Outcome]:
        """Yield the outcomes of joins that have ended; with `wait`, of all."""
        ...


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job.

    Attributes:
        vids: ids of the videos that have an index, of this run or of an earlier one, in the order
            of their files.
        indexed: how many of them this run has indexed.
        clips: how many clips these have.
        captions: whether the models of the job write captions.
    """

    vids: tuple[str, ...]
    indexed: int
    clips: int
    captions: bool


def index_sources(
    names: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    open_models: Callable[[], StageModels],
    *,
    ray: str | None = None,
    workers: Mapping[str, Workers] | None = None,
    clip_seconds: float = CLIP_SECONDS,
    frames_per_clip: int = 1,
    rows: int = 16,
    recursive: bool = True,
    include: Sequence[str] = (),
    progress: Progress | None = None,
    on_error: OnFailure | None = None,
) -> JobResult:
    """Index videos of folders and object stores into a folder or an object store.

    In an object store the catalogue is published as well. The indexes equal those of
    `index_videos`, but for rounding in the embeddings: batches are cut otherwise. A call that was
    interrupted is resumed by the same call: videos that have an index are left alone, and stored
    rows of other videos are used.

    Args:
        names: as for `find_sources`.
        out: a folder, or an address such as ``s3://bucket/library``.
        open_models: opens the models; it is pickled and sent to the workers.
        ray: the address of a Ray cluster, or ``local`` for one on this machine that ends with the
            job. None indexes in this process.
        workers: of the stages ``decode``, ``frames``, ``captions`` and ``texts``; with Ray.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: 1, 2, 4 or 6: how many frames represent a clip.
        rows: frames in a batch, which holds at least one whole clip.
        recursive: also walk the folders inside the named ones.
        include: as for `find_videos`.
        progress: called after each video.
        on_error: called with each video that could not be indexed. None raises the first such error
            at the end, when all other videos are indexed.

    Raises:
        GranAlignError: an argument is wrong, the output cannot be written, another process is
            indexing into the folder, or Ray has failed.
    """
    check_clip_seconds(clip_seconds)
    check_frames_per_clip(frames_per_clip)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise GranAlignError(f"rows: got {rows!r}, expected an integer from 1")
    failures: dict[str, GranAlignError] = {}

    def fail(name: str, error: GranAlignError) -> None:
        failures[name] = error
        if on_error is not None:
            on_error(shown(name), error)

    files = find_sources(
        [os.fspath(name) for name in names], recursive=recursive, include=include, on_error=fail
    )
    store = Store.at(out)
    vids: tuple[str, ...] = ()
    indexed = clips = 0
    captions = False
    if files:
        with _locked(store), _executor(ray, workers or {}) as executor:
            fingerprints = executor.fingerprints(open_models)
            captions = "vlm" in fingerprints
            job = Job(store, open_models, fingerprints, clip_seconds, rows, frames_per_clip)
            planned = plan(job, files, executor.hasher, fail)
            with claimed_videos(store, planned, fail) as own:
                for vid, source in own.moved:
                    update_source(store, vid, source)
                run = _Run(job, executor, own.pending, progress, fail)
                run.execute()
            there = {*own.current, *run.done}
            vids = tuple(vid for vid in planned.order if vid in there)
            indexed, clips = len(run.done), run.clips
        if isinstance(store.place, Address):
            from granalign_fast.library.remote import publish_catalogue

            publish_catalogue(store.place)
    if failures and on_error is None:
        raise next(iter(failures.values()))
    return JobResult(vids, indexed, clips, captions)


def _locked(store: Store) -> AbstractContextManager[None]:
    """Keep other jobs out of a folder; in an object store they have other videos."""
    return lock_folder(store.place) if isinstance(store.place, Path) else nullcontext()


def _executor(ray: str | None, workers: Mapping[str, Workers]) -> AbstractContextManager[Executor]:
    if ray is None:
        return nullcontext(LocalExecutor())
    from .ray_data import open_ray

    return open_ray(ray, workers)


@dataclass
class _Run:
    """The run of a job over its pending videos."""

    job: Job
    executor: Executor
    videos: Sequence[SourceVideo]
    progress: Progress | None
    fail: OnFailure
    clips: int = 0
    done: list[str] = field(default_factory=list)
    """Ids of the videos that are indexed."""
    failed: set[str] = field(default_factory=set)
    """Ids of the videos that could not be indexed."""
    chunks: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    """First and last clip of each stored chunk of the videos that are not complete."""
    ends: dict[str, Outcome] = field(default_factory=dict)
    """The last chunk of these videos."""

    def execute(self) -> None:
        """Index the videos."""
        out = self.job.out
        if not self.videos:
            return
        if isinstance(out.place, Path):
            WorkFolder(out.place).recover()
        for outcome in self.executor.run(self.job, self.videos):
            self._take(outcome)
            for joined in self.executor.joined(wait=False):
                self._take(joined)
        for joined in self.executor.joined(wait=True):
            self._take(joined)
        rest = [one for one in self.videos if one.vid not in {*self.done, *self.failed}]
        for video in rest:
            self.fail(video.name, GranAlignError("not all of its frames came back; index it again"))
        if not rest:
            self._clean_up()

    def _clean_up(self) -> None:
        """Delete the rows that earlier jobs have stored, also those with other settings."""
        out = self.job.out
        if isinstance(out.place, Path):
            out.remove_folder(PARTS.partition("/")[0])
            return
        # Another job may have rows of other videos there. If nobody has touched them for long,
        # their videos were taken away before they were complete.
        newest: dict[str, int] = {}
        for name, file in out.list(PARTS).items():
            vid = name.removeprefix(f"{PARTS}/").partition("/")[0]
            newest[vid] = max(newest.get(vid, 0), file.modified_ns)
        own, limit = {video.vid for video in self.videos}, time.time_ns() - _ABANDONED
        for vid, modified in newest.items():
            if vid in own or modified < limit:
                out.remove_folder(f"{PARTS}/{vid}")

    def _take(self, outcome: Outcome) -> None:
        """Note what has become of a chunk; a video whose chunks are all stored is joined."""
        vid = outcome.video.vid
        for text in outcome.warnings:
            warnings.warn(text, DamagedVideoWarning, stacklevel=2)
        if vid in self.failed or vid in self.done:
            return
        if outcome.error is not None:
            self.failed.add(vid)
            self.fail(outcome.video.name, GranAlignError(outcome.error))
            self._forget(outcome.video)
        elif outcome.indexed:
            self.done.append(vid)
            self.clips += outcome.end
            _log.info("indexed %s: %d clips", outcome.video.name, outcome.end)
            self._forget(outcome.video)
        else:
            chunks = self.chunks.setdefault(vid, set())
            chunks.add((outcome.first, outcome.end))
            if outcome.last:
                self.ends[vid] = outcome
            end = self.ends.get(vid)
            if end is not None and sum(last - first for first, last in chunks) == end.end:
                self.executor.join(self.job, end)
            return
        if self.progress is not None:
            self.progress(len(self.done) + len(self.failed), len(self.videos), vid)

    def _forget(self, video: SourceVideo) -> None:
        """Delete the stored rows of a video."""
        if self.chunks.pop(video.vid, None):
            self.job.out.remove_folder(self.job.parts_folder(video))
        self.ends.pop(video.vid, None)
