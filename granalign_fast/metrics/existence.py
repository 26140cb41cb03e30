"""Measure how well a score separates queries that a video shows from those that it does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from granalign_fast.errors import GranAlignError


def auroc(shown: Sequence[float], absent: Sequence[float]) -> float:
    """Return the area under the ROC curve, in [0, 1].

    It is the probability that a shown query scores above an absent one; a tie counts half (the
    Mann-Whitney U statistic over the number of pairs).

    Args:
        shown: scores of queries that the video shows.
        absent: scores of queries that it does not show.

    Raises:
        GranAlignError: either list is empty.

    >>> auroc([0.9, 0.5], [0.5, 0.1])
    0.875
    """
    if not len(shown) or not len(absent):
        raise GranAlignError(
            f"scores: got {len(shown)} of shown and {len(absent)} of absent queries, expected at "
            f"least one of each"
        )
    ordered = np.sort(np.asarray(absent, np.float64))
    below = np.searchsorted(ordered, shown, side="left")
    up_to = np.searchsorted(ordered, shown, side="right")
    return float((below + up_to).mean() / 2 / len(ordered))
