"""Video files to index folders, in batches that videos share, resumed after any interruption.

The frames of all videos are one stream, cut into batches of equal size. A model may give slightly
other numbers for a frame in other company, so a resumed run forms the very same batches and goes on
at the first one whose rows are not all on disk.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.types import FrameSet
from granalign_fast.video.frames import Frame, read_frames

from .models import Descriptions, IndexModels
from .records import CLIP_SECONDS, CaptionedVideo, FrameTable
from .video_files import VideoFile, examine, finished
from .video_index import VideoIndex
from .work_folder import Rows, WorkFolder, only_one

Progress = Callable[[int, int, str], None]
"""Called with the clips that are done, those that there are, and the video at work."""


def index_videos(
    videos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    models: IndexModels,
    *,
    clip_seconds: float = CLIP_SECONDS,
    rows: int = 16,
    progress: Progress | None = None,
) -> list[Path]:
    """Index video files: one frame per clip, its caption, and the embeddings of both.

    Ended at any moment, even by ``kill -9``, the same call goes on where it was, and the indexes
    equal those of an undisturbed run in every byte. A video whose index is there is not touched, as
    long as its content, `models` and `clip_seconds` are the same; otherwise a new index replaces
    the old one as soon as it is whole. A call for something else begins anew with what an
    interrupted one had not finished.

    A damaged video is indexed as far as it can be decoded, with a `DamagedVideoWarning`; what the
    decoder makes of the damage may differ from run to run. Where an error ends the call, the videos
    before are finished.

    Args:
        videos: the files. Each gets the folder of its name without suffix.
        out: the folder of these folders; made if it is not there.
        models: the models that describe the frames; when one of their fingerprints changes, the
            videos are indexed again.
        clip_seconds: length of a clip.
        rows: frames in a batch. Two batches are in memory, in the size of the files.
        progress: called after each batch.

    Returns:
        The folder of each video, for `VideoIndex.load`.

    Raises:
        GranAlignError: before any work, if a file is no video, two have the same name, a folder is
            there that is no index of a video, or another process is indexing into `out`; later, if
            a model refuses a frame, the disk is full, or a file changes meanwhile.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise GranAlignError(f"rows: got {rows!r}, expected an integer from 1")
    chosen = examine(videos, clip_seconds)
    out = Path(out)
    with only_one(out):
        work = WorkFolder(out)
        work.recover()
        request = {
            "videos": [video.record() for video in chosen],
            "models": dict(models.fingerprints),
            "clip_seconds": clip_seconds,
            "rows": rows,
        }
        done = finished(chosen, work, models.fingerprints, clip_seconds)
        todo = work.todo(request)
        if todo is None or {video.vid for video in chosen} - done.keys() - set(todo):
            todo = [video.vid for video in chosen if video.vid not in done]
            if todo:
                work.begin(request, todo)
        run = _Run(
            plan=[video for video in chosen if video.vid in todo],
            finished=done,
            work=work,
            models=models,
            clip_seconds=clip_seconds,
            rows=rows,
            progress=progress,
        )
        if done.keys() < {video.vid for video in chosen}:
            run()
        work.discard()
    return [out / video.vid for video in chosen]


@dataclass(frozen=True, slots=True)
class _Batch:
    frames: list[tuple[VideoFile, Frame]]
    hashed: FrameSet
    ended: list[tuple[VideoFile, int]]
    """Videos that have no more frames, and how many they had."""


class _Stopped(Exception):
    """Ends decoding, not to keep an error or Ctrl-C waiting."""


