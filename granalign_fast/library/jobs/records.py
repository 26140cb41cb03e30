"""The records of an indexing job, all of which can be pickled and sent to another machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from granalign_fast.errors import GranAlignError
from granalign_fast.protocols import Captioner, ImageTextEncoder, TextEncoder
from granalign_fast.storage import Store

STAGES = ("decode", "frames", "captions", "texts")
"""The stages whose workers can be chosen: decoding, frame encoder, captioner, sentence encoder."""


class StageModels(Protocol):
    """The models of a job, each loaded when it is first used; `ModelFolder` is one."""

    threads: int | None
    """CPU threads of models that are loaded from now on; None for all of the machine."""

    @property
    def encoder(self) -> TextEncoder:
        """The sentence encoder."""
        ...

    @property
    def frame_encoder(self) -> ImageTextEncoder | None:
        """The encoder of frames, if there is one."""
        ...

    @property
    def captioner(self) -> Captioner | None:
        """The captioner, if there is one."""
        ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the models that indexes are made with, by kind."""
        ...


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of one stage.

    Attributes:
        least: how many there are from the start.
        most: how many Ray may start while others wait for this stage.
        gpus: of each of them, such as 0.25, 1 or 2. Above 1, Ray takes whole numbers alone. 0 runs
            it on the CPU.

    Raises:
        GranAlignError: a number is out of range.
    """

    least: int = 1
    most: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        sound = self.gpus <= 1 or float(self.gpus).is_integer()
        if not 1 <= self.least <= self.most or not 0 <= self.gpus <= 64 or not sound:
            raise GranAlignError(
                f"workers: got {self.least}-{self.most} with {self.gpus} GPUs each, expected "
                f"counts from 1, and a share of one GPU or 1 to 64 whole ones"
            )

    @classmethod
    def parse(cls, text: str, gpus: float = 0.0) -> tuple[str, Workers]:
        """Read a text such as ``captions=4``, ``captions=2-16`` or ``captions=4:0.5``.

        Args:
            text: a stage, its workers, and the GPUs of each if they are not the default.
            gpus: the default.

        Raises:
            GranAlignError: the text has another form, or there is no such stage.
        """
        stage, _, rest = text.partition("=")
        counts, colon, share = rest.partition(":")
        least, _, most = counts.partition("-")
        try:
            if stage not in STAGES:
                raise ValueError(stage)
            first = int(least)
            return stage, cls(first, int(most) if most else first, float(share) if colon else gpus)
        except ValueError as error:
            if isinstance(error, GranAlignError):
                raise
            raise GranAlignError(
                f"workers: got {text!r}, expected STAGE=COUNT, STAGE=LEAST-MOST or "
                f"STAGE=COUNT:GPUS, where STAGE is one of {', '.join(STAGES)}"
            ) from None


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """A video file of a job.

    Attributes:
        vid: the id of its index.
        name: its absolute path, or its address in an object store.
        bytes: its size.
        modified_ns: the time of its last change.
    """

    vid: str
    name: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Job:
    """The parts of a job that every worker needs.

    Attributes:
        out: where the indexes are written.
        open_models: opens the models; called once in each worker that needs one.
        fingerprints: of the models, by kind.
        clip_seconds: length of a clip in seconds.
        rows: frames in a batch.
        frames_per_clip: the number of frames of each clip.
        threads: CPU threads of each worker with a model; None for all of the machine.
    """

    out: Store
    open_models: Callable[[], StageModels]
    fingerprints: Mapping[str, str]
    clip_seconds: float
    rows: int
    frames_per_clip: int = 1
    threads: int | None = None

    def models(self) -> StageModels:
        """Open the models."""
        models = self.open_models()
        if self.threads is not None:
            models.threads = self.threads
        return models

    def parts_folder(self, video: SourceVideo) -> str:
        """Return the folder, below `out`, of the rows of a video that is not complete.

        Its name changes with all that the rows depend on.
        """
        request = [video.name, video.bytes, video.modified_ns, sorted(self.fingerprints.items())]
        request += [self.clip_seconds, self.rows]
        if self.frames_per_clip > 1:
            request.append(self.frames_per_clip)
        digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:16]
        return f"{PARTS}/{video.vid}/{digest}"


PARTS = ".indexing/parts"
"""Where, below the output, the rows of videos lie that are not complete."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one chunk of frames: its rows are stored, or its video has failed.

    Attributes:
        video: the video.
        first: the number of the chunk's first clip.
        end: the number of its last clip plus one.
        last: whether the video ends with it.
        indexed: whether the index of the video is written.
        error: why the video cannot be indexed; None if nothing is wrong.
        warnings: what was said about the video.
        duration: of the video in seconds.
        sha256: of the video file, in hex.
    """

    video: SourceVideo
    first: int
    end: int
    last: bool
    indexed: bool
    error: str | None
    warnings: tuple[str, ...]
    duration: float
    sha256: str

    def to_record(self) -> dict[str, Any]:
        """Return the outcome as plain values."""
        video = self.video
        return {
            "video": [video.vid, video.name, video.bytes, video.modified_ns],
            "chunk": [self.first, self.end, self.last, self.indexed],
            "error": self.error,
            "warnings": list(self.warnings),
            "file": [self.duration, self.sha256],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """Read what `to_record` returned."""
        first, end, last, indexed = record["chunk"]
        duration, sha256 = record["file"]
        return cls(
            SourceVideo(*record["video"]),
            first,
            end,
            last,
            indexed,
            record["error"],
            tuple(record["warnings"]),
            duration,
            sha256,
        )
