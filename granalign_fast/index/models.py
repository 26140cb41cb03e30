"""The models that describe the frames of a video, passed around as one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.protocols import Captioner, ClipCaptioner, ImageTextEncoder, TextEncoder
from granalign_fast.types import FrameSet, Image

from .columns import is_text


class Descriptions(NamedTuple):
    """The models' results for a batch of frames."""

    captions: tuple[str, ...] | None
    """None without a captioner."""
    embeddings: npt.NDArray[Any] | None
    """`(frames, dim)`, of the captions; None without a captioner."""
    frame_embeddings: npt.NDArray[Any] | None
    """`(frames, dim)`; None without a frame encoder."""

    def cut(self, part: slice) -> Descriptions:
        """Return the results for some frames of the batch."""
        captions, embeddings, frames = self
        return Descriptions(
            None if captions is None else captions[part],
            None if embeddings is None else embeddings[part],
            None if frames is None else frames[part],
        )


@dataclass(frozen=True, slots=True)
class IndexModels:
    """The models that describe the frames of a video, and the fingerprints that identify them.

    Attributes:
        captioner: writes a query-agnostic caption for each frame; None makes an index without
            captions.
        encoder: embeds the captions; None without a captioner.
        frame_encoder: embeds the frames; None leaves their embeddings out of the index.
        fingerprints: the models' fingerprints by kind, such as ``{"vlm": ..., "clip": ...}``. When
            one changes, the videos are indexed again.

    Raises:
        GranAlignError: a kind or a fingerprint is not a string, a captioner has no encoder, or
            there is neither a captioner nor a frame encoder.
    """

    captioner: Captioner | None
    encoder: TextEncoder | None
    frame_encoder: ImageTextEncoder | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, fingerprint in self.fingerprints.items():
            if not isinstance(kind, str) or not isinstance(fingerprint, str):
                raise GranAlignError(
                    f"fingerprints: got {kind!r}: {fingerprint!r}, expected two strings"
                )
        if (self.captioner is None) != (self.encoder is None):
            raise GranAlignError(
                f"captioner: got {self.captioner!r} with the encoder {self.encoder!r}, expected "
                f"both or neither: captions are embedded"
            )
        if self.captioner is None and self.frame_encoder is None:
            raise GranAlignError(
                "captioner: got None and no frame encoder, expected at least one of the two"
            )

    def check_clips(self, frames_per_clip: int) -> None:
        """Raise unless the captioner takes clips of so many frames.

        Raises:
            GranAlignError: it does not.
        """
        check_captioner(self.captioner, frames_per_clip)

    def describe(
        self,
        frames: FrameSet,
        images: Sequence[Image],
        *,
        frame_embeddings: npt.NDArray[Any] | None = None,
    ) -> Descriptions:
        """Caption a batch of frames and embed the captions and the frames.

        Args:
            frames: the batch, with the hash of each frame.
            images: the same frames, uint8 RGB (height, width, 3) each; with several frames per clip
                the clips, (frames, height, width, 3).
            frame_embeddings: of these, `(frames, dim)` or `(clips, dim)`, if they are known.

        Raises:
            GranAlignError: a model refuses a frame, or its result has the wrong length or type.
        """
        captions = embeddings = None
        if self.captioner is not None and self.encoder is not None:
            captions = caption_frames(self.captioner, frames)
            embeddings = embed_captions(self.encoder, captions)
        if self.frame_encoder is None:
            return Descriptions(captions, embeddings, None)
        if frame_embeddings is None:
            frame_embeddings = embed_frames(self.frame_encoder, images)
        checked = _checked_embeddings(frame_embeddings, len(images), "frame encoder")
        return Descriptions(captions, embeddings, checked)


def check_captioner(captioner: Captioner | None, frames_per_clip: int) -> None:
    """Raise unless a captioner takes clips of so many frames; each takes single frames.

    One that does not say what it takes is asked for captions.

    Raises:
        GranAlignError: it does not.
    """
    if frames_per_clip > 1 and isinstance(captioner, ClipCaptioner):
        captioner.check_clips(frames_per_clip)


def caption_frames(captioner: Captioner, frames: FrameSet) -> tuple[str, ...]:
    """Return a query-agnostic caption of each frame.

    Raises:
        GranAlignError: the captioner refuses a frame, or its result has the wrong length or type.
    """
    captions = tuple(captioner.agnostic(frames))
    if len(captions) != len(frames):
        raise GranAlignError(f"captioner: got {len(captions)} captions, expected {len(frames)}")
    for text in captions:
        if not is_text(text):
            raise GranAlignError(f"captioner: got {text!r}, expected a Unicode text")
    return captions


def embed_captions(encoder: TextEncoder, captions: Sequence[str]) -> npt.NDArray[Any]:
    """Return the embeddings of captions, `(captions, dim)`.

    Raises:
        GranAlignError: the result has the wrong shape or type.
    """
    return _checked_embeddings(encoder.encode(captions), len(captions), "encoder")


def embed_frames(encoder: ImageTextEncoder, images: Sequence[Image]) -> npt.NDArray[Any]:
    """Return the embeddings of frames, `(frames, dim)`, or of clips, `(clips, dim)`.

    The embedding of a clip is the mean of those of its frames, rescaled to unit length.

    Args:
        encoder: the frame encoder.
        images: the frames, uint8 RGB (height, width, 3) each; or clips of equally many frames,
            (frames, height, width, 3) each.

    Raises:
        GranAlignError: the encoder refuses a frame, or its result has the wrong shape or type.
    """
    if images[0].ndim == 3:
        return _checked_embeddings(encoder.encode_frames(images), len(images), "frame encoder")
    frames = [frame for clip in images for frame in clip]
    rows = _checked_embeddings(encoder.encode_frames(frames), len(frames), "frame encoder")
    means = rows.reshape(len(images), -1, rows.shape[1]).mean(axis=1, dtype=np.float64)
    # Frames that cancel each other out have no direction: their mean is left as it is.
    lengths = np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.asarray(means / lengths).astype(rows.dtype)


def _checked_embeddings(rows: npt.NDArray[Any], count: int, model: str) -> npt.NDArray[Any]:
    """Return `rows`, or raise unless they are `count` rows of float32 or float16."""
    if rows.ndim != 2 or len(rows) != count or rows.dtype not in (np.float32, np.float16):
        raise GranAlignError(
            f"{model}: got {rows.dtype} {rows.shape}, expected float32 or float16 ({count}, dim)"
        )
    return rows
