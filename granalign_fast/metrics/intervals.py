"""Confidence intervals of metrics, by a bootstrap over videos."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

SEED, RESAMPLES = 0, 1000
_PERCENTILES = (2.5, 97.5)


def intervals(
    figures: Mapping[str, npt.NDArray[np.float64]], videos: Sequence[Hashable]
) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of the mean of each metric.

    Whole videos are drawn with replacement, `RESAMPLES` times, and the interval is that of the
    percentiles 2.5 and 97.5 of the means (percentile bootstrap over clusters; Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, section 3.8). Videos are drawn, not queries,
    because the queries of one video are not independent: they share its captions and its scenes. An
    interval over queries would be too narrow. The seed is fixed, so equal figures have equal
    intervals.

    Args:
        figures: of each metric, the figure of every query, (queries,).
        videos: the video of every query.

    Returns:
        Lower and upper bound, to two decimals. Nothing if there are fewer than two videos.

    Raises:
        GranAlignError: a metric has another number of figures than there are videos.

    >>> intervals({"R1": np.array([0.0, 0.0, 100.0])}, ["a", "a", "b"])
    {'R1': (0.0, 100.0)}
    """
    for name, column in figures.items():
        if np.shape(column) != (len(videos),):
            raise GranAlignError(
                f"figures of {name!r}: got shape {np.shape(column)}, expected ({len(videos)},), "
                f"one for each query"
            )
    numbers: dict[Hashable, int] = {}
    of_query = np.array([numbers.setdefault(video, len(numbers)) for video in videos], np.intp)
    count = len(numbers)
    if count < 2 or not figures:
        return {}
    sums = np.stack([np.bincount(of_query, column, count) for column in figures.values()], axis=1)
    sizes = np.bincount(of_query, minlength=count)
    # How often each video is drawn in each resample.
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    means = (draws @ sums) / (draws @ sizes)[:, None]
    bounds = np.percentile(means, _PERCENTILES, axis=0).round(2) + 0.0  # -0.0 becomes 0.0
    return {name: (low, high) for name, (low, high) in zip(figures, bounds.T.tolist(), strict=True)}
