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

    captions: tuple[str, ...] | None
    """None without a captioner."""
    embeddings: npt.NDArray[Any] | None
    """`(frames, dim)`, of the captions; None without a captioner."""
    frame_embeddings: npt.NDArray[Any] | None
    """`(frames, dim)`; None without a frame encoder."""


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
            images: the same frames, uint8 RGB (height, width, 3) each.
            frame_embeddings: of these frames, `(frames, dim)`, if they are known already.

        Raises:
            GranAlignError: a model refuses a frame, or its result has the wrong length or type.
        """
        count = len(images)
        captions, embeddings = self._caption(frames, count)
        if self.frame_encoder is None:
            return Descriptions(captions, embeddings, None)
        if frame_embeddings is None:
            frame_embeddings = self.frame_encoder.encode_frames(images)
        return Descriptions(
            captions, embeddings, _checked_embeddings(frame_embeddings, count, "frame encoder")
        )

    def _caption(
        self, frames: FrameSet, count: int
    ) -> tuple[tuple[str, ...], npt.NDArray[Any]] | tuple[None, None]:
        """Return the captions of `count` frames and their embeddings."""
        if self.captioner is None or self.encoder is None:
            return None, None
        captions = tuple(self.captioner.agnostic(frames))
        if len(captions) != count:
            raise GranAlignError(f"captioner: got {len(captions)} captions, expected {count}")
        for text in captions:
            if not is_text(text):
                raise GranAlignError(f"captioner: got {text!r}, expected a Unicode text")
        return captions, _checked_embeddings(self.encoder.encode(captions), count, "encoder")


def _checked_embeddings(rows: npt.NDArray[Any], count: int, model: str) -> npt.NDArray[Any]:
    """Return `rows`, or raise unless they are `count` rows of float32 or float16."""
    if rows.ndim != 2 or len(rows) != count or rows.dtype not in (np.float32, np.float16):
        raise GranAlignError(
            f"{model}: got {rows.dtype} {rows.shape}, expected float32 or float16 ({count}, dim)"
        )
    return rows
