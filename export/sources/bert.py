"""BERT in NumPy, read from safetensors: the source of our graph's weights and its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

from .checkpoint import Checkpoint

Array = npt.NDArray[np.floating[Any]]

Observer = Callable[[str, Array], None]
"""Called with the name and the value of an activation, see `Bert.hidden`."""


class Dense(NamedTuple):
    """A dense layer ``x @ weight + bias``; weight (in, out), bias (out,)."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        """Apply the layer to x (..., in): (..., out)."""
        return x @ self.weight + self.bias


class Norm(NamedTuple):
    """The learnt parameters of a layer normalisation; gamma and beta (hidden,)."""

    gamma: Array
    beta: Array


@dataclass(frozen=True)
class Layer:
    """One encoder layer; each half ends with its norm (post-norm)."""

    query: Dense
    key: Dense
    value: Dense
    out: Dense
    out_norm: Norm
    up: Dense
    down: Dense
    down_norm: Norm


@dataclass(frozen=True)
class Bert:
    """A BERT encoder: embedding tables (rows, hidden), layers, number of heads and epsilon."""

    words: Array
    positions: Array
    norm: Norm
    layers: tuple[Layer, ...]
    heads: int
    epsilon: float

    @classmethod
    def load(cls, weights: Path, config: dict[str, Any], dtype: npt.DTypeLike = np.float32) -> Bert:
        """Read safetensors, and check their shapes against ``config.json``.

        Args:
            weights: a file of the weights; its folder holds all of them.
            config: the folder's ``config.json``.
            dtype: of the arrays.

        Raises:
            GranAlignError: a file is torn; a tensor is missing, misshapen or not finite.
        """
        return _Reader(weights.parent, dtype).bert(config)

    @property
    def dim(self) -> int:
        """Number of an embedding's columns."""
        return int(self.words.shape[1])

    def hidden(self, ids: npt.NDArray[np.integer[Any]], observe: Observer | None = None) -> Array:
        """Compute the last layer's output, (batch, sequence, hidden), for texts of equal length.

        Args:
            ids: token ids, (batch, sequence).
            observe: called with ``"<layer>.<site>"`` and an activation, for each product. At the
                sites `qkv` and `up` the activation is the norm before gamma and beta; at `out` and
                `down` it is the product's input.
        """
        batch, length = ids.shape
        head = self.dim // self.heads
        observe = observe or (lambda site, value: None)

        def split(x: Array) -> Array:
            return x.reshape(batch, length, self.heads, head).swapaxes(1, 2)

        # Words and positions.
        plain = _normalise(self.words[ids] + self.positions[:length], self.epsilon)
        x = plain * self.norm.gamma + self.norm.beta
        for i, layer in enumerate(self.layers):
            # Self-attention over (batch, heads, sequence, head).
            observe(f"{i}.qkv", plain)
            scores = split(layer.query(x)) @ split(layer.key(x)).swapaxes(2, 3)
            attended = _softmax(scores / math.sqrt(head)) @ split(layer.value(x))
            context = attended.swapaxes(1, 2).reshape(batch, length, self.dim)
            # Output projection, residual and norm.
            observe(f"{i}.out", context)
            plain = _normalise(x + layer.out(context), self.epsilon)
            x = plain * layer.out_norm.gamma + layer.out_norm.beta
            # The multi-layer perceptron, residual and norm.
            observe(f"{i}.up", plain)
            wide = _gelu(layer.up(x))
            observe(f"{i}.down", wide)
            plain = _normalise(x + layer.down(wide), self.epsilon)
            x = plain * layer.down_norm.gamma + layer.down_norm.beta
        return x

    def embed(self, tokens: Sequence[Sequence[int]], *, pooling: str, normalise: bool) -> Array:
        """Compute embeddings (texts, hidden), one text at a time."""
        rows = np.empty((len(tokens), self.dim), self.words.dtype)
        for row, ids in zip(rows, tokens, strict=True):
            hidden = self.hidden(np.asarray([ids]))[0]
            row[:] = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
        if normalise:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


