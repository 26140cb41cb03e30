"""BERT in NumPy, read from safetensors: the source of our graph's weights and its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    """A BERT encoder: embedding tables (rows, hidden), layers, number of heads and epsilon.

    Words are float32; all other weights, and what is computed, have the type that `load` was told.
    A layer is read each time that it is asked for: memory holds one at a time.
    """

    words: Array
    positions: Array
    norm: Norm
    layers: Sequence[Layer]
    heads: int
    epsilon: float
    checkpoint: Checkpoint

    @classmethod
    def load(
        cls,
        weights: Path,
        config: dict[str, Any],
        dtype: npt.DTypeLike = np.float32,
        opened: Callable[[Checkpoint], None] = lambda checkpoint: None,
    ) -> Bert:
        """Read safetensors, and check their shapes against ``config.json``.

        `weights` is a file of the weights; its folder holds all of them.
        `opened` is called with the weights before any is read.

        Raises:
            GranAlignError: the file is torn; a tensor is missing or misshapen. One that is not
                finite raises when it is read.
        """
        # Models with a head on top keep the encoder under "bert.".
        checkpoint = Checkpoint(weights.parent, _plain_name)
        checkpoint.rooted("embeddings.word_embeddings.weight")
        opened(checkpoint)
        return _Reader(checkpoint, weights, dtype).bert(config)

    def first(self, layers: int) -> Bert:
        """Return the same encoder with the first layers alone."""
        return replace(self, layers=_Layers(self.layers.__getitem__, min(layers, len(self.layers))))

    @property
    def dim(self) -> int:
        """Number of an embedding's columns."""
        return int(self.words.shape[1])

    def hidden(self, ids: npt.NDArray[np.integer[Any]], observe: Observer | None = None) -> Array:
        """Compute the last layer's output, (batch, sequence, hidden), for texts of equal length.

        Args:
            ids: token ids, (batch, sequence).
            observe: as for `run`.
        """
        return self.run([ids], observe)[0]

    def run(
        self, batches: Sequence[npt.NDArray[np.integer[Any]]], observe: Observer | None = None
    ) -> list[Array]:
        """Compute the last layer's output of several batches, each of texts of equal length.

        All batches pass through a layer before the next layer is read.

        Args:
            batches: token ids, (batch, sequence) each.
            observe: called with ``"<layer>.<site>"`` and an activation, for each product. At the
                sites `qkv` and `up` the activation is the norm before gamma and beta; at `out` and
                `down` it is the product's input.

        Returns:
            An array (batch, sequence, hidden) for each batch.
        """
        observe = observe or (lambda site, value: None)
        # Words and positions.
        plain, norm = [self._embed(ids) for ids in batches], self.norm
        for i, layer in enumerate(self.layers):
            plain = [self._layer(layer, x, norm, i, observe) for x in plain]
            norm = layer.down_norm
        return [x * norm.gamma + norm.beta for x in plain]

    def _embed(self, ids: npt.NDArray[np.integer[Any]]) -> Array:
        """Return the first state before gamma and beta of its norm."""
        words = self.words[ids].astype(self.positions.dtype, copy=False)
        return _normalise(words + self.positions[: ids.shape[1]], self.epsilon)

    def _layer(self, layer: Layer, plain: Array, norm: Norm, i: int, observe: Observer) -> Array:
        """Apply a layer; states are before gamma and beta of their norms, `norm` is the first's."""
        batch, length, _ = plain.shape
        head = self.dim // self.heads

        def split(x: Array) -> Array:
            return x.reshape(batch, length, self.heads, head).swapaxes(1, 2)

        # Self-attention over (batch, heads, sequence, head).
        observe(f"{i}.qkv", plain)
        x = plain * norm.gamma + norm.beta
        scores = split(layer.query(x)) @ split(layer.key(x)).swapaxes(2, 3)
        attended = _softmax(scores / math.sqrt(head)) @ split(layer.value(x))
        context = attended.swapaxes(1, 2).reshape(batch, length, self.dim)
        # Output projection, residual and norm.
        observe(f"{i}.out", context)
        plain = _normalise(x + layer.out(context), self.epsilon)
        x = plain * layer.out_norm.gamma + layer.out_norm.beta
        # The multi-layer perceptron, residual and norm.
        observe(f"{i}.up", plain)
        wide = gelu(layer.up(x))
        observe(f"{i}.down", wide)
        return _normalise(x + layer.down(wide), self.epsilon)

    def embed(self, tokens: Sequence[Sequence[int]], *, pooling: str, normalise: bool) -> Array:
        """Compute embeddings (texts, hidden); each text is a batch of its own."""
        rows = np.empty((len(tokens), self.dim), self.positions.dtype)
        states = self.run([np.asarray([ids]) for ids in tokens])
        for row, (hidden,) in zip(rows, states, strict=True):
            row[:] = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
        if normalise:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


