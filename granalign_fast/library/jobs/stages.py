"""The stages of an indexing job: plain functions and classes, which know nothing of Ray.

A video that fails costs only itself: its last chunk carries the error through all stages.
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.config import MOST_INDEX_BYTES
from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.files import sha256_of
from granalign_fast.index.models import (
    caption_frames,
    check_captioner,
    embed_captions,
    embed_frames,
)
from granalign_fast.index.records import VideoSource, frame_seconds
from granalign_fast.index.row_arrays import clips_in_batch, join_rows
from granalign_fast.index.work_folder import ClipRows
from granalign_fast.models.manifest import CLIP, VLM
from granalign_fast.protocols import Captioner, ImageTextEncoder, TextEncoder
from granalign_fast.storage import Address, Store
from granalign_fast.types import FrameSet
from granalign_fast.video.frames import Frame, probe, read_frames

from .chunks import Chunk, chunk_clips
from .output import put_index
from .records import Job, Outcome, SourceVideo


def decode(job: Job, video: SourceVideo) -> Iterator[Chunk]:
    """Yield the frames of a video in chunks; inside `collected_warnings` with its warnings.

    A video in an object store is copied to a temporary file: decoding reads all of it, and its hash
    is computed on the way. Frames whose rows an earlier run has stored are left out.
    """
    said: list[str] = []
    end = 0
    try:
        with _local_copy(video) as (path, sha256):
            try:
                for chunk in _chunks(job, video, path, said):
                    end = chunk.end
                    yield replace(chunk, sha256=sha256, warnings=tuple(said) if chunk.last else ())
            except GranAlignError as error:
                # The temporary file's name means nothing to anybody.
                raise GranAlignError(str(error).replace(str(path), video.name)) from None
    except MissingExtraError:
        raise
    except GranAlignError as error:
        yield Chunk(video, end, end, error=str(error), warnings=tuple(said))


@contextmanager
def _local_copy(video: SourceVideo) -> Iterator[tuple[Path, str]]:
    """Yield a local file with the content of a video, and the SHA-256 of the content.

    Raises:
        GranAlignError: there is no such file, or it cannot be read.
    """
    store = Store.at(video.name)
    if not isinstance(store.place, Address):
        path = Path(video.name)
        yield path, sha256_of(path)
        return
    with tempfile.TemporaryDirectory(prefix="granalign-") as folder:
        # FFmpeg takes the suffix for a hint.
        path = Path(folder, f"video{Path(store.place.name).suffix}")
        yield path, store.fetch("", path)


def _check_unchanged(video: SourceVideo) -> None:
    found = Store.at(video.name).find()
    if found is None or (found.bytes, found.modified_ns) != (video.bytes, video.modified_ns):
        raise GranAlignError(f"{video.name}: changed while it was being indexed; index it again")


def _chunks(job: Job, video: SourceVideo, path: Path, said: list[str]) -> Iterator[Chunk]:
    """Yield the chunks of a video file; the last one is marked. Warnings are added to `said`."""
    stored = set(stored_parts(job, video))
    with _collecting(said, path, video.name):
        duration = probe(path, clip_seconds=job.clip_seconds).duration
        frames = read_frames(
            path, clip_seconds=job.clip_seconds, frames_per_clip=job.frames_per_clip
        )
    held: list[Frame] = []
    most = 0
    while True:
        with _collecting(said, path, video.name):
            frame = next(frames, None)
        if frame is not None and not held and not most:
            most = chunk_clips(frame.image, clips_in_batch(job.rows, job.frames_per_clip))
        # A chunk leaves when it is known whether the video goes on.
        if held and (frame is None or len(held) == most):
            if frame is None:
                _check_unchanged(video)
            yield _chunk(video, held, duration, stored, last=frame is None)
            held = []
        if frame is None:
            return
        held.append(frame)


def _chunk(
    video: SourceVideo,
    frames: Sequence[Frame],
    duration: float,
    stored: set[tuple[int, int]],
    *,
    last: bool,
) -> Chunk:
    """Return frames as a chunk; without the frames if their rows are stored."""
    first, end = frames[0].clip, frames[-1].clip + 1
    if (first, end) in stored:
        return Chunk(video, first, end, last, duration=duration)
    hashes = FrameSet.of([frame.image for frame in frames]).hashes
    return Chunk(video, first, end, last, duration=duration, frames=tuple(frames), hashes=hashes)


_thread = threading.local()
"""Its `caught` is the list of the warnings that `_collecting` catches in this thread."""


@contextmanager
def collected_warnings() -> Iterator[None]:
    """Let `decode` collect its warnings, in whatever thread it runs; those of others are shown.

    `warnings.catch_warnings` would also catch what models say in other threads meanwhile.
    """
    show = warnings.showwarning

    def collect(message: Warning | str, *rest: Any, **options: Any) -> None:
        caught = getattr(_thread, "caught", None)
        if caught is None:
            show(message, *rest, **options)
        else:
            caught.append(str(message))

    warnings.showwarning = collect
    try:
        yield
    finally:
        warnings.showwarning = show


@contextmanager
def _collecting(said: list[str], path: Path, name: str) -> Iterator[None]:
    """Collect the warnings of the block, which would be lost on another machine."""
    caught: list[str] = []
    _thread.caught = caught
    try:
        yield
    finally:
        _thread.caught = None
        said += [text.replace(str(path), name) for text in caught]


class Stage:
    """A stage with a model, which is loaded once.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        per_clip = job.frames_per_clip
        self._rows = clips_in_batch(job.rows, per_clip)
        self._form = per_clip, frame_seconds(job.clip_seconds, per_clip)
        self._model: Any = self._open(job)

    def __call__(self, chunk: Chunk) -> Chunk:
        """Return the chunk with what the model says of it."""
        if not chunk.frames:
            return chunk
        try:
            return self._run(chunk)
        except MissingExtraError:
            raise
        except GranAlignError as error:
            name, clip = chunk.video.name, chunk.first
            return chunk.failed(f"{name}: clip {clip} and the rest of its chunk: {error}")

    def _open(self, job: Job) -> Any:
        raise NotImplementedError

    def _run(self, chunk: Chunk) -> Chunk:
        raise NotImplementedError

    def _batches(self, chunk: Chunk) -> Iterator[slice]:
        for begin in range(0, len(chunk.frames), self._rows):
            yield slice(begin, begin + self._rows)


