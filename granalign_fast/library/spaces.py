"""The spaces in which a search compares queries with clips: of captions, of frames, or of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.models.manifest import same_weights
from granalign_fast.protocols import query_encoder
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Rewrites

from .first_stage import Texts
from .records import CataloguedVideo
from .segment import SegmentRecord
from .similarities import Compared, Floats


class Spaces:
    """Embeds queries for the first stage, and tells which videos can be compared with them.

    Args:
        retriever: its configuration says what is compared, and its encoders embed.
    """

    def __init__(self, retriever: Retriever) -> None:
        config = retriever.config
        alone = config.scorer == "frames"
        fused = bool(config.first_stage_frames) and retriever.frame_encoder is not None
        self.by_captions = not alone
        self.by_frames = alone or fused
        self.frames_weight = 1.0 if alone else config.first_stage_frames
        """How much frames count beside captions."""
        self._encoder, self._frame_encoder = retriever.encoder, retriever.frame_encoder

    def embed(self, queries: Sequence[Rewrites]) -> list[Texts]:
        """Embed queries and their rewrites, each text once in each space."""
        groups = [(one.query, *one.simplified, *one.detailed) for one in queries]
        rows: list[Sequence[Floats | None]] = [[None] * len(groups)] * 2
        if self.by_captions:
            rows[0] = _embedded(groups, query_encoder(self._encoder).encode)
        if self.by_frames and self._frame_encoder is not None:
            rows[1] = _embedded(groups, self._frame_encoder.encode_texts)
        return [Texts.of(*one) for one in zip(groups, *rows, strict=True)]

    def reason_against(
        self, texts: Texts, segment: SegmentRecord, video: CataloguedVideo
    ) -> str | None:
        """Return why a video cannot be compared with a query; None if it can."""
        if not self.by_captions:
            if not segment.frame_dim:
                return "without embeddings of frames"
            framed = self.has_frames(texts, segment, video)
            return None if framed else "frames embedded by another model"
        if not segment.dim:
            return "without captions, for the preset visual"
        made, used = video.encoder, getattr(self._encoder, "fingerprint", None)
        if _fits(texts.captions, segment.dim) and (
            made is None or used is None or same_weights(made, used)
        ):
            return None
        return "embedded by another sentence encoder"

    def has_frames(self, texts: Texts, segment: SegmentRecord, video: CataloguedVideo) -> bool:
        """Return whether the frames of a video are compared with a query."""
        encoder = self._frame_encoder
        return (
            self.by_frames
            and encoder is not None
            and _fits(texts.frames, segment.frame_dim)
            and video.frame_encoder == encoder.fingerprint
        )


def _fits(compared: Compared | None, dim: int) -> bool:
    return compared is not None and compared.rows.shape[1] == dim


def _embedded(
    groups: Sequence[tuple[str, ...]], encode: Callable[[Sequence[str]], npt.NDArray[Any]]
) -> list[Floats]:
    """Return the embeddings of each group of texts, `(texts, dim)`."""
    flat = list(dict.fromkeys(text for group in groups for text in group))
    embeddings = np.asarray(encode(flat), np.float32)
    row = {text: number for number, text in enumerate(flat)}
    return [embeddings[[row[text] for text in group]] for group in groups]
