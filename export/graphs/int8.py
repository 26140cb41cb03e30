"""The arithmetic of the int8 recipe: measured ranges, SmoothQuant factors, 8-bit numbers.

The activations of a product get one fixed scale, measured once. Unlike a scale for each batch, it
costs no pass over the data, and a text's embedding cannot depend on the other texts of its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.encoders.encoder import Array, Encoder
from granalign_fast.export.specs import RANGE_HEADROOM, WEIGHT_LEVELS

_TINY = 1e-5
"""The least range and weight to divide by: a channel may always be 0."""


@dataclass
class Range:
    """Least and greatest value of each channel of an activation, both (channels,)."""

    low: Array
    high: Array

    def strongest(self, weight: Array, count: int) -> npt.NDArray[np.int64]:
        """Return the indices of the `count` channels that can change the product the most.

        Args:
            weight: of the product, (channels, out).
            count: how many channels.
        """
        reach = np.maximum(-self.low, self.high) * np.abs(weight).max(axis=1)
        return np.sort(np.argsort(-reach, kind="stable")[:count])

    def smoothing(self, weight: Array, strength: float) -> Array:
        """Return SmoothQuant's factors (channels,), with a geometric mean of 1.

        Each divides its channel and multiplies its row of `weight`. The formula is
        ``max|activation| ** s / max|weight| ** (1 - s)`` (SmoothQuant, arXiv 2211.10438).

        Args:
            weight: of the product that follows, (channels, out).
            strength: the exponent s; 0 evens out the weights, 1 the channels.
        """
        channel = np.maximum(np.maximum(-self.low, self.high), _TINY)
        row = np.maximum(np.abs(weight).max(axis=1), _TINY)
        factors: Array = channel**strength / row ** (1 - strength)
        factors /= np.exp(np.log(factors).mean())
        return factors

    def affine(self, factors: Array) -> tuple[np.float32, np.uint8]:
        """Return scale and zero point of the whole activation after division by `factors`."""
        low = min(0.0, float((self.low / factors).min())) * RANGE_HEADROOM
        high = max(0.0, float((self.high / factors).max())) * RANGE_HEADROOM
        scale = max(high - low, _TINY) / 255
        return np.float32(scale), np.uint8(round(-low / scale))


def measure_ranges(model: Encoder, tokens: Iterable[list[int]]) -> dict[str, Range]:
    """Measure the range of every product's input over tokenised texts, by `Encoder.run`'s names."""
    ranges: dict[str, Range] = {}

    def observe(site: str, value: Array) -> None:
        rows = value.reshape(-1, value.shape[-1])
        low, high = rows.min(axis=0), rows.max(axis=0)
        known = ranges.setdefault(site, Range(low, high))
        np.minimum(known.low, low, out=known.low)
        np.maximum(known.high, high, out=known.high)

    # Texts of equal length run as one batch.
    by_length: defaultdict[int, list[list[int]]] = defaultdict(list)
    for ids in tokens:
        by_length[len(ids)].append(ids)
    model.run([np.array(group) for group in by_length.values()], observe)
    return ranges


def quantise_columns(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """Quantise weights (in, out) symmetrically to int8, with a float32 scale per column, (out,)."""
    scale = np.maximum(np.abs(weight).max(axis=0), _TINY * 1e-3) / WEIGHT_LEVELS
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)