class _Layers(Sequence[Layer]):
    """The layers of a file: each is read when it is asked for, and not kept."""

    def __init__(self, read: Callable[[int], Layer], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._read(index)


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


def gelu(x: Array) -> Array:
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
    """The tensors of one file under their BERT names; each is checked when it is read."""

    def __init__(self, checkpoint: Checkpoint, path: Path, dtype: npt.DTypeLike) -> None:
        self.path, self.dtype, self.checkpoint = path, dtype, checkpoint

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
                f"{self.path.with_name('config.json')}: no usable value for {error}; "
                f"expected the settings of a BERT model"
            ) from None
        if heads < 1 or hidden % heads:
            raise GranAlignError(
                f"{self.path.with_name('config.json')}: got {heads} heads for hidden size "
                f"{hidden}, expected a divisor of it"
            )
        # All tokens of a single sentence have type 0: add its row to every position.
        kinds = self.read("embeddings.token_type_embeddings.weight", types, hidden)
        return Bert(
            words=self.read("embeddings.word_embeddings.weight", words, hidden, dtype=np.float32),
            positions=self.read("embeddings.position_embeddings.weight", positions, hidden)
            + kinds[0],
            norm=self.norm("embeddings.LayerNorm", hidden),
            layers=self.layers(depth, hidden, wide),
            heads=heads,
            epsilon=epsilon,
            checkpoint=self.checkpoint,
        )

    def layers(self, depth: int, hidden: int, wide: int) -> Sequence[Layer]:
        # Shapes are checked now, before anything is written.
        for i in range(depth):
            for name, shape in _layer_shapes(f"encoder.layer.{i}", hidden, wide).items():
                self.check(name, shape)
        return _Layers(lambda i: self.layer(f"encoder.layer.{i}", hidden, wide), depth)

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

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise unless there is a tensor of this shape."""
        got = self.checkpoint.shape(name) if name in self.checkpoint else None
        if got != shape:
            raise GranAlignError(
                f"{self.path}: tensor {name} has shape {got}, expected {shape}; "
                f"config.json and the weights must belong together"
            )

    def read(self, name: str, *shape: int, dtype: npt.DTypeLike | None = None) -> Array:
        """Return a tensor in the reader's dtype; raise unless it has this shape and is finite."""
        self.check(name, shape)
        return self.checkpoint.read(name).astype(dtype or self.dtype, copy=False)


def _layer_shapes(name: str, hidden: int, wide: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a layer."""
    denses = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
    denses |= {
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (wide, hidden),
        "output.dense": (hidden, wide),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for dense, (rows, columns) in denses.items():
        shapes |= {f"{name}.{dense}.weight": (rows, columns), f"{name}.{dense}.bias": (rows,)}
    for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"{name}.{norm}.{part}": (hidden,) for part in ("weight", "bias")}
    return shapes


def _plain_name(name: str) -> str:
    """Return a tensor's name today: old files name the parameters of a norm gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")
