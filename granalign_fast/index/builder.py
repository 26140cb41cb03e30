"""Index video files: batches of frames across videos, resumed after any interruption.

The frames of all videos form one stream, which is split into batches of equal size. A model's
result for a frame may depend slightly on the other frames of its batch, so a resumed run forms the
same batches as an undisturbed one. It continues at the first batch whose rows are not all on disk.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.types import FrameSet
from granalign_fast.video.frames import Frame, check_frames_per_clip, read_frames

from .known_files import KnownFiles
from .manifest import check_holds_indexes
from .models import Descriptions, IndexModels
from .naming import read_library
from .prefetch import prefetch
from .records import CLIP_SECONDS, frame_seconds
from .row_arrays import clip_rows, clips_in_batch, join_rows
from .stored_frames import StoredFrames
from .video_files import (
    Reading,
    VideoFile,
    count_indexed_clips,
    inspect_videos,
    name_videos,
    probe_unindexed,
)
from .walk import OnError
from .work_folder import WorkFolder, lock_folder

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with the number of finished clips, the number of all clips, and the current video's id."""


def index_videos(
    videos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    models: IndexModels,
    *,
    clip_seconds: float = CLIP_SECONDS,
    frames_per_clip: int = 1,
    rows: int = 16,
    progress: Progress | None = None,
    on_error: OnError | None = None,
    verify: bool = False,
    reading: Reading | None = None,
) -> list[Path]:
    """Index video files: the frames of each clip, their caption, and the embeddings of both.

    If the call is interrupted at any moment, even by ``kill -9``, the same call resumes the work,
    and every byte of the indexes equals that of an undisturbed run. A video that has an index is
    skipped as long as its content, the fingerprints of `models`, `clip_seconds` and
    `frames_per_clip` are the same. Otherwise a new index replaces the old one as soon as the new
    one is complete. A call with other arguments discards the unfinished work of an interrupted
    call.

    Without a captioner, indexes have no captions. A later call with one and the same frame encoder
    adds them: it decodes the frames again, which a captioner must see, and keeps their embeddings.
    The indexes equal those of one call if both calls name the same videos and `rows`.

    A damaged video is indexed as far as it can be decoded, with a `DamagedVideoWarning`. The
    decoder's output for a damaged stretch may differ from run to run. If an error ends the call,
    the videos before the failing one are finished. With `on_error`, a file that cannot be indexed
    does not end the call: all others are indexed.

    Args:
        videos: paths of the files. The index of each is a folder named as the file without suffix,
            or as `granalign_fast.index.naming.assign_ids` says where another file has that name.
        out: the parent of these folders; it is created if it does not exist.
        models: the models that describe the frames; when one of their fingerprints changes, the
            videos are indexed again.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: 1, 2, 4 or 6: how many frames represent a clip, see `read_frames`. The
            captioner is asked about all of them together.
        rows: frames in a batch, which holds at least one whole clip. Two batches are in memory at a
            time, in the size of the files.
        progress: called after each batch.
        on_error: called with each file that cannot be indexed, and the reason: it is not a video,
            it cannot be decoded, or it changed during the run. None raises the first such error.
        verify: read every file. Otherwise a file that was read by an earlier call counts as
            unchanged as long as its size and its times are the same.
        reading: called while files are read to find their hashes.

    Returns:
        The folder of each indexed video, in the order of `videos`, for `VideoIndex.load`.

    Raises:
        GranAlignError: before any work, if a file is not a video, a folder exists that is not the
            index of a video, `out` is the index of one, or another process is indexing into it;
            later, if a model refuses a frame, the disk is full, or a file changes. With `on_error`,
            only for what concerns more than one file: an argument, a model, the disk, a process.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise GranAlignError(f"rows: got {rows!r}, expected an integer from 1")
    check_frames_per_clip(frames_per_clip)
    models.check_clips(frames_per_clip)
    out = Path(out)
    check_holds_indexes(out)
    known = KnownFiles(out, trusted=not verify)
    files = inspect_videos(videos, clip_seconds, known, on_error, reading)
    if not files:
        return []
    with lock_folder(out):
        work = WorkFolder(out)
        work.recover()
        library = read_library(out)
        named = name_videos(files, library)
        files = list({file.vid: file for file in named.values()}.values())
        # Videos with an up-to-date index need no work, unless they are part of a resumed run: its
        # batches begin with their frames.
        counts = count_indexed_clips(
            files, work, models, clip_seconds, on_error, frames_per_clip=frames_per_clip
        )
        files = probe_unindexed(files, counts, clip_seconds, on_error)
        paths = {vid: source.path for vid, source in library.items()}
        paths |= {file.vid: file.source.path for file in files}
        known.write(set(paths.values()))
        indexed = {vid: clips for vid, clips in counts.items() if clips}
        request = {
            "videos": [file.to_record() for file in files],
            "models": dict(models.fingerprints),
            "clip_seconds": clip_seconds,
            "rows": rows,
        }
        if frames_per_clip > 1:  # with one, work that an older version began is resumed
            request["frames_per_clip"] = frames_per_clip
        pending = work.read_job(request)
        if pending is None or {file.vid for file in files} - indexed.keys() - set(pending):
            pending = [file.vid for file in files if file.vid not in indexed]
            if pending:
                work.start_job(request, pending)
        run = _IndexingRun(
            videos=[file for file in files if file.vid in pending],
            indexed=indexed,
            work=work,
            models=models,
            clip_seconds=clip_seconds,
            frames_per_clip=frames_per_clip,
            rows=clips_in_batch(rows, frames_per_clip),
            progress=progress,
            on_error=on_error,
        )
        if any(file.vid not in indexed for file in files):
            run.execute()
            # Files that failed have no index to remember them for.
            ids = library.keys() | run.indexed.keys()
            known.write({path for vid, path in paths.items() if vid in ids})
        work.discard()
    given = [named.get(Path(video).absolute()) for video in videos]
    return [out / file.vid for file in given if file is not None and file.vid in run.indexed]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Frames that the models get in one call, and the videos that end with them."""

    frames: list[tuple[VideoFile, Frame]]
    frame_set: FrameSet
    """The same frames with their hashes."""
    ended: list[tuple[VideoFile, int]]
    """Videos whose last frame is in this batch or was in the one before, with their clip counts."""
    failed: list[tuple[VideoFile, GranAlignError]]
    """Videos that cannot be decoded to their end. Their last frames are in earlier batches."""


