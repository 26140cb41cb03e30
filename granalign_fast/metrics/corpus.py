"""Measure the search of a whole library: is the right video found, and the right moment in it?

A query counts as found at rank k if one of the first k answers is right. A moment is right if it is
in the query's video and its IoU with one of the query's true windows is at least the threshold
(Escorcia et al., "Temporal Localization of Moments in Video Collections", 2019, arXiv 1907.12763).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

VIDEO_RANKS = (1, 5, 10, 100)
MOMENT_RANKS = (1, 5, 10, 20)
THRESHOLDS = (0.5, 0.7)

Window = tuple[float, float]
"""Start and end in seconds."""


def score_corpus(
    videos: Sequence[Sequence[str]],
    moments: Sequence[Sequence[tuple[str, float, float]]],
    truth: Sequence[tuple[str, Sequence[Window]]],
) -> dict[str, float]:
    """Compute how many queries are found in a library.

    Args:
        videos: the ids of the videos found for each query, best first, each once.
        moments: video, start and end in seconds of the moments found for each query, best first.
        truth: the video of each query, and the windows that show it.

    Returns:
        ``video-R@1`` and so on for `VIDEO_RANKS`, and ``moment-R@1,IoU=0.5`` and so on for
        `MOMENT_RANKS` and `THRESHOLDS`, in percent to two decimals.

    Raises:
        GranAlignError: there is no query, the arguments differ in length, a query has no window,
            or a video is named twice for a query.
    """
    if not truth or not len(videos) == len(moments) == len(truth):
        raise GranAlignError(
            f"corpus: got {len(videos)} lists of videos and {len(moments)} of moments for "
            f"{len(truth)} queries, expected one of each for each query, and at least one query"
        )
    metrics = {}
    ranks = np.array(
        [_video_rank(found, vid) for found, (vid, _) in zip(videos, truth, strict=True)]
    )
    for rank in VIDEO_RANKS:
        metrics[f"video-R@{rank}"] = _percent(ranks < rank)
    ious = [_ious(found, *true) for found, true in zip(moments, truth, strict=True)]
    for threshold in THRESHOLDS:
        hits = np.array([_first(iou >= threshold) for iou in ious])
        for rank in MOMENT_RANKS:
            metrics[f"moment-R@{rank},IoU={threshold}"] = _percent(hits < rank)
    return metrics


def _video_rank(found: Sequence[str], vid: str) -> float:
    """Return how many videos come before the right one; infinite if it was not found."""
    if len(set(found)) != len(found):
        raise GranAlignError("corpus: got a video twice for a query, expected each once")
    return found.index(vid) if vid in found else np.inf


def _ious(
    found: Sequence[tuple[str, float, float]], vid: str, windows: Sequence[Window]
) -> npt.NDArray[np.float64]:
    """Return the best IoU of each moment with a true window; 0 in another video."""
    if not windows:
        raise GranAlignError(f"corpus: a query of video {vid!r} has no true window, expected one")
    spans = np.array([moment[1:] for moment in found], np.float64).reshape(-1, 1, 2)
    true = np.array(windows, np.float64)[None]
    shared = np.minimum(spans[..., 1], true[..., 1]) - np.maximum(spans[..., 0], true[..., 0])
    union = np.maximum(spans[..., 1], true[..., 1]) - np.minimum(spans[..., 0], true[..., 0])
    # Where two windows do not meet, `shared` is negative; where both are empty, there is no union.
    ious = np.maximum(shared, 0) / np.maximum(union, 1e-12)
    right = np.array([moment[0] == vid for moment in found], bool)
    return np.where(right, ious.max(axis=1), 0)


def _first(hits: npt.NDArray[np.bool_]) -> float:
    """Return the position of the first hit; infinite if there is none."""
    return int(hits.argmax()) if hits.any() else np.inf


def _percent(hits: npt.NDArray[np.bool_]) -> float:
    return round(100 * float(hits.mean()), 2)
