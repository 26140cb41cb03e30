"""Index a few tiny videos with stand-ins for the models; as a script, until it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from granalign_fast.index import IndexModels
from granalign_fast.index.builder import index_videos
from granalign_fast.types import FrameSet, frame_hash
from granalign_fast.video.frames import read_frames
from helpers.fakes import BagOfWords
from helpers.videos import constant, render

Array = npt.NDArray[Any]

ROWS = 4
CLIPS = {"street": 5, "yard": 2, "kitchen": 6}
"""Clips of each video: one batch has frames of three videos, one of one, the last is short."""
FINGERPRINTS = {"vlm": "colours", "clip": "projection", "sentence-encoder": BagOfWords.fingerprint}
COLOURS = ("black", "blue", "green", "teal", "red", "purple", "yellow", "white")


class ColourCaptioner:
    """A captioner that names a frame's colour; the caption also depends on the whole batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []

    def agnostic(self, frames: FrameSet) -> list[str]:
        self.batches.append(frames.hashes)
        batch = zlib.crc32("".join(frames.hashes).encode())
        return [
            f"a {colour(image)} picture in batch {batch}"
            for image in frames.load(range(len(frames)))
        ]

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        raise AssertionError("no query is known while videos are indexed")


class Projection:
    """A frame encoder that projects the mean colour; the result depends slightly on the batch."""

    dim = 8

    def encode_frames(self, frames: Sequence[Array]) -> npt.NDArray[np.float32]:
        matrix = np.random.default_rng(3).normal(size=(3, self.dim))
        rows = np.stack([frame.mean(axis=(0, 1)) for frame in frames]) @ matrix
        rows += 1e-4 * rows.mean(axis=0)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def colour(image: Array) -> str:
    red, green, blue = (image.reshape(-1, 3).mean(axis=0) > 128).tolist()
    return COLOURS[4 * red + 2 * green + blue]


def stand_ins(**changes: Any) -> IndexModels:
    """The stand-ins for the models, with some fields changed."""
    models = IndexModels(ColourCaptioner(), BagOfWords(), Projection(), FINGERPRINTS)
    return replace(models, **changes)


def write_video(path: Path, clips: int, seed: int) -> Path:
    """Write a video of clips of two seconds, the last one shorter, each of another colour."""
    times = constant(2, 2 * clips - 0.5)
    values = np.random.default_rng(seed).integers(0, 256, (clips, 3))
    drawn = [np.full((48, 64, 3), values[int(time // 2)], np.uint8) for time in times]
    return render(path, times, drawn=drawn)


def write_videos(folder: Path) -> list[Path]:
    return [
        write_video(folder / f"{name}.mp4", clips, seed)
        for seed, (name, clips) in enumerate(CLIPS.items())
    ]


def videos_in(folder: Path) -> list[Path]:
    return [folder / f"{name}.mp4" for name in CLIPS]


Tree = dict[str, bytes]
"""The files of a folder by their paths."""


def index(
    folder: Path, out: Path, models: IndexModels | None = None, **settings: Any
) -> list[Path]:
    """Index the videos of a folder, with the stand-ins unless other models are given."""
    return index_videos(videos_in(folder), out, models or stand_ins(), rows=ROWS, **settings)


def tree(folder: Path) -> Tree:
    """Return every file and folder, also unexpected ones."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


class AnsweringCaptioner(ColourCaptioner):
    """A captioner whose captions a function returns."""

    def __init__(self, answer: Callable[[FrameSet], Any]) -> None:
        super().__init__()
        self.answer = answer

    def agnostic(self, frames: FrameSet) -> list[str]:
        answer: list[str] = self.answer(frames)
        return answer


class UnusedModel:
    """A stand-in for a model that must not run."""

    def check_clips(self, frames: int) -> None:
        """Accept any: to be asked is not to run."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the model ran ({name}), although nothing has changed")


UNUSED = stand_ins(captioner=UnusedModel(), encoder=UnusedModel(), frame_encoder=UnusedModel())


def captioned(
    folder: Path, out: Path, fingerprints: Mapping[str, str] = FINGERPRINTS, **settings: Any
) -> set[str]:
    """Index the videos, and return the names of those whose frames were captioned."""
    captioner = ColourCaptioner()
    index(folder, out, stand_ins(captioner=captioner, fingerprints=fingerprints), **settings)
    hashes = {frame for batch in captioner.batches for frame in batch}
    return {
        path.stem
        for path in videos_in(folder)
        if hashes & {frame_hash(frame.image) for frame in read_frames(path)}
    }


class Killed(BaseException):
    """The death of the process: nothing may catch it, and no file changes any more."""


@contextmanager
def dying(at: int, die: Callable[[], None] | None = None) -> Iterator[list[str]]:
    """Die at change number `at` of the file system, counted from 0, and at every later change.

    Without `die`, death is a `Killed` exception. Code that cleans up meets it again at each change.

    Yields:
        The changes so far, such as ``"rename draft/street"``.
    """
    done: list[str] = []

    def hooked(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def change(path: Any, *args: Any, **kwargs: Any) -> Any:
            if len(done) >= at:
                if die is not None:
                    die()
                raise Killed
            done.append(f"{name} {path}")
            return real(path, *args, **kwargs)

        return change

    with mock.patch.multiple(
        os, **{name: hooked(name) for name in ("replace", "rename", "unlink", "rmdir", "mkdir")}
    ):
        yield done


def start(folder: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start this module as a script, and wait until it begins to index."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "helpers.index_worker", str(folder), str(out), *more],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
    worker.stdout.close()
    return worker


def main(videos: str, out: str, at: str = str(sys.maxsize)) -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with dying(int(at), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        index_videos(videos_in(Path(videos)), out, stand_ins(), rows=ROWS)


if __name__ == "__main__":
    main(*sys.argv[1:])
