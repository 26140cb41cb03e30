"""How well a score tells what a video shows from what it does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from granalign_fast.errors import GranAlignError


def auroc(shown: Sequence[float], absent: Sequence[float]) -> float:
    """The area under the ROC curve: how often a shown one has the greater score, ties half.

    Raises:
        GranAlignError: there is no score on one side.

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
