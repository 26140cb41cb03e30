"""Save and load a `VideoIndex` as a folder of three files. Nothing is pickled.

``manifest.json`` describes the video and has the SHA-256 of the two other files;
``clips.parquet`` has a row for each clip; ``embeddings.safetensors`` holds ``captions`` and, if a
frame encoder was used, ``frames``. An index without captions has neither a column ``caption`` nor
the tensor ``captions``. Equal indexes have equal files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.files import appearing
from granalign_fast.parsing.limits import MOST_INDEX_BYTES
from granalign_fast.reading import read_file

from .columns import read_clip_table, read_embeddings, write_clip_table
from .manifest import CLIPS, EMBEDDINGS, MANIFEST, REINDEX, IndexManifest, write_durably
from .records import (
    CaptionedVideo,
    FrameTable,
    IndexedVideo,
    UncaptionedVideo,
    check_rows,
    frame_seconds,
)


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """A video, the embeddings of its captions, and its frames. It may have no captions.

    Raises:
        GranAlignError: the embeddings are not float32 or float16 with a row for each caption, the
            number of frames differs from the number of clips, there are embeddings neither of
            captions nor of frames, or a model's fingerprint is not a string.
    """

    video: IndexedVideo
    """An `UncaptionedVideo` if the index was made without a vision-language model."""
    embeddings: npt.NDArray[Any] | None
    """Embeddings of the captions, `(clips, dim)`, rows of unit length; None without captions."""
    frames: FrameTable | None = None
    """None if the index was made from captions alone, without a video file."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the models that made the index, by kind: ``sentence-encoder``, ..."""

    def __repr__(self) -> str:
        video, frames = self.video, self.frames
        dim = None if self.embeddings is None else self.embeddings.shape[1]
        return (
            f"VideoIndex(vid={video.vid!r}, clips={video.clips}, "
            f"clip_seconds={video.clip_seconds}, duration={video.duration}, "
            f"embedding_dim={dim}, frames={frames!r}, "
            f"models={dict(self.models)!r})"
        )

    def __post_init__(self) -> None:
        vid, clips = self.video.vid, self.video.clips
        if self.video.captions is None:
            self._check_uncaptioned()
        elif self.embeddings is None:
            raise GranAlignError(
                f"embeddings of {vid!r}: got None, expected a row for each caption"
            )
        else:
            check_rows(self.embeddings, clips, f"embeddings of {vid!r}", "a row for each caption")
        if self.frames is not None and len(self.frames.hashes) != clips:
            each = "clip" if self.video.captions is None else "caption"
            raise GranAlignError(
                f"frames of {vid!r}: got {len(self.frames.hashes)}, expected {clips}, one for "
                f"each {each}"
            )
        for name, model in self.models.items():
            if not isinstance(name, str) or not isinstance(model, str):
                raise GranAlignError(
                    f"models of {vid!r}: got {name!r}: {model!r}, expected two strings"
                )

    def _check_uncaptioned(self) -> None:
        """Raise unless a video without captions has embeddings of its frames, and no others."""
        vid = self.video.vid
        if self.embeddings is not None:
            raise GranAlignError(
                f"embeddings of {vid!r}: got an array, expected None, because the video has no "
                f"captions"
            )
        if self.frames is None or self.frames.embeddings is None:
            raise GranAlignError(
                f"frames of {vid!r}: got none with embeddings, expected them, because the video "
                f"has no captions"
            )

    @property
    def frames_per_clip(self) -> int:
        """The number of frames of each clip; 1 for an index of captions alone."""
        return 1 if self.frames is None else self.frames.frames_per_clip

    @property
    def frame_seconds(self) -> float:
        """The seconds from a frame of a clip to the next; 0 for one frame per clip."""
        return frame_seconds(self.video.clip_seconds, self.frames_per_clip)

    @property
    def caption_embeddings(self) -> npt.NDArray[Any]:
        """The embeddings of the captions, `(clips, dim)`, rows of unit length.

        Raises:
            GranAlignError: the index has no captions.
        """
        if self.embeddings is None:
            raise GranAlignError(
                f"video {self.video.vid!r}: got an index without captions, expected captions; take "
                f"the preset 'visual', or add captions: index the video again with models of which "
                f"one is a vision-language model"
            )
        return self.embeddings

    @staticmethod
    def load(folder: str | Path) -> VideoIndex:
        """Read a folder that `save` or ``granalign index`` wrote.

        Raises:
            GranAlignError: the folder is missing, incomplete, altered, or of another kind or
                format.
        """
        return _read_index(Path(folder))

    def save(self, folder: str | Path) -> None:
        """Write the index as a new folder, completely or not at all.

        Raises:
            GranAlignError: the folder exists or cannot be written, or a caption is not Unicode.
        """
        if self.frames is not None and self.frames.first:
            raise GranAlignError(
                f"video {self.video.vid!r}: got a part of an index, expected a whole one"
            )
        with appearing(Path(folder)) as draft:
            write_index(self, draft)

    def part(self, begin: int, end: int) -> VideoIndex:
        """Return the clips from `begin` up to `end` as the index of a video of its own.

        Its seconds count from its own beginning. Arrays are not copied. It is searched like any
        other, and cannot be saved.
        """
        length = self.seconds(end) - self.seconds(begin)
        video: IndexedVideo
        if self.video.captions is None:
            video = replace(self.video, clips=end - begin, duration=length)
        else:
            captions = self.video.captions[begin:end]
            video = replace(self.video, captions=captions, duration=length)
        frames = self.frames
        if frames is not None:
            frames = replace(
                frames,
                times=frames.times[begin:end],
                later=None if frames.later is None else frames.later[begin:end],
                hashes=frames.hashes[begin:end],
                embeddings=None if frames.embeddings is None else frames.embeddings[begin:end],
                missing=(),
                first=frames.first + begin,
            )
        embeddings = None if self.embeddings is None else self.embeddings[begin:end]
        return VideoIndex(video, embeddings, frames, self.models)

    def seconds(self, clip: int) -> float:
        """Return the second at which clip number `clip` begins.

        For the number after the last clip this is the end of the video.
        """
        return self.video.seconds(clip)


