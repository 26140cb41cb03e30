"""A caption describes one frame: mix its embedding with those of near and similar clips.

A captioner words the same scene differently from frame to frame, and misdescribes a frame caught
mid-motion. Here the weight of clip *j* for clip *i* is ``max(cos_ij, 0)^power`` within `radius`
clips, a bilateral filter (Tomasi and Manduchi 1998) over time, with the caption's meaning in the
place of brightness: it smooths within a scene and not across a cut. No query is involved, so it is
done once for a video.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .launch import (
    SERIAL_PRODUCT,
    Array,
    Launcher,
    Offsets,
    check_array,
    check_offsets,
    launcher_for,
    options_for,
    tiles,
)

_WARPS = 4  # of context.cu
_CLIPS = 4  # a warp


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRules:
    """How far, in clips, and how selectively a clip borrows from its neighbours.

    Raises:
        ValueError: a value is out of its range.
    """

    radius: int = 5
    power: int = 3
    """Of the cosine: the higher, the more alike a neighbour must be. 0 mixes all alike."""

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 64:
            raise ValueError(f"radius: got {self.radius}, expected 0 to 64 clips")
        if not 0 <= self.power <= 16:
            raise ValueError(f"power: got {self.power}, expected 0 to 16")


def context(
    embeddings: Array, offsets: npt.ArrayLike, *, rules: ContextRules, rescale: bool = False
) -> Array:
    """Embeddings of the same shape and dtype, mixed within each video.

    The rows are weighted means, no longer of unit length: a clip unlike its neighbours keeps its
    length, one in a scene that changes around it loses some, and its cosines with it.

    Args:
        embeddings: `(clips of all videos, dim)` float32 or float16, rows of unit length.
        offsets: `(videos + 1,)`: the clips of video *v* are rows ``offsets[v]:offsets[v + 1]``.
        rules: how to weigh.
        rescale: mix the rows as if they were of unit length. Rows that have been mixed before are
            not.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    launcher = launcher_for(embeddings=embeddings)
    check_array("embeddings", embeddings, (None, None), "float32", "float16")
    checked = check_offsets("offsets", offsets, embeddings.shape[0])
    if launcher is None:
        return on_host(embeddings, checked, rules, rescale)
    dim, dtype = embeddings.shape[1], embeddings.dtype
    return OnDevice(launcher, checked, dim, dtype, rules, rescale)(embeddings)


@functools.lru_cache(maxsize=64)
def _band(radius: int, rows: int, before: int, columns: int) -> npt.NDArray[np.float32]:
    """`(rows, columns)` of 1 within the radius and 0 outside, row 0 being column `before`."""
    distance = np.abs(np.arange(rows)[:, None] + before - np.arange(columns))
    band: npt.NDArray[np.float32] = (distance <= radius).astype(np.float32)
    return band


def on_host(
    embeddings: npt.NDArray[Any], offsets: Offsets, rules: ContextRules, rescale: bool = False
) -> Any:
    """The NumPy twin."""
    radius = rules.radius
    # The most clips at a time for which clips * (clips + 2 * radius) * dim is a serial product.
    dim = max(embeddings.shape[1], 1)
    tile = max(int(math.sqrt(radius * radius + SERIAL_PRODUCT / dim) - radius), 1)
    mixed = np.empty_like(embeddings)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for first in range(begin, end, tile):
            last = min(first + tile, end)
            left, right = max(first - radius, begin), min(last + radius, end)
            near = embeddings[left:right].astype(np.float32, copy=False)
            if rescale:
                near = near / np.sqrt(np.einsum("ij,ij->i", near, near))[:, None]
            cosine = near[first - left : last - left] @ near.T
            np.maximum(cosine, 0, out=cosine)
            weights = _band(radius, last - first, first - left, right - left).copy()
            for _ in range(rules.power):
                weights *= cosine
            weights /= weights.sum(axis=1, keepdims=True)
            mixed[first:last] = weights @ near
    return mixed


class OnDevice:
    """The same on a device: one launch, a warp for a few clips, nothing waits.

    What does not change from call to call is uploaded and allocated once; a call overwrites the
    result of the one before.
    """

    def __init__(
        self,
        launcher: Launcher,
        offsets: Offsets,
        dim: int,
        dtype: npt.DTypeLike,
        rules: ContextRules,
        rescale: bool = False,
    ) -> None:
        self.launcher, self.dim, self.rules, self.rescale = launcher, dim, rules, rescale
        self.options = options_for(dtype)
        table = tiles(offsets, _CLIPS)
        self.tile_count = len(table)
        self.offsets, self.tiles = launcher.upload(offsets), launcher.upload(table)
        self.mixed = launcher.empty((int(offsets[-1]), dim), dtype)

    def __call__(self, embeddings: Array) -> Array:
        """Launch, and return where the result will be."""
        if self.tile_count:
            self.launcher.launch(
                "context",
                "context",
                embeddings,
                self.offsets,
                self.tiles,
                np.int64(self.tile_count),
                np.int32(self.rules.radius),
                np.int32(self.rules.power),
                np.int32(self.rescale),
                np.int32(self.dim),
                self.mixed,
                blocks=-(-self.tile_count // _WARPS),
                threads=_WARPS * 32,
                options=self.options,
            )
        return self.mixed