def _normalise(x: Array, epsilon: float) -> Array:
    """Normalise rows as a layer norm does before gamma and beta."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance: Array = (centred * centred).mean(axis=-1, keepdims=True)
    normalised: Array = centred / np.sqrt(variance + epsilon)
    return normalised


def _softmax(x: Array) -> Array:
    """Compute the softmax over the last axis."""
    weights: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _gelu(x: Array) -> Array:
    """Compute ``x / 2 * (1 + erf(x / sqrt(2)))``; the interpolated erf is off by 8e-9 at most."""
    table, steps, limit = _erf_table()
    position = (np.clip(x * math.sqrt(0.5), -limit, limit) + limit) * steps
    index = position.astype(np.int32)
    lower = table[index]
    erf = lower + (position - index) * (table[index + 1] - lower)
    result: Array = x * (0.5 + 0.5 * erf).astype(x.dtype)
    return result


@cache
def _erf_table() -> tuple[Array, int, int]:
    """Return erf from -limit to limit, its entries per unit, and limit; beyond it erf is ±1."""
    steps, limit = 2**12, 6
    points = range(-limit * steps, limit * steps + 2)
    return np.array([math.erf(point / steps) for point in points]), steps, limit


class _Reader:
    """The tensors of a folder under their BERT names; each is checked when it is read."""

    def __init__(self, folder: Path, dtype: npt.DTypeLike) -> None:
        self.config_path, self.dtype = folder / "config.json", dtype
        self.tensors = Checkpoint(folder, _plain_name).rooted("embeddings.word_embeddings.weight")

    def bert(self, config: dict[str, Any]) -> Bert:
        # Sizes from the settings.
        try:
            hidden, wide = int(config["hidden_size"]), int(config["intermediate_size"])
            heads, depth = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
            words, positions = int(config["vocab_size"]), int(config["max_position_embeddings"])
            types = int(config["type_vocab_size"])
            epsilon = float(config["layer_norm_eps"])
        except (KeyError, TypeError, ValueError) as error:
            raise GranAlignError(
                f"{self.config_path}: no usable value for {error}; "
                f"expected the settings of a BERT model"
            ) from None
        if heads < 1 or hidden % heads:
            raise GranAlignError(
                f"{self.config_path}: got {heads} heads for hidden size "
                f"{hidden}, expected a divisor of it"
            )
        # All tokens of a single sentence have type 0: add its row to every position.
        kinds = self.read("embeddings.token_type_embeddings.weight", types, hidden)
        return Bert(
            words=self.read("embeddings.word_embeddings.weight", words, hidden),
            positions=self.read("embeddings.position_embeddings.weight", positions, hidden)
            + kinds[0],
            norm=self.norm("embeddings.LayerNorm", hidden),
            layers=tuple(self.layer(f"encoder.layer.{i}", hidden, wide) for i in range(depth)),
            heads=heads,
            epsilon=epsilon,
        )

    def layer(self, name: str, hidden: int, wide: int) -> Layer:
        return Layer(
            query=self.dense(f"{name}.attention.self.query", hidden, hidden),
            key=self.dense(f"{name}.attention.self.key", hidden, hidden),
            value=self.dense(f"{name}.attention.self.value", hidden, hidden),
            out=self.dense(f"{name}.attention.output.dense", hidden, hidden),
            out_norm=self.norm(f"{name}.attention.output.LayerNorm", hidden),
            up=self.dense(f"{name}.intermediate.dense", hidden, wide),
            down=self.dense(f"{name}.output.dense", wide, hidden),
            down_norm=self.norm(f"{name}.output.LayerNorm", hidden),
        )

    def dense(self, name: str, inputs: int, outputs: int) -> Dense:
        weight = self.read(f"{name}.weight", outputs, inputs)
        return Dense(np.ascontiguousarray(weight.T), self.read(f"{name}.bias", outputs))

    def norm(self, name: str, hidden: int) -> Norm:
        return Norm(self.read(f"{name}.weight", hidden), self.read(f"{name}.bias", hidden))

    def read(self, name: str, *shape: int) -> Array:
        """Return a tensor in the reader's dtype; raise unless it has this shape and is finite."""
        got = self.tensors.shape(name) if name in self.tensors else None
        if got != shape:
            raise GranAlignError(
                f"{self.tensors.folder}: tensor {name} has shape {got}, expected {shape}; "
                f"config.json and the weights must belong together"
            )
        tensor = self.tensors.read(name)
        if not np.isfinite(tensor).all():
            raise GranAlignError(
                f"{self.tensors.folder}: tensor {name} holds NaN or infinity; get intact weights"
            )
        return tensor.astype(self.dtype, copy=False)


def _plain_name(name: str) -> str:
    """Return a tensor's name today: old files name the parameters of a norm gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")
