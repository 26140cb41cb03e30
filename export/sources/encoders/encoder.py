"""The base of every sentence encoder in NumPy: the source of our graphs' weights and reference.

A family is a subclass of `Encoder` in a file of its own. It reads its settings and weights, checks
them, and computes one layer after the other. All that follows from it, such as ranges for int8 and
the self-check of an export, is the same for every family.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.export.sources.checkpoint import Checkpoint

Array = npt.NDArray[np.floating[Any]]

Ids = npt.NDArray[np.integer[Any]]

Observer = Callable[[str, Array], None]
"""Called with the name and the value of an activation, see `Encoder.run`."""

Opened = Callable[[Checkpoint], None]
"""Called with the weights before any is read."""


class Dense(NamedTuple):
    """A dense layer ``x @ weight + bias``; weight (in, out), bias (out,) or None."""

    weight: Array
    bias: Array | None

    @classmethod
    def joined(cls, denses: Sequence[Dense]) -> Dense:
        """Return one layer with the outputs of several; all of them have a bias, or none."""
        biases = [dense.bias for dense in denses if dense.bias is not None]
        weight = np.concatenate([dense.weight for dense in denses], axis=1)
        return cls(weight, np.concatenate(biases) if biases else None)

    def split(self, parts: int) -> list[Dense]:
        """Return layers with equal shares of the outputs, from the first to the last."""
        weights = np.split(self.weight, parts, axis=1)
        biases = [None] * parts if self.bias is None else np.split(self.bias, parts)
        return [Dense(w, b) for w, b in zip(weights, biases, strict=True)]

    def __call__(self, x: Array) -> Array:
        """Apply the layer to x (..., in): (..., out)."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Norm(NamedTuple):
    """The learnt parameters of a layer normalisation; gamma and beta (hidden,), or no beta."""

    gamma: Array
    beta: Array | None

    def __call__(self, plain: Array) -> Array:
        """Scale and shift rows that `standardised` returned."""
        scaled = plain * self.gamma
        return scaled if self.beta is None else scaled + self.beta


class HeadLayer(NamedTuple):
    """A dense layer on pooled embeddings, one of sentence-transformers' modules `Dense`.

    Weight (in, out); bias (out,), or None for none; the activation is a key of `HEAD_ACTIVATIONS`.
    """

    weight: Array
    bias: Array | None
    activation: str

    def __call__(self, x: Array) -> Array:
        """Apply the layer to x (..., in): (..., out)."""
        y: Array = x @ self.weight.astype(x.dtype, copy=False)
        y = y if self.bias is None else y + self.bias.astype(x.dtype, copy=False)
        return np.tanh(y) if self.activation == "Tanh" else y


HEAD_ACTIVATIONS = ("Identity", "Tanh")
"""Activations of a `HeadLayer`, by torch's name."""


class Encoder(ABC):
    """A sentence encoder, from token ids to embeddings.

    Words are float32; all other weights, and what is computed, have `dtype`. A layer is read each
    time that it is asked for: memory holds one at a time. A subclass is a frozen dataclass with
    the attributes below.

    Attributes:
        words: the table of token embeddings, (vocabulary, hidden).
        layers: the layers, of the family's own type.
        checkpoint: where the weights are read from.
        head: layers on the pooled embedding, before it gets unit length; most models have none.
    """

    words: Array
    layers: Sequence[Any]
    checkpoint: Checkpoint
    head: Sequence[HeadLayer] = ()

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """The type of weights other than words, and of what is computed."""

    @abstractmethod
    def _begin(self, ids: Ids) -> Any:
        """Return the state before the first layer of ids (batch, sequence)."""

    @abstractmethod
    def _layer(self, layer: Any, state: Any, i: int, observe: Observer) -> Any:
        """Apply layer number i to a state; call `observe` for each product, see `run`."""

    @abstractmethod
    def _end(self, state: Any) -> Array:
        """Return the output (batch, sequence, hidden) from the state behind the last layer."""

    @property
    def dim(self) -> int:
        """Number of an embedding's columns."""
        return int(self.head[-1].weight.shape[1]) if self.head else self.width

    @property
    def width(self) -> int:
        """Number of values of a token, and of a pooled embedding before the head."""
        return int(self.words.shape[1])

    def with_head(self, head: Sequence[HeadLayer]) -> Self:
        """Return the same encoder with layers on its pooled embeddings."""
        changed: Self = replace(self, head=head) if head else self  # type: ignore[type-var]
        return changed

    def first(self, layers: int) -> Self:
        """Return the same encoder with the first layers alone."""
        few = Layers(self.layers.__getitem__, min(layers, len(self.layers)))
        changed: Self = replace(self, layers=few)  # type: ignore[type-var]
        return changed

    def hidden(self, ids: Ids, observe: Observer | None = None) -> Array:
        """Compute the last layer's output, (batch, sequence, hidden), for texts of equal length.

        Args:
            ids: token ids, (batch, sequence).
            observe: as for `run`.
        """
        return self.run([ids], observe)[0]

    def run(self, batches: Sequence[Ids], observe: Observer | None = None) -> list[Array]:
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
        states = [self._begin(ids) for ids in batches]
        for i, layer in enumerate(self.layers):
            states = [self._layer(layer, state, i, observe) for state in states]
        return [self._end(state) for state in states]

    def embed(self, tokens: Sequence[Sequence[int]], *, pooling: str, normalise: bool) -> Array:
        """Compute embeddings (texts, hidden); each text is a batch of its own."""
        states = self.run([np.asarray([ids]) for ids in tokens])
        rows = np.stack([pooled(hidden, pooling) for (hidden,) in states])
        for layer in self.head:
            rows = layer(rows)
        if normalise:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


