"""Numbers of the int8 recipe: measured ranges, smoothed channels, 8-bit weights and activations.

Activations get one fixed scale per product, measured once. Unlike a scale taken from each batch, it
costs no pass over the data, and a text's embedding cannot depend on what else is in its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.bert import Array, Bert
from granalign_fast.export.specs import RANGE_HEADROOM, WEIGHT_LEVELS

_TINY = 1e-5  # a channel that is always 0 must not divide by 0


@dataclass
class Range:
    """Least and greatest value of each channel, (channels,) both."""

    low: Array
    high: Array

    def strongest(self, weight: Array, count: int) -> npt.NDArray[np.int64]:
        """Indices of the `count` channels that can move the product with `weight` the most."""
        reach = np.maximum(-self.low, self.high) * np.abs(weight).max(axis=1)
        return np.sort(np.argsort(-reach, kind="stable")[:count])

    def smoothing(self, weight: Array, strength: float) -> Array:
        """What to divide each channel by, and multiply its row of `weight` with; (channels,).

        Args:
            weight: of the product that follows, (channels, out).
            strength: 0 spares the weights, 1 makes all channels equally wide.
        """
        channel = np.maximum(np.maximum(-self.low, self.high), _TINY)
        row = np.maximum(np.abs(weight).max(axis=1), _TINY)
        factors: Array = channel**strength / row ** (1 - strength)
        factors /= np.exp(np.log(factors).mean())
        return factors

    def affine(self, factors: Array) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of the whole activation once it is divided by `factors`."""
        low = min(0.0, float((self.low / factors).min())) * RANGE_HEADROOM
        high = max(0.0, float((self.high / factors).max())) * RANGE_HEADROOM
        scale = max(high - low, _TINY) / 255
        return np.float32(scale), np.uint8(round(-low / scale))


def measure_ranges(model: Bert, tokens: Iterable[list[int]]) -> dict[str, Range]:
    """The range of every product's input over tokenised texts, by the names `Bert.hidden` gives."""
    ranges: dict[str, Range] = {}

    def observe(site: str, value: Array) -> None:
        rows = value.reshape(-1, value.shape[-1])
        low, high = rows.min(axis=0), rows.max(axis=0)
        known = ranges.setdefault(site, Range(low, high))
        np.minimum(known.low, low, out=known.low)
        np.maximum(known.high, high, out=known.high)

    by_length: defaultdict[int, list[list[int]]] = defaultdict(list)
    for ids in tokens:
        by_length[len(ids)].append(ids)
    for group in by_length.values():
        model.hidden(np.array(group), observe)
    return ranges


def quantise_columns(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """Symmetric int8 weights (in, out) and one float32 scale per column, (out,)."""
    scale = np.maximum(np.abs(weight).max(axis=0), _TINY * 1e-3) / WEIGHT_LEVELS
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)
