"""Greedy temporal non-maximum suppression over a ragged batch of candidate moments."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .launch import Array, Launcher, Offsets, check_array, check_offsets, launcher_for

_THREADS = 128  # WARPS * WARP of nms.cu


class Ranked(NamedTuple):
    """The moments of each pair, best first: row *p* has ``counts[p]``, then padding."""

    starts: Array
    """`(pairs, top)` int32: first clip."""
    ends: Array
    """`(pairs, top)` int32: one past the last clip."""
    scores: Array
    """`(pairs, top)` float64; -inf in the padding."""
    counts: Array
    """`(pairs,)` int32."""


def nms(
    starts: Array,
    ends: Array,
    scores: Array,
    offsets: npt.ArrayLike,
    *,
    threshold: float,
    top: int,
) -> Ranked:
    """Keep the best candidates of each pair that do not overlap a better one.

    A candidate goes when its IoU with one that was kept is `threshold` or more. Of equal scores the
    earlier start is better, then the earlier end; so the result does not depend on the order of the
    candidates.

    Args:
        starts: `(candidates,)` int32, first clip.
        ends: `(candidates,)` int32, one past the last clip, greater than the start.
        scores: `(candidates,)` float64; -inf marks an empty slot.
        offsets: `(pairs + 1,)`: pair *p* owns the candidates ``offsets[p]:offsets[p + 1]``.
        threshold: IoU in (0, 1]; 1 removes only repeated intervals.
        top: how many to keep of each pair, at least 1.

    Raises:
        ValueError: a shape, dtype or value does not fit.
        TypeError: NumPy and CuPy arrays are mixed.
    """
    launcher = launcher_for(starts=starts, ends=ends, scores=scores)
    check_array("starts", starts, (None,), "int32")
    check_array("ends", ends, starts.shape, "int32")
    check_array("scores", scores, starts.shape, "float64")
    checked = check_offsets("offsets", offsets, starts.shape[0])
    check_rules(threshold, top)
    if launcher is None:
        return on_host(starts, ends, scores, checked, threshold, top)
    # The kernel may empty slots as it goes.
    return OnDevice(launcher, checked, threshold, top)(starts, ends, scores.copy())


def check_rules(threshold: float, top: int) -> None:
    """Refuse what no suppression can do.

    Raises:
        ValueError: a value is out of its range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: got {threshold}, expected an IoU above 0 and at most 1")
    if top < 1:
        raise ValueError(f"top: got {top}, expected at least 1")


def on_host(
    starts: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int32],
    scores: npt.NDArray[np.float64],
    offsets: Offsets,
    threshold: float,
    top: int,
) -> Ranked:
    """The NumPy twin."""
    pairs = len(offsets) - 1
    kept = Ranked(
        np.zeros((pairs, top), np.int32),
        np.zeros((pairs, top), np.int32),
        np.full((pairs, top), -np.inf),
        np.zeros(pairs, np.int32),
    )
    left = np.flatnonzero(scores > -np.inf)
    owner = np.repeat(np.arange(pairs), offsets[1:] - offsets[:-1])[left]
    starts, ends, scores = starts[left], ends[left], scores[left]
    for rank in range(top):
        if not len(owner):
            break
        # Every round keeps the best candidate of each pair and drops what overlaps it.
        first = _firsts(owner)
        lengths = np.append(first[1:], len(owner)) - first
        greatest = np.repeat(np.maximum.reduceat(scores, first), lengths)
        best = (scores == greatest).nonzero()[0]
        if len(best) > len(first):
            best = best[np.lexsort((ends[best], starts[best], owner[best]))]
            best = best[_firsts(owner[best])]
        row = owner[best]
        kept.starts[row, rank] = starts[best]
        kept.ends[row, rank] = ends[best]
        kept.scores[row, rank] = scores[best]
        kept.counts[row] = rank + 1
        best_start, best_end = np.repeat(starts[best], lengths), np.repeat(ends[best], lengths)
        inter = np.minimum(ends, best_end) - np.maximum(starts, best_start)
        union = (ends - starts) + (best_end - best_start) - inter
        left = ((inter <= 0) | (inter < threshold * union)).nonzero()[0]
        owner, starts, ends, scores = owner[left], starts[left], ends[left], scores[left]
    return kept


def _firsts(owner: Offsets) -> Offsets:
    """Return the first position of each run of equal numbers."""
    new = np.empty(len(owner), np.bool_)
    new[:1] = True
    np.not_equal(owner[1:], owner[:-1], out=new[1:])
    return new.nonzero()[0]


class OnDevice:
    """The same on a device: one launch, a block a pair, nothing waits.

    What does not change from call to call is uploaded and allocated once; a call overwrites the
    result of the one before.
    """

    def __init__(self, launcher: Launcher, offsets: Offsets, threshold: float, top: int) -> None:
        self.launcher, self.threshold, self.top = launcher, threshold, top
        self.pairs = len(offsets) - 1
        self.offsets = launcher.upload(offsets)
        self.kept = Ranked(
            launcher.empty((self.pairs, top), np.int32),
            launcher.empty((self.pairs, top), np.int32),
            launcher.empty((self.pairs, top), np.float64),
            launcher.empty((self.pairs,), np.int32),
        )

    def __call__(self, starts: Array, ends: Array, scores: Array) -> Ranked:
        """Launch, and return where the result will be. May leave other scores behind."""
        if self.pairs:
            self.launcher.launch(
                "nms",
                "nms",
                starts,
                ends,
                scores,
                self.offsets,
                np.float64(self.threshold),
                np.int32(self.top),
                *self.kept,
                blocks=self.pairs,
                threads=_THREADS,
                # As NumPy rounds: a fused multiply-add could put a candidate on the other side.
                options=("--fmad=false",),
            )
        return self.kept
