"""The curve of a video's frames for a query, which can join those of its captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.kernels import Curves, similarity
from granalign_fast.protocols import ImageTextEncoder
from granalign_fast.types import Rewrites

from .batches import Variants, first_rows
from .key_frames import frame_embeddings
from .request import Request

FrameCurve = npt.NDArray[np.float32]
"""`(clips,)`, 0 to 1: how well each frame of a video fits a query."""


def frame_variants(query: Rewrites) -> Variants:
    """Return the texts of a query that are compared with frames: the query and all its rewrites.

    Frames have no two granularities, so all texts count as simplified.
    """
    return (query.query, *query.simplified, *query.detailed), ()


def frame_curves(
    requests: Sequence[Request],
    queries: Sequence[Rewrites],
    frame_encoder: ImageTextEncoder,
    power: float,
) -> list[FrameCurve | None]:
    """Return the curve of the frames of each request: the mean over the texts of its query.

    Args:
        requests: the requests.
        queries: the query of each, rewritten.
        frame_encoder: embeds the texts; it must be the one that embedded the frames.
        power: exponent of the normalised curves.

    Returns:
        The curves; None for a request whose index is of captions alone.

    Raises:
        GranAlignError: an index has no embeddings of its frames, or those of another model, or an
            embedding is not a number.
    """
    variants = [frame_variants(query)[0] for query in queries]
    texts = [text for group in variants for text in group]
    row, embeddings = first_rows(texts), frame_encoder.encode_texts(texts)
    curves: list[FrameCurve | None] = []
    for request, group in zip(requests, variants, strict=True):
        if request.index.frames is None:
            curves.append(None)
            continue
        frames = np.ascontiguousarray(frame_embeddings(request.index, frame_encoder), np.float32)
        compared = embeddings[[row[text] for text in group]][None]
        with np.errstate(invalid="ignore"):  # infinity times 0, which is refused below
            fused = similarity(compared, frames, np.array([0, len(frames)]), power=power).fused
        if not np.isfinite(fused).all():
            raise GranAlignError(
                f"video {request.index.video.vid!r}: got frame embeddings with NaN or infinity; "
                f"delete its index and index the video again"
            )
        curves.append(fused)
    return curves


def with_frames(curves: Curves, frames: Sequence[FrameCurve], weight: float) -> Curves:
    """Add the curves of frames to those of captions, as one more variant of each query.

    Args:
        curves: of the captions, of all queries of a batch.
        frames: of each query.
        weight: of the frames in the fused curve; the captions have the rest.
    """
    added = np.concatenate(frames)
    variants = np.concatenate([curves.variants, added[None]])
    fused = (1 - weight) * curves.fused + weight * added
    return Curves(variants, fused.astype(np.float32), curves.offsets)