class _Cancelled(Exception):
    """The decoding thread must end: an error or Ctrl-C has ended the run."""


@dataclass
class _IndexingRun:
    """One pass over the videos of a job.

    A thread decodes the next batch while the models describe the current one.
    """

    videos: Sequence[VideoFile]
    """The videos whose frames form the batches, in order."""
    indexed: dict[str, int]
    """The number of clips of each video that has its final index."""
    work: WorkFolder
    models: IndexModels
    clip_seconds: float
    frames_per_clip: int
    rows: int
    """Clips in a batch."""
    progress: Progress | None
    on_error: OnError | None
    """Without it, the first video that fails ends the run."""
    stored_clips: dict[str, int] = field(init=False)
    """For each video, the number of clips that are on disk; these are its first clips."""
    stored_frames: StoredFrames = field(init=False)
    """The frame embeddings of videos that have an index without captions."""
    total_clips: dict[str, int] = field(init=False)
    """For each video, its number of clips; until its end is read, an estimate by `probe`."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the run fails: the thread that decodes must end."""

    def execute(self) -> None:
        """Describe all missing clips and publish the index of every video that is complete."""
        # 1. Find out what an earlier run has left on disk.
        self.stored_clips = {video.vid: self._count_stored_clips(video) for video in self.videos}
        self.stored_frames = StoredFrames(
            self.work.out,
            self.models.fingerprints.get("clip"),
            self.clip_seconds,
            self.frames_per_clip,
        )
        estimates = {video.vid: video.info.clips for video in self.videos if video.info}
        self.total_clips = estimates | self.indexed
        # 2. Decode from the first batch that is not complete, one batch ahead of the models.
        position, clip = self._find_resume_point()
        with prefetch(self._read_batches(position, clip)) as batches:
            try:
                for batch in batches:
                    # 3. Describe the frames and write the rows to disk.
                    self._process_batch(batch)
                    # 4. A video whose last clip is on disk gets its index.
                    for video, clips in batch.ended:
                        self._publish_index(video, clips)
                    # 5. A video that cannot be decoded costs only itself.
                    for video, error in batch.failed:
                        self._fail(video, error)
            except BaseException:
                self.cancelled.set()
                raise

    def _count_stored_clips(self, video: VideoFile) -> int:
        """Return how many clips of a video need no more work."""
        if video.vid in self.indexed:
            return self.indexed[video.vid]
        parts = self.work.read_rows(video.vid)
        return parts[-1].end if parts else 0

    def _find_resume_point(self) -> tuple[int, int]:
        """Return the position of a video and its clip at which the first incomplete batch begins.

        Batches are counted from the first frame of the first video, as in an undisturbed run.
        """
        incomplete = next(i for i, v in enumerate(self.videos) if v.vid not in self.indexed)
        begun = self.videos[: incomplete + 1]
        # All stored clips form a prefix of the stream of frames; round down to whole batches.
        row = sum(self.stored_clips[video.vid] for video in begun) // self.rows * self.rows
        # Locate that row of the stream among the videos.
        for position, video in enumerate(begun):
            if position == incomplete or row < self.stored_clips[video.vid]:
                return position, row
            row -= self.stored_clips[video.vid]
        raise AssertionError("the last of these videos is incomplete")

    def _read_batches(self, position: int, first_clip: int) -> Generator[_Batch, None, None]:
        """Yield batches of frames, from clip `first_clip` of the video at `position` on."""
        seconds = frame_seconds(self.clip_seconds, self.frames_per_clip)
        pairs: list[tuple[VideoFile, Frame]] = []
        ended: list[tuple[VideoFile, int]] = []
        failed: list[tuple[VideoFile, GranAlignError]] = []
        for video in self.videos[position:]:
            clips = first_clip
            first, first_clip = first_clip, 0
            try:
                for frame in self._decode_frames(video, first):
                    clips = frame.clip + 1
                    pairs.append((video, frame))
                    if len(pairs) == self.rows:
                        yield _make_batch(pairs, ended, failed, seconds)
                        pairs, ended, failed = [], [], []
                ended.append((video, clips))
            except GranAlignError as error:
                # The next video's frames take the place of this one's in the batch. A resumed run
                # does the same, so that its batches are equal.
                pairs = [pair for pair in pairs if pair[0] is not video]
                failed.append((video, error))
                if self.on_error is None:
                    break
        # The last batch may be short.
        if ended or failed:
            yield _make_batch(pairs, ended, failed, seconds)

    def _decode_frames(self, video: VideoFile, first_clip: int) -> Iterator[Frame]:
        """Yield the frames of a video from clip `first_clip` on."""
        # Decode from the start: in a damaged stretch a frame depends on the frames decoded before.
        try:
            for frame in read_frames(
                video.source.path,
                clip_seconds=self.clip_seconds,
                frames_per_clip=self.frames_per_clip,
            ):
                if self.cancelled.is_set():
                    raise _Cancelled
                if frame.clip >= first_clip:
                    yield frame
        except GranAlignError:
            video.check_unchanged()  # a file that is being replaced looks damaged
            raise

    def _process_batch(self, batch: _Batch) -> None:
        """Describe the frames of a batch and write their rows, unless all rows are on disk."""
        # Group the frames by video; each group becomes one file of rows.
        groups = [
            (video, [frame for _, frame in pairs])
            for video, pairs in itertools.groupby(batch.frames, key=lambda pair: pair[0])
        ]
        if all(frames[-1].clip < self.stored_clips[video.vid] for video, frames in groups):
            return
        described = self._describe(batch)
        # Cut the batch's results into the groups' rows.
        begin = 0
        for video, frames in groups:
            # Stored rows stay. They begin with the group's, unless a video that failed in an
            # earlier run can be decoded now, which shifts the batches behind it.
            stored = max(0, self.stored_clips[video.vid] - frames[0].clip)
            part = slice(begin + stored, begin + len(frames))
            begin = part.stop
            if not (frames := frames[stored:]):
                continue
            rows = clip_rows(frames, batch.frame_set.hashes[part], described.cut(part))
            self.work.write_rows(video.vid, rows)
            self.stored_clips[video.vid] = rows.end
        done, known = sum(self.stored_clips.values()), sum(self.total_clips.values())
        total, vid = max(done, known), groups[-1][0].vid
        _log.info("stored a batch: %d of %d clips are done, up to %s", done, total, vid)
        if self.progress:
            self.progress(done, total, vid)

    def _describe(self, batch: _Batch) -> Descriptions:
        """Run the models; their errors name the file and the first clip of the batch."""
        video, frame = batch.frames[0]
        try:
            return self.stored_frames.describe(
                self.models, batch.frame_set, batch.frames, self.stored_clips
            )
        except MissingExtraError:
            raise
        except GranAlignError as error:
            raise GranAlignError(
                f"{video.source.path}: clip {frame.clip} and the rest of its batch: {error}"
            ) from None

    def _publish_index(self, video: VideoFile, clips: int) -> None:
        """Join the rows of a video into its index and move the index to its final folder."""
        self.total_clips[video.vid] = clips
        if video.vid in self.indexed:
            return
        try:
            video.check_unchanged()
        except GranAlignError as error:
            self._fail(video, error)
            return
        parts = self.work.read_rows(video.vid)
        if not parts or parts[-1].end != clips:
            raise GranAlignError(
                f"{self.work.out}: got {parts[-1].end if parts else 0} clips of {video.vid!r}, "
                f"expected {clips}: the unfinished work was altered; index again"
            )
        assert video.info is not None  # a video without an index was probed
        self.work.publish(
            join_rows(
                parts,
                video.vid,
                video.source,
                duration=video.info.duration,
                clip_seconds=self.clip_seconds,
                fingerprints=self.models.fingerprints,
            )
        )
        self.indexed[video.vid] = clips
        _log.info("indexed %s: %d clips", video.source.path, clips)

    def _fail(self, video: VideoFile, error: GranAlignError) -> None:
        """Report a video that cannot be indexed, or raise its error."""
        if self.on_error is None:
            raise error
        _log.info("%s", error)
        self.total_clips[video.vid] = self.stored_clips[video.vid]
        self.on_error(video.source.path, error)


def _make_batch(
    frames: list[tuple[VideoFile, Frame]],
    ended: list[tuple[VideoFile, int]],
    failed: list[tuple[VideoFile, GranAlignError]],
    seconds: float,
) -> _Batch:
    """Return a batch; `seconds` is the time from a frame of a clip to the next."""
    images = [frame.image for _, frame in frames]
    # Frames are hashed in the decoding thread, while the models run.
    frame_set = FrameSet.of(images, frame_seconds=seconds) if images else FrameSet.joined([])
    return _Batch(frames, frame_set, ended, failed)
