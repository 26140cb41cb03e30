"""A `VideoIndex` as a folder: a manifest, a table of clips, and embeddings. Nothing is pickled.

``manifest.json`` says what the index is of and names the SHA-256 of the two other files;
``clips.parquet`` has a row for each clip; ``embeddings.safetensors`` holds ``captions`` and, where
CLIP has seen the frames, ``frames``. Equal indexes make equal files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.files import appearing

from .columns import pack_clips, unpack_clips, unpack_tensors
from .manifest import AGAIN, CLIPS, EMBEDDINGS, MANIFEST, IndexManifest, put
from .records import CaptionedVideo, FrameTable, check_rows


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """A captioned video, the embeddings of its captions, and what is known of its frames.

    Raises:
        GranAlignError: the embeddings are not float32 or float16 with a row for each caption, or
            the frames are not as many.
    """

    video: CaptionedVideo
    embeddings: npt.NDArray[Any] = field(repr=False)
    """`(clips, dim)`, rows of unit length."""
    frames: FrameTable | None = None
    """None where the captions were given without a video."""
    models: Mapping[str, str] = field(default_factory=dict)
    """The fingerprints of the models that made it, by what they are: ``sentence-encoder``, ..."""

    def __post_init__(self) -> None:
        vid, clips = self.video.vid, len(self.video.captions)
        check_rows(self.embeddings, clips, f"embeddings of {vid!r}", "a row for each caption")
        if self.frames is not None and len(self.frames.hashes) != clips:
            raise GranAlignError(
                f"frames of {vid!r}: got {len(self.frames.hashes)}, expected {clips}, one for "
                f"each caption"
            )
        for name, model in self.models.items():
            if not isinstance(name, str) or not isinstance(model, str):
                raise GranAlignError(
                    f"models of {vid!r}: got {name!r}: {model!r}, expected a fingerprint as a text"
                )

    @staticmethod
    def load(folder: str | Path) -> VideoIndex:
        """Read the folder that `save`, or ``granalign index``, wrote.

        Raises:
            GranAlignError: the folder is missing, torn, altered, or of another kind or format.
        """
        return _load(Path(folder))

    def save(self, folder: str | Path) -> None:
        """Write the index as a folder, whole or not at all.

        Raises:
            GranAlignError: the folder exists or cannot be written, or a caption is not Unicode.
        """
        with appearing(Path(folder)) as draft:
            write(self, draft)

    def seconds(self, clip: int) -> float:
        """Where clip number `clip` begins; the end of the video for the one after the last."""
        time = clip * self.video.clip_seconds
        return time if self.video.duration is None else min(time, self.video.duration)


def write(index: VideoIndex, folder: Path) -> None:
    """Write an index into a folder that is there and empty; the manifest comes last.

    Raises:
        GranAlignError: a caption is not Unicode.
    """
    from safetensors.numpy import save as pack

    video, frames = index.video, index.frames
    tensors = {"captions": np.ascontiguousarray(index.embeddings)}
    if frames is not None and frames.embeddings is not None:
        tensors["frames"] = np.ascontiguousarray(frames.embeddings)
    contents = {CLIPS: pack_clips(video.vid, video.captions, frames), EMBEDDINGS: pack(tensors)}
    for name, content in contents.items():
        put(folder / name, content)
    IndexManifest(
        vid=video.vid,
        source=None if frames is None else frames.source,
        clip_seconds=video.clip_seconds,
        duration=video.duration,
        clips=len(video.captions),
        models=dict(index.models),
        files={name: _sha256(content) for name, content in contents.items()},
    ).write(folder)


def _load(folder: Path) -> VideoIndex:
    """Read an index, and check every file of it.

    Raises:
        GranAlignError: the folder is missing, torn, altered, or of another kind or format.
    """
    manifest = IndexManifest.read(folder)
    contents = {name: _get(folder / name, digest) for name, digest in manifest.files.items()}
    captions, times, hashes = unpack_clips(folder / CLIPS, contents[CLIPS])
    tensors = unpack_tensors(folder / EMBEDDINGS, contents[EMBEDDINGS])
    if len(captions) != manifest.clips:
        raise GranAlignError(
            f"{folder / CLIPS}: got {len(captions)} clips, expected {manifest.clips} as "
            f"{MANIFEST} says; {AGAIN}"
        )
    if hashes is None and ("frames" in tensors or manifest.source is not None):
        raise GranAlignError(
            f"{folder / CLIPS}: got no frames, expected those of {EMBEDDINGS} and {MANIFEST}; "
            f"{AGAIN}"
        )
    try:
        video = CaptionedVideo(manifest.vid, captions, manifest.clip_seconds, manifest.duration)
        frames = None
        if hashes is not None:
            frames = FrameTable(times, hashes, tensors.get("frames"), manifest.source)
        return VideoIndex(video, tensors["captions"], frames, manifest.models)
    except GranAlignError as error:
        raise GranAlignError(f"{folder}: {error}; {AGAIN}") from None


def _get(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GranAlignError(
            f"{path}: cannot be read ({error.strerror or error}); {AGAIN}"
        ) from None
    if (got := _sha256(content)) != digest:
        raise GranAlignError(f"{path}: altered, got SHA-256 {got}, expected {digest}; {AGAIN}")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
