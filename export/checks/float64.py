"""Layers in NumPy and float64: what the self-check of an export computes from the source's weights.

Nothing here shares code with the graphs. Weights are read in slices of rows, so that a check needs
little memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.graphs.block_quantization import round_blocks
from granalign_fast.export.sources.checkpoint import Tensors
from granalign_fast.export.sources.encoders.encoder import gelu as encoder_gelu
from granalign_fast.export.sources.encoders.encoder import gelu_tanh as encoder_gelu_tanh
from granalign_fast.export.specs import Rounding

Float64 = npt.NDArray[np.float64]

Allowed = Callable[[slice], npt.NDArray[np.bool_]]
"""Returns which keys some queries may attend to: bool (queries, keys)."""

_QUERIES = 512
"""Queries whose scores are computed at once."""


class Weights:
    """The weights of a source, as float64.

    Args:
        tensors: where they come from.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Float64:
        """Return a small tensor, such as a norm's gains."""
        return self.tensors.read(name).astype(np.float64)

    def rows(
        self, name: str, ids: npt.NDArray[np.int64], rounding: Rounding | None = None
    ) -> Float64:
        """Return some rows of a table (rows, columns): (*ids.shape, columns).

        Args:
            name: of the table.
            ids: of the rows.
            rounding: of the table in an export; None for the source's values.
        """
        result = np.empty((*ids.shape, self.tensors.shape(name)[1]))
        start = 0
        for part in self.tensors.slices(name):
            here = (ids >= start) & (ids < start + len(part))
            chosen = part[ids[here] - start]
            result[here] = round_blocks(chosen, rounding) if rounding and len(chosen) else chosen
            start += len(part)
        return result

    def product(self, x: Float64, name: str, rounding: Rounding | None = None) -> Float64:
        """Multiply rows (..., inputs) by a weight (outputs, inputs).

        Args:
            x: the rows.
            name: of the weight.
            rounding: of the weight in an export; None for the source's values.
        """
        outputs = self.tensors.shape(name)[0]
        result = np.empty((*x.shape[:-1], outputs))
        start = 0
        for part in self.tensors.slices(name):
            rows = part.reshape(len(part), -1)
            if rounding:
                rows = round_blocks(rows, rounding)
            result[..., start : start + len(rows)] = x @ rows.T.astype(np.float64)
            start += len(rows)
        return result

    def linear(self, x: Float64, name: str, rounding: Rounding | None = None) -> Float64:
        """Apply a linear layer, with its bias if there is one."""
        y = self.product(x, f"{name}.weight", rounding)
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y

    def rms_norm(self, x: Float64, name: str, epsilon: float) -> Float64:
        """Apply an RMS norm over the last axis."""
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon)
        normed: Float64 = x / scale * self[f"{name}.weight"]
        return normed

    def layer_norm(self, x: Float64, name: str, epsilon: float) -> Float64:
        """Apply a layer norm over the last axis."""
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon)
        normed: Float64 = x * self[f"{name}.weight"] + self[f"{name}.bias"]
        return normed

    def gated(self, x: Float64, name: str, rounding: Rounding | None = None) -> Float64:
        """Apply a gated perceptron: down(silu(gate(x)) * up(x))."""
        gate = self.linear(x, f"{name}.gate_proj", rounding)
        wide = gate / (1 + np.exp(-gate)) * self.linear(x, f"{name}.up_proj", rounding)
        return self.linear(wide, f"{name}.down_proj", rounding)


def rotated(x: Float64, angles: npt.NDArray[Any]) -> Float64:
    """Rotate the points (value i, value i + size / 2) of (tokens, heads, size).

    Args:
        x: queries or keys.
        angles: (tokens, size / 2).
    """
    angles = angles.astype(np.float64)[:, None]
    first, second = np.split(x, 2, axis=-1)
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def attend(query: Float64, key: Float64, value: Float64, allowed: Allowed) -> Float64:
    """Attend with softmax; a key-value head serves a group of queries' heads.

    Args:
        query: (queries, heads, size).
        key: (keys, kv_heads, size).
        value: (keys, kv_heads, size).
        allowed: which keys a query may attend to.

    Returns:
        (queries, heads * size).
    """
    count, heads, size = query.shape
    group = heads // key.shape[1]
    result = np.empty_like(query)
    for start in range(0, count, _QUERIES):
        some = slice(start, min(start + _QUERIES, count))
        mask = allowed(some)
        for head in range(heads):
            scores = query[some, head] @ key[:, head // group].T / math.sqrt(size)
            scores = np.where(mask, scores, -np.inf)
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            result[some, head] = shares @ value[:, head // group]
    return result.reshape(count, -1)


def gelu(x: Float64) -> Float64:
    """Compute ``x / 2 * (1 + erf(x / sqrt(2)))``, to within 8e-9 of x."""
    return encoder_gelu(x).astype(np.float64, copy=False)


def gelu_tanh(x: Float64) -> Float64:
    """Compute the approximation of `gelu` by a hyperbolic tangent."""
    return encoder_gelu_tanh(x).astype(np.float64, copy=False)


def quick_gelu(x: Float64) -> Float64:
    """Compute ``x * sigmoid(1.702 x)``."""
    result: Float64 = x / (1 + np.exp(-1.702 * x))
    return result


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}
"""By transformers' name."""