def write_index(index: VideoIndex, folder: Path) -> None:
    """Write an index into an existing, empty folder; the manifest comes last.

    Raises:
        GranAlignError: a caption is not Unicode.
    """
    from safetensors.numpy import save

    video, frames = index.video, index.frames
    tensors = {}
    if index.embeddings is not None:
        tensors["captions"] = np.ascontiguousarray(index.embeddings)
    if frames is not None and frames.embeddings is not None:
        tensors["frames"] = np.ascontiguousarray(frames.embeddings)
    contents = {
        CLIPS: write_clip_table(video, frames),
        EMBEDDINGS: save(tensors),
    }
    for name, content in contents.items():
        write_durably(folder / name, content)
    IndexManifest(
        vid=video.vid,
        source=None if frames is None else frames.source,
        clip_seconds=video.clip_seconds,
        duration=video.duration,
        missing=[] if frames is None else [list(stretch) for stretch in frames.missing],
        clips=video.clips,
        frames_per_clip=index.frames_per_clip,
        captions=video.captions is not None,
        models=dict(index.models),
        files={name: _sha256(content) for name, content in contents.items()},
    ).write(folder)


def _read_index(folder: Path) -> VideoIndex:
    """Read an index and check each of its files.

    Raises:
        GranAlignError: the folder is missing, incomplete, altered, or of another kind or format.
    """
    # 1. Read the manifest, then the two files whose hashes it lists.
    manifest = IndexManifest.read(folder)
    contents = {
        name: _read_verified(folder / name, digest) for name, digest in manifest.files.items()
    }
    captioned = manifest.captions
    table = read_clip_table(
        folder / CLIPS,
        contents[CLIPS],
        captioned=captioned,
        frames_per_clip=manifest.frames_per_clip,
    )
    tensors = read_embeddings(folder / EMBEDDINGS, contents[EMBEDDINGS], captioned=captioned)
    # 2. Check that the files agree with the manifest and with each other.
    if len(table.times) != manifest.clips:
        raise GranAlignError(
            f"{folder / CLIPS}: got {len(table.times)} clips, expected {manifest.clips} as "
            f"in {MANIFEST}; {REINDEX}"
        )
    if table.hashes is None and ("frames" in tensors or manifest.source is not None):
        raise GranAlignError(
            f"{folder / CLIPS}: got no frames, expected those of {EMBEDDINGS} and {MANIFEST}; "
            f"{REINDEX}"
        )
    # 3. Build the records, which check their own fields.
    try:
        lengths = manifest.clip_seconds, manifest.duration
        video: IndexedVideo
        if table.captions is None:
            video = UncaptionedVideo(manifest.vid, manifest.clips, *lengths)
        else:
            video = CaptionedVideo(manifest.vid, table.captions, *lengths)
        frames = None
        if table.hashes is not None:
            frames = FrameTable(
                table.times,
                table.hashes,
                tensors.get("frames"),
                manifest.source,
                tuple((begin, end) for begin, end in manifest.missing),
                later=table.later,
            )
        return VideoIndex(video, tensors.get("captions"), frames, manifest.models)
    except (GranAlignError, ValueError) as error:  # the latter of a stretch that is no pair
        raise GranAlignError(f"{folder}: {error}; {REINDEX}") from None


def _read_verified(path: Path, digest: str) -> bytes:
    """Read a file and compare its SHA-256 with the manifest's."""
    content = read_file(path, MOST_INDEX_BYTES, inside=path.parent, remedy=REINDEX)
    if (got := _sha256(content)) != digest:
        raise GranAlignError(f"{path}: altered, got SHA-256 {got}, expected {digest}; {REINDEX}")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
