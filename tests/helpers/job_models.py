"""Stand-ins for the models of an indexing job, whose results do not depend on the batch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from granalign_fast.index import IndexModels
from granalign_fast.types import FrameSet, Image

from .fakes import BagOfWords
from .index_worker import FINGERPRINTS, colour, write_video

VIDEOS = {"street": 40, "yard": 3, "kitchen": 6}
"""Seconds of each video, of half as many clips."""


class PlainCaptioner:
    """A captioner that names a frame's colour, and notes how many frames it has seen.

    Args:
        log: a file to which it adds a line for each frame.
        kill_in: a folder: the first process that writes the file ``dead`` into it dies in the
            middle of a batch.
        delay: seconds that each batch takes.
    """

    def __init__(self, log: Path | None, kill_in: Path | None, delay: float) -> None:
        self._log, self._kill_in, self._delay = log, kill_in, delay

    def agnostic(self, frames: FrameSet) -> list[str]:
        images = frames.load(range(len(frames)))
        time.sleep(self._delay)
        if self._log is not None:
            with self._log.open("a") as log:
                log.writelines(f"{name}\n" for name in frames.hashes)
        if self._kill_in is not None and not (self._kill_in / "dead").exists():
            (self._kill_in / "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [f"a {colour(image)} picture of {image.mean():.1f}" for image in images]

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        raise AssertionError("no query is known while videos are indexed")


class PlainProjection:
    """A frame encoder that projects the mean colour of each frame for itself."""

    fingerprint = FINGERPRINTS["clip"]

    def encode_frames(self, frames: Sequence[Image]) -> npt.NDArray[np.float32]:
        matrix = np.random.default_rng(3).normal(size=(3, 8))
        rows = [frame.mean(axis=(0, 1)) @ matrix for frame in frames]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        raise AssertionError("no query is known while videos are indexed")


class JobModels:
    """The models of a job; an instance is picklable and opens itself.

    Args:
        log: as for `PlainCaptioner`.
        kill_in: as for `PlainCaptioner`.
        delay: as for `PlainCaptioner`.
        fingerprints: of the models.
    """

    threads: int | None = None

    def __init__(
        self,
        log: Path | None = None,
        kill_in: Path | None = None,
        delay: float = 0.0,
        fingerprints: dict[str, str] = FINGERPRINTS,
    ) -> None:
        self.fingerprints = fingerprints
        self.captioner = PlainCaptioner(log, kill_in, delay)
        self.frame_encoder = PlainProjection()
        self.encoder = BagOfWords()

    def __call__(self) -> JobModels:
        return self

    def of_this_machine(self) -> IndexModels:
        """Return the same models for `index_videos`."""
        return IndexModels(self.captioner, self.encoder, self.frame_encoder, self.fingerprints)


def write_job_videos(folder: Path) -> list[Path]:
    """Write the videos of `VIDEOS`."""
    return [
        write_video(folder / f"{name}.mp4", -(-seconds // 2), seed)
        for seed, (name, seconds) in enumerate(VIDEOS.items())
    ]