class FrameStage(Stage):
    """The stage that embeds frames."""

    def _open(self, job: Job) -> ImageTextEncoder | None:
        return job.models().frame_encoder

    def _run(self, chunk: Chunk) -> Chunk:
        images = chunk.images
        parts = [embed_frames(self._model, images[part]) for part in self._batches(chunk)]
        return replace(chunk, frame_embeddings=np.concatenate(parts))


class CaptionStage(Stage):
    """The stage that captions frames."""

    def _open(self, job: Job) -> Captioner | None:
        captioner = job.models().captioner
        check_captioner(captioner, job.frames_per_clip)
        return captioner

    def _run(self, chunk: Chunk) -> Chunk:
        images = chunk.images
        # The frames were hashed when they were decoded.
        frames = FrameSet(
            chunk.hashes,
            lambda numbers: [images[number] for number in numbers],
            *self._form,
        )
        numbers = range(len(images))
        captions: tuple[str, ...] = ()
        for part in self._batches(chunk):
            captions += caption_frames(self._model, frames.take(numbers[part]))
        return replace(chunk, captions=captions)


class TextStage(Stage):
    """The stage that embeds captions."""

    def _open(self, job: Job) -> TextEncoder:
        return job.models().encoder

    def _run(self, chunk: Chunk) -> Chunk:
        texts = chunk.captions or ()
        parts = [embed_captions(self._model, texts[part]) for part in self._batches(chunk)]
        return replace(chunk, embeddings=np.concatenate(parts))


def model_stages(job: Job) -> dict[str, Callable[[Job], Stage]]:
    """Return the stages with models that a job has, in order, by name."""
    stages: dict[str, Callable[[Job], Stage]] = {}
    if CLIP in job.fingerprints:
        stages["frames"] = FrameStage
    if VLM in job.fingerprints:
        stages |= {"captions": CaptionStage, "texts": TextStage}
    return stages


def store(job: Job, chunk: Chunk) -> Outcome:
    """Write the rows of a chunk, or the whole index if the video has no other chunk."""
    video = chunk.video
    error, indexed = chunk.error, False
    if chunk.frames and error is None:
        try:
            rows = chunk.rows()
            if chunk.first == 0 and chunk.last:
                _publish(job, video, [rows], chunk.sha256, chunk.duration)
                indexed = True
            else:
                folder = job.parts_folder(video)
                job.out.write(f"{folder}/{chunk.first:08d}-{chunk.end:08d}", rows.to_safetensors())
        except GranAlignError as failure:
            error = f"{video.name}: {failure}"
    return Outcome(
        video,
        chunk.first,
        chunk.end,
        chunk.last,
        indexed,
        error,
        chunk.warnings,
        chunk.duration,
        chunk.sha256,
    )


def join(job: Job, outcome: Outcome) -> Outcome:
    """Write the index of a video whose last chunk is stored, from the stored rows of all chunks."""
    video = outcome.video
    try:
        parts = stored_parts(job, video)
        rows: list[ClipRows] = []
        folder = job.parts_folder(video)
        for (first, end), name in sorted(parts.items()):
            part = _read_part(first, job.out.read(f"{folder}/{name}", MOST_INDEX_BYTES))
            if part is None or part.end != end or first != (rows[-1].end if rows else 0):
                job.out.remove([f"{folder}/{name}"])
                raise GranAlignError(
                    f"{video.name}: its unfinished rows were altered; index it again"
                )
            rows.append(part)
        if not rows or rows[-1].end != outcome.end:
            raise GranAlignError(f"{video.name}: its unfinished rows are gone; index it again")
        _publish(job, video, rows, outcome.sha256, outcome.duration)
    except GranAlignError as error:
        return replace(outcome, error=str(error))
    return replace(outcome, indexed=True)


def _read_part(first: int, content: bytes) -> ClipRows | None:
    try:
        return ClipRows.from_safetensors(first, content)
    except Exception:  # damaged: safetensors and JSON raise many types
        return None


def stored_parts(job: Job, video: SourceVideo) -> dict[tuple[int, int], str]:
    """Return the first and last clip of each stored chunk of a video, and its file's name."""
    folder = job.parts_folder(video)
    names = [name.rpartition("/")[2] for name in job.out.list(folder)]
    edges = {name: name.split("-") for name in names}
    return {
        (int(pair[0]), int(pair[1])): name
        for name, pair in edges.items()
        if len(pair) == 2 and all(edge.isdigit() for edge in pair)
    }


def _publish(
    job: Job, video: SourceVideo, rows: Sequence[ClipRows], sha256: str, duration: float
) -> None:
    address = Address.find(video.name)
    path = Path(video.name) if address is None else address.to_path()
    index = join_rows(
        rows,
        video.vid,
        VideoSource(path, video.bytes, sha256),
        duration=duration,
        clip_seconds=job.clip_seconds,
        fingerprints=job.fingerprints,
    )
    put_index(job.out, index)
