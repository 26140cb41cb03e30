"""Stretches: the parts of at most 150 seconds that the first stage compares with a query.

A video of a few minutes is one stretch or a few; a video of hours is many, so that one minute of it
can be found among the minutes of other videos.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STRETCH_SECONDS = 150.0
"""The longest stretch. The videos of QVHighlights, on which the first stage is measured, are of
this length."""

Ints = npt.NDArray[np.int64]


class Stretches(NamedTuple):
    """The stretches of a list of videos, in their order."""

    edges: Ints
    """`(stretches + 1,)`: stretch *i* has the rows from `edges[i]` to `edges[i + 1]`."""
    videos: Ints
    """`(stretches,)`: the number of each stretch's video."""


def stretch_edges(clips: int, clip_seconds: float) -> list[int]:
    """Return the first clip of each stretch of a video, and behind them the number of its clips.

    All stretches of a video are about equally long.

    >>> stretch_edges(75, 2.0)
    [0, 75]
    >>> stretch_edges(100, 2.0)
    [0, 50, 100]
    """
    parts = min(max(math.ceil(clips * clip_seconds / STRETCH_SECONDS), 1), clips)
    return [clips * part // parts for part in range(parts + 1)]


def stretches_of(videos: Iterable[tuple[int, float]]) -> Stretches:
    """Return the stretches of videos whose rows follow each other.

    Args:
        videos: the number of clips of each video, and their length in seconds.
    """
    edges, owners, first = [0], [], 0
    for number, (clips, clip_seconds) in enumerate(videos):
        ends = stretch_edges(clips, clip_seconds)[1:]
        edges += [first + end for end in ends]
        owners += [number] * len(ends)
        first += clips
    return Stretches(np.array(edges, np.int64), np.array(owners, np.int64))