def pooled(hidden: Any, pooling: str) -> Any:
    """Return one row for a text, of its tokens' (sequence, hidden); an array or a tensor."""
    if pooling == "mean":
        return hidden.mean(0)
    return hidden[-1 if pooling == "last" else 0]


class Layers(Sequence[Any]):
    """The layers of a file: each is read when it is asked for, and not kept."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._read(index)


# What layers compute.


def standardised(x: Array, epsilon: float) -> Array:
    """Normalise rows as a layer norm does before gamma and beta."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance: Array = (centred * centred).mean(axis=-1, keepdims=True)
    normalised: Array = centred / np.sqrt(variance + epsilon)
    return normalised


def softmax(x: Array) -> Array:
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


def gelu_tanh(x: Array) -> Array:
    """Compute the approximation of `gelu` by a hyperbolic tangent."""
    root = x.dtype.type(math.sqrt(2 / math.pi))
    result: Array = x / 2 * (1 + np.tanh(root * (x + x.dtype.type(0.044715) * x**3)))
    return result


def silu(x: Array) -> Array:
    """Compute ``x * sigmoid(x)``."""
    result: Array = x / (1 + np.exp(-x))
    return result


@cache
def _erf_table() -> tuple[Array, int, int]:
    """Return erf from -limit to limit, its entries per unit, and limit; beyond it erf is ±1."""
    steps, limit = 2**12, 6
    points = range(-limit * steps, limit * steps + 2)
    return np.array([math.erf(point / steps) for point in points]), steps, limit


# Settings and weights.

_MOST = 1e15
"""No setting of a model is as large."""


class Weights:
    """The tensors of a checkpoint; each is checked when it is read.

    Args:
        checkpoint: where they come from.
        path: a file of the weights, for messages; its folder holds ``config.json``.
        dtype: of the arrays that `read` returns.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, dtype: npt.DTypeLike) -> None:
        self.path, self.dtype, self.checkpoint = path, dtype, checkpoint

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

    def dense(self, name: str, inputs: int, outputs: int, *, biased: bool = True) -> Dense:
        """Return a dense layer, from `name`.weight (outputs, inputs) and `name`.bias (outputs,)."""
        weight = self.read(f"{name}.weight", outputs, inputs)
        bias = self.read(f"{name}.bias", outputs) if biased else None
        return Dense(np.ascontiguousarray(weight.T), bias)

    def norm(self, name: str, hidden: int, *, biased: bool = True) -> Norm:
        """Return a norm's parameters, `name`.weight and `name`.bias (hidden,) both."""
        gamma = self.read(f"{name}.weight", hidden)
        return Norm(gamma, self.read(f"{name}.bias", hidden) if biased else None)


class Settings:
    """Numbers of a ``config.json``.

    Args:
        config: the settings.
        path: of their file, for messages.
        family: the model's name, for messages.
    """

    def __init__(self, config: Mapping[str, Any], path: Path, family: str) -> None:
        self.config, self.path, self.family = config, path, family

    def integer(self, name: str, least: int = 0) -> int:
        """Return a whole number that is not less than `least`; raise unless there is one."""
        number = self.number(name, least)
        if number != int(number):
            raise self._unusable(name)
        return int(number)

    def number(self, name: str, least: float = 0) -> float:
        """Return a finite number that is not less than `least`; raise unless there is one."""
        value = self.config.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._unusable(name)
        if not least <= value < _MOST:
            raise self._unusable(name)
        return float(value)

    def flag(self, name: str) -> bool:
        """Return a truth value; raise unless there is one."""
        value = self.config.get(name)
        if not isinstance(value, bool):
            raise self._unusable(name)
        return value

    def _unusable(self, name: str) -> GranAlignError:
        return GranAlignError(
            f"{self.path}: got no usable value for {name!r}, {short_repr(self.config.get(name))}; "
            f"expected the settings of a {self.family} model"
        )

    def heads(self, hidden: int) -> int:
        """Return the number of heads; raise unless it divides the hidden size."""
        heads = self.integer("num_attention_heads")
        if heads < 1 or hidden % heads:
            raise GranAlignError(
                f"{self.path}: got {heads} heads for hidden size {hidden}, expected a divisor of it"
            )
        return heads
