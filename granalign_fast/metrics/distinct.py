"""Recall of distinct moments: the quality of the list that `granalign search` shows to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record
from granalign_fast.types import Moment

DISTINCT_RANKS = (1, 3, 5)
"""Lengths of the lists that are scored."""
DISTINCT_THRESHOLDS = (0.5, 0.7)
"""IoUs at which a moment counts as found."""


def distinct_of_each(
    lists: Sequence[Sequence[Moment]], ground_truth: Sequence[Record]
) -> dict[str, npt.NDArray[np.float64]]:
    """Score each query's list of distinct moments, for means, intervals and differences.

    ``distinct-R@n,IoU=m`` is 100 if one of the first n moments has an IoU of at least m with one of
    the query's true windows, else 0. It is ``Rn@m`` of Gao et al., "TALL", 2017 (arXiv 1705.02101),
    on another list: a person who looks at n moments that hardly overlap finds the right one.

    Args:
        lists: for each query its moments, best first, as `SearchResult.distinct` returns them. An
            empty list is a miss.
        ground_truth: as from `load_ground_truth`, in the same order.

    Returns:
        An array (queries,) for each of `DISTINCT_RANKS` and `DISTINCT_THRESHOLDS`.

    Raises:
        GranAlignError: there are more or fewer lists than queries.

    >>> truth = [{"relevant_windows": [[30.0, 40.0]]}]
    >>> figures = distinct_of_each([[Moment(0.0, 9.0, 0.9), Moment(30.0, 38.0, 0.7)]], truth)
    >>> figures["distinct-R@1,IoU=0.5"], figures["distinct-R@3,IoU=0.5"]
    (array([0.]), array([100.]))
    """
    if len(lists) != len(ground_truth):
        raise GranAlignError(
            f"lists: got {len(lists)}, expected {len(ground_truth)}, one for each query of the "
            "ground truth"
        )
    best = np.zeros((len(lists), DISTINCT_RANKS[-1]))
    for row, moments, truth in zip(best, lists, ground_truth, strict=True):
        found = moments[: len(row)]
        row[: len(found)] = _greatest_ious(found, truth["relevant_windows"])
    return {
        f"distinct-R@{rank},IoU={iou}": 100.0 * (best[:, :rank].max(axis=1) >= iou)
        for rank in DISTINCT_RANKS
        for iou in DISTINCT_THRESHOLDS
    }


def score_distinct(
    lists: Sequence[Sequence[Moment]], ground_truth: Sequence[Record]
) -> dict[str, float]:
    """Return the means of `distinct_of_each` in percent, to two decimals; arguments as there."""
    return {
        name: round(float(each.mean()), 2) if len(each) else 0.0
        for name, each in distinct_of_each(lists, ground_truth).items()
    }


def _greatest_ious(moments: Sequence[Moment], windows: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Return the greatest IoU of each moment with any of the windows, (moments,)."""
    found = np.array([(moment.start, moment.end) for moment in moments]).reshape(-1, 1, 2)
    true = np.array(windows, dtype=np.float64)[None]
    shared = np.minimum(found[..., 1], true[..., 1]) - np.maximum(found[..., 0], true[..., 0])
    np.maximum(shared, 0, out=shared)
    union = (found[..., 1] - found[..., 0]) + (true[..., 1] - true[..., 0]) - shared
    greatest: npt.NDArray[np.float64] = (shared / union).max(axis=1)
    return greatest