@dataclass
class _Run:
    """One pass over the videos of a plan."""

    plan: Sequence[VideoFile]
    finished: dict[str, int]
    work: WorkFolder
    models: IndexModels
    clip_seconds: float
    rows: int
    progress: Progress | None
    stored: dict[str, int] = field(init=False)
    """How many clips of each video are on disk, from its first on."""
    clips: dict[str, int] = field(init=False)
    """How many it has; until its end has been seen, as its last packets promise."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Nobody waits for more frames."""

    def __call__(self) -> None:
        self.stored = {video.vid: self._rows_of(video) for video in self.plan}
        self.clips = {video.vid: video.info.clips for video in self.plan} | self.finished
        with _one_ahead(self._batches(*self._place())) as batches:
            try:
                for batch in batches:
                    self._store(batch)
                    for video, clips in batch.ended:
                        self._finish(video, clips)
            except BaseException:
                self.stopped.set()
                raise

    def _rows_of(self, video: VideoFile) -> int:
        """How many clips of a video need no more work."""
        if video.vid in self.finished:
            return self.finished[video.vid]
        kept = self.work.rows(video.vid)
        return kept[-1].end if kept else 0

    def _place(self) -> tuple[int, int]:
        """The video, and the clip of it, with which the first unfinished batch begins."""
        unfinished = next(i for i, v in enumerate(self.plan) if v.vid not in self.finished)
        begun = self.plan[: unfinished + 1]
        row = sum(self.stored[video.vid] for video in begun) // self.rows * self.rows
        for number, video in enumerate(begun):
            if number == unfinished or row < self.stored[video.vid]:
                return number, row
            row -= self.stored[video.vid]
        raise AssertionError("the last of these videos is unfinished")

    def _batches(self, number: int, first: int) -> Generator[_Batch, None, None]:
        """The frames of all videos from clip `first` of one on, cut into batches."""
        gathered: list[tuple[VideoFile, Frame]] = []
        ended: list[tuple[VideoFile, int]] = []
        for video in self.plan[number:]:
            clips = first
            try:
                for frame in self._frames(video, first):
                    clips = frame.clip + 1
                    gathered.append((video, frame))
                    if len(gathered) == self.rows:
                        yield _batch(gathered, ended)
                        gathered, ended = [], []
            except GranAlignError:
                # The videos before this one must not be lost to it.
                if ended:
                    yield _batch([pair for pair in gathered if pair[0] is not video], ended)
                raise
            ended.append((video, clips))
            first = 0
        if ended:
            yield _batch(gathered, ended)

    def _frames(self, video: VideoFile, first: int) -> Iterator[Frame]:
        """The frames of a video from clip `first` on."""
        # All are decoded: in a damaged stretch a frame depends on which were decoded before it.
        try:
            for frame in read_frames(video.source.path, clip_seconds=self.clip_seconds):
                if self.stopped.is_set():
                    raise _Stopped
                if frame.clip >= first:
                    yield frame
        except GranAlignError:
            video.check_unchanged()  # a file that is being replaced looks damaged
            raise

    def _store(self, batch: _Batch) -> None:
        """Ask the models about a batch and keep what they say, unless it is all on disk."""
        parts = [
            (video, [frame for _, frame in pairs])
            for video, pairs in itertools.groupby(batch.frames, key=lambda pair: pair[0])
        ]
        if all(frames[-1].clip < self.stored[video.vid] for video, frames in parts):
            return
        captions, embeddings, seen = self._ask(batch)
        begin = 0
        for video, frames in parts:
            part = slice(begin, begin + len(frames))
            begin = part.stop
            rows = Rows(
                first=frames[0].clip,
                times=np.array([frame.time for frame in frames], np.float64),
                hashes=batch.hashed.hashes[part],
                captions=captions[part],
                embeddings=embeddings[part],
                frames=None if seen is None else seen[part],
            )
            if rows.end > self.stored[video.vid]:
                self.work.add(video.vid, rows)
                self.stored[video.vid] = rows.end
        if self.progress:
            done, known = sum(self.stored.values()), sum(self.clips.values())
            self.progress(done, max(done, known), parts[-1][0].vid)

    def _ask(self, batch: _Batch) -> Descriptions:
        """Captions, their embeddings, and those of the frames."""
        video, frame = batch.frames[0]
        try:
            return self.models.describe(batch.hashed, [frame.image for _, frame in batch.frames])
        except MissingExtraError:
            raise
        except GranAlignError as error:
            raise GranAlignError(
                f"{video.source.path}: clip {frame.clip} and those that follow in its batch: "
                f"{error}"
            ) from None

    def _finish(self, video: VideoFile, clips: int) -> None:
        """Put the index of a video together from its rows."""
        self.clips[video.vid] = clips
        if video.vid in self.finished:
            return
        video.check_unchanged()
        rows = self.work.rows(video.vid)
        if not rows or rows[-1].end != clips:
            raise GranAlignError(
                f"{self.work.out}: got {rows[-1].end if rows else 0} clips of {video.vid!r}, "
                f"expected {clips}: the unfinished work was altered; index again"
            )
        # A damaged header may promise less than there is.
        duration = video.info.duration
        known = duration > (clips - 1) * self.clip_seconds
        captions = tuple(itertools.chain.from_iterable(part.captions for part in rows))
        self.work.publish(
            VideoIndex(
                CaptionedVideo(video.vid, captions, self.clip_seconds, duration if known else None),
                _joined([part.embeddings for part in rows], video),
                FrameTable(
                    np.concatenate([part.times for part in rows]),
                    tuple(itertools.chain.from_iterable(part.hashes for part in rows)),
                    None
                    if self.models.frame_encoder is None
                    else _joined([part.frames for part in rows if part.frames is not None], video),
                    video.source,
                ),
                dict(self.models.fingerprints),
            )
        )
        self.finished[video.vid] = clips


def _batch(frames: list[tuple[VideoFile, Frame]], ended: list[tuple[VideoFile, int]]) -> _Batch:
    images = [frame.image for _, frame in frames]
    # Hashed here, beside the models' work.
    return _Batch(frames, FrameSet.of(images) if images else FrameSet((), lambda _: []), ended)


def _joined(parts: Iterable[npt.NDArray[Any]], video: VideoFile) -> npt.NDArray[Any]:
    found = list(parts)
    kinds = {(part.shape[1:], part.dtype) for part in found}
    if len(kinds) != 1:
        raise GranAlignError(
            f"{video.source.path}: got embeddings of {len(kinds)} kinds, expected one: a model "
            f"changed under the same fingerprint; delete the folder .indexing and index again"
        )
    return np.concatenate(found)


_Item = TypeVar("_Item")


@contextmanager
def _one_ahead(items: Generator[_Item, None, None]) -> Iterator[Iterator[_Item]]:
    """The same items, each of which a thread makes while the one before it is worked on."""

    def given(pool: ThreadPoolExecutor) -> Iterator[_Item]:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item

    # The thread ends before the items are closed: a generator cannot be closed while it runs.
    with closing(items), ThreadPoolExecutor(1) as pool:
        yield given(pool)
