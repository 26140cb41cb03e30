"""A whole search result against the plain loop."""

from __future__ import annotations

import numpy as np

from granalign_fast.config import RetrieverConfig
from granalign_fast.index import VideoIndex
from granalign_fast.packing import variants
from granalign_fast.retriever import TextEncoder
from granalign_fast.types import Rewrites, SearchResult

from . import plain
from .timing import require

_TOLERANCE = 2e-3
"""Of curves in [0, 1]: those of captions that are all alike stretch rounding most."""


def judge_result(
    result: SearchResult, index: VideoIndex, encoder: TextEncoder, config: RetrieverConfig
) -> None:
    """Compute the curves and moments of a search anew, from its rewrites and aware captions.

    Args:
        result: of `MomentRetriever.search` with the scorer ``captions``.
        index: that was searched.
        encoder: of the search.
        config: of the search.

    Raises:
        WrongAnswerError: curves, saliency or moments are others.
    """
    query = result.rewrites or Rewrites(result.query)
    simplified, detailed = variants(query, config)
    clips = np.asarray(index.embeddings, np.float32)
    if config.context is not None:
        clips = plain.context(clips, config.context)
    aware = clips.copy()
    for clip, caption in result.aware.items():
        aware[clip] = encoder.encode([caption])[0]
    parts = [
        plain.curves(encoder.encode(list(texts)), against, config.power)
        for texts, against in ((simplified, clips), (detailed, aware))
        if texts
    ]
    error = float(np.abs(np.concatenate(parts) - result.curves).max())
    require(error < _TOLERANCE, f"search: curves {error:.0e} from the plain loop's")
    found = plain.candidates(result.curves, result.saliency, config.proposals)
    best = plain.suppress(found, config.nms_threshold, config.top)
    expected = [(index.seconds(start), index.seconds(end), score) for start, end, score in best]
    got = [(moment.start, moment.end, moment.score) for moment in result.moments]
    require(got == expected, "search: moments are not the plain loop's")
