"""Chunks: stretches of frames of one video, which pass from stage to stage."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.index.models import Descriptions
from granalign_fast.index.row_arrays import clip_rows
from granalign_fast.index.work_folder import ClipRows
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.types import Image
from granalign_fast.video.frames import Frame

from .records import SourceVideo

MOST_BYTES = 1 << 26
"""Bytes of the pictures of a chunk: 64 MiB are 77 frames of 640 x 480, or 10 of 1920 x 1080."""
MOST_CLIPS = 128
"""Clips of a chunk. The rows of a chunk are one file until the video is complete."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive frames of a video, and what models have said of them so far.

    Attributes:
        video: the video.
        sha256: of the video file, in hex.
        duration: of the video in seconds, as `probe` says.
        frames: the frames; none if their rows are stored already or the video has failed.
        hashes: of each frame.
        first: the number of the first clip.
        end: the number of the last clip plus one.
        last: whether the video ends with it.
        captions: of the frames; None before the captioner.
        embeddings: of the captions, `(frames, dim)`; None before the sentence encoder.
        frame_embeddings: of the frames, `(frames, dim)`; None before the frame encoder.
        error: why the video cannot be indexed; None if nothing is wrong.
        warnings: what was said about the video.
    """

    video: SourceVideo
    first: int = 0
    end: int = 0
    last: bool = False
    sha256: str = ""
    duration: float = 0.0
    frames: tuple[Frame, ...] = ()
    hashes: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    embeddings: npt.NDArray[Any] | None = None
    frame_embeddings: npt.NDArray[Any] | None = None
    error: str | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def images(self) -> list[Image]:
        """The pictures of the frames, as `Frame.image`."""
        return [frame.image for frame in self.frames]

    def failed(self, error: str) -> Chunk:
        """Return the chunk of a video that cannot be indexed; it has no frames."""
        return Chunk(self.video, self.first, self.end, error=error, warnings=self.warnings)

    def rows(self) -> ClipRows:
        """Return the rows of the frames, by the function that every index goes through."""
        described = Descriptions(self.captions, self.embeddings, self.frame_embeddings)
        return clip_rows(self.frames, self.hashes, described)

    def without_pictures(self) -> Chunk:
        """Return the chunk with frames of no pixels, after the last stage that looks at them."""
        empty = np.empty((0, 0, 3), np.uint8)
        return replace(self, frames=tuple(replace(frame, image=empty) for frame in self.frames))

    def to_row(self) -> dict[str, bytes]:
        """Return the chunk as columns of bytes: ``head``, ``arrays`` and ``pixels``."""
        from safetensors.numpy import save

        video = self.video
        head = {
            "video": [video.vid, video.name, video.bytes, video.modified_ns],
            "chunk": [self.first, self.end, self.last, self.sha256, self.duration],
            "frames": [[f.clip, f.time, f.missing, f.image.shape, f.later] for f in self.frames],
            "hashes": self.hashes,
            "captions": self.captions,
            "error": self.error,
            "warnings": self.warnings,
        }
        arrays = {"embeddings": self.embeddings, "frames": self.frame_embeddings}
        present = {k: np.ascontiguousarray(v) for k, v in arrays.items() if v is not None}
        return {
            "head": json.dumps(head).encode(),
            "arrays": save(present),
            "pixels": b"".join(np.ascontiguousarray(image).data for image in self.images),
        }

    @classmethod
    def from_row(cls, head: bytes, arrays: bytes, pixels: Any) -> Chunk:
        """Read what `to_row` returned; the frames share the memory of `pixels`."""
        from safetensors.numpy import load

        record, loaded = parse_json(head), load(arrays)
        flat = np.frombuffer(pixels, np.uint8)
        frames, begin = [], 0
        for clip, time, missing, shape, later in record["frames"]:
            end = begin + int(np.prod(shape))
            image = flat[begin:end].reshape(shape)
            frames.append(Frame(clip, time, image, missing, tuple(later)))
            begin = end
        captions = record["captions"]
        first, last_clip, last, sha256, duration = record["chunk"]
        return cls(
            SourceVideo(*record["video"]),
            first,
            last_clip,
            last,
            sha256,
            duration,
            frames=tuple(frames),
            hashes=tuple(record["hashes"]),
            captions=None if captions is None else tuple(captions),
            embeddings=loaded.get("embeddings"),
            frame_embeddings=loaded.get("frames"),
            error=record["error"],
            warnings=tuple(record["warnings"]),
        )


def chunk_clips(image: Image, batch: int) -> int:
    """Return how many clips form a chunk: whole batches of so many clips, at least one.

    Args:
        image: of the first clip, as `Frame.image`.
        batch: clips in a batch.
    """
    fit = min(MOST_BYTES // max(image.nbytes, 1), MOST_CLIPS)
    return max(fit // batch, 1) * batch
