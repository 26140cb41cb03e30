"""The models that describe the frames of a video, passed around as one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.protocols import Captioner, ImageTextEncoder, TextEncoder
from granalign_fast.types import FrameSet, Image

from .columns import is_text


class Descriptions(NamedTuple):
    """The models' results for a batch of frames."""

    captions: tuple[str, ...]
    embeddings: npt.NDArray[Any]
    """`(frames, dim)`, of the captions."""
    frame_embeddings: npt.NDArray[Any] | None
    """`(frames, dim)`; None without a frame encoder."""


@dataclass(frozen=True, slots=True)
class IndexModels:
    """The models that describe the frames of a video, and the fingerprints that identify them.

    Attributes:
        captioner: writes a query-agnostic caption for each frame.
        encoder: embeds the captions.
        frame_encoder: embeds the frames; None leaves their embeddings out of the index.
        fingerprints: the models' fingerprints by kind, such as ``{"vlm": ..., "clip": ...}``. When
            one changes, the videos are indexed again.

    Raises:
        GranAlignError: a kind or a fingerprint is not a string.
    """

    captioner: Captioner
    encoder: TextEncoder
    frame_encoder: ImageTextEncoder | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, fingerprint in self.fingerprints.items():
            if not isinstance(kind, str) or not isinstance(fingerprint, str):
                raise GranAlignError(
                    f"fingerprints: got {kind!r}: {fingerprint!r}, expected two strings"
                )

    def describe(self, frames: FrameSet, images: Sequence[Image]) -> Descriptions:
        """Caption a batch of frames and embed the captions and the frames.

        Args:
            frames: the batch, with the hash of each frame.
            images: the same frames, uint8 RGB (height, width, 3) each.

        Raises:
            GranAlignError: a model refuses a frame, or its result has the wrong length or type.
        """
        count = len(images)
        captions = tuple(self.captioner.agnostic(frames))
        if len(captions) != count:
            raise GranAlignError(f"captioner: got {len(captions)} captions, expected {count}")
        for text in captions:
            if not is_text(text):
                raise GranAlignError(f"captioner: got {text!r}, expected a Unicode text")
        embeddings = _checked_embeddings(self.encoder.encode(captions), count, "encoder")
        if self.frame_encoder is None:
            return Descriptions(captions, embeddings, None)
        frame_embeddings = self.frame_encoder.encode_frames(images)
        return Descriptions(
            captions, embeddings, _checked_embeddings(frame_embeddings, count, "frame encoder")
        )


def _checked_embeddings(rows: npt.NDArray[Any], count: int, model: str) -> npt.NDArray[Any]:
    """Return `rows`, or raise unless they are `count` rows of float32 or float16."""
    if rows.ndim != 2 or len(rows) != count or rows.dtype not in (np.float32, np.float16):
        raise GranAlignError(
            f"{model}: got {rows.dtype} {rows.shape}, expected float32 or float16 ({count}, dim)"
        )
    return rows
