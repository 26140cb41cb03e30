"""BERT in NumPy, read from safetensors: the source of our graph's weights and its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Checkpoint

from .encoder import (
    Array,
    Dense,
    Encoder,
    Ids,
    Layers,
    Norm,
    Observer,
    Opened,
    Settings,
    Weights,
    gelu,
    softmax,
    standardised,
)


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


class _State(NamedTuple):
    """The output of a layer before gamma and beta of its norm, (batch, sequence, hidden)."""

    plain: Array
    norm: Norm


@dataclass(frozen=True)
class Bert(Encoder):
    """A BERT encoder: embedding tables (rows, hidden), layers, number of heads and epsilon."""

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
        config: Mapping[str, Any],
        dtype: npt.DTypeLike = np.float32,
        opened: Opened = lambda checkpoint: None,
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
        return _read_bert(
            Weights(checkpoint, weights, dtype),
            Settings(config, weights.with_name("config.json"), "BERT"),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of weights other than words, and of what is computed."""
        return self.positions.dtype

    def _begin(self, ids: Ids) -> _State:
        words = self.words[ids].astype(self.dtype, copy=False)
        return _State(standardised(words + self.positions[: ids.shape[1]], self.epsilon), self.norm)

    def _layer(self, layer: Layer, state: _State, i: int, observe: Observer) -> _State:
        plain, norm = state
        batch, length, _ = plain.shape
        head = self.dim // self.heads

        def split(x: Array) -> Array:
            return x.reshape(batch, length, self.heads, head).swapaxes(1, 2)

        # Self-attention over (batch, heads, sequence, head).
        observe(f"{i}.qkv", plain)
        x = plain * norm.gamma + norm.beta
        scores = split(layer.query(x)) @ split(layer.key(x)).swapaxes(2, 3)
        attended = softmax(scores / math.sqrt(head)) @ split(layer.value(x))
        context = attended.swapaxes(1, 2).reshape(batch, length, self.dim)
        # Output projection, residual and norm.
        observe(f"{i}.out", context)
        plain = standardised(x + layer.out(context), self.epsilon)
        x = plain * layer.out_norm.gamma + layer.out_norm.beta
        # The multi-layer perceptron, residual and norm.
        observe(f"{i}.up", plain)
        wide = gelu(layer.up(x))
        observe(f"{i}.down", wide)
        return _State(standardised(x + layer.down(wide), self.epsilon), layer.down_norm)

    def _end(self, state: _State) -> Array:
        return state.plain * state.norm.gamma + state.norm.beta


def fits_bert(config: Mapping[str, Any]) -> bool:
    """Return whether a BERT is one that `Bert` computes."""
    return (
        config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
    )


def _read_bert(weights: Weights, settings: Settings) -> Bert:
    """Read the encoder from weights under their BERT names."""
    # Sizes from the settings.
    hidden, wide = settings.integer("hidden_size"), settings.integer("intermediate_size")
    heads, depth = settings.heads(hidden), settings.integer("num_hidden_layers")
    words, positions = settings.integer("vocab_size"), settings.integer("max_position_embeddings")
    types, epsilon = settings.integer("type_vocab_size"), settings.number("layer_norm_eps")
    # All tokens of a single sentence have type 0: add its row to every position.
    kinds = weights.read("embeddings.token_type_embeddings.weight", types, hidden)
    return Bert(
        words=weights.read("embeddings.word_embeddings.weight", words, hidden, dtype=np.float32),
        positions=weights.read("embeddings.position_embeddings.weight", positions, hidden)
        + kinds[0],
        norm=weights.norm("embeddings.LayerNorm", hidden),
        layers=_layers(weights, depth, hidden, wide),
        heads=heads,
        epsilon=epsilon,
        checkpoint=weights.checkpoint,
    )


def _layers(weights: Weights, depth: int, hidden: int, wide: int) -> Sequence[Layer]:
    """Return the layers of a BERT."""
    # Shapes are checked now, before anything is written.
    for i in range(depth):
        for name, shape in _layer_shapes(f"encoder.layer.{i}", hidden, wide).items():
            weights.check(name, shape)
    return Layers(lambda i: _layer(weights, f"encoder.layer.{i}", hidden, wide), depth)


def _layer(weights: Weights, name: str, hidden: int, wide: int) -> Layer:
    return Layer(
        query=weights.dense(f"{name}.attention.self.query", hidden, hidden),
        key=weights.dense(f"{name}.attention.self.key", hidden, hidden),
        value=weights.dense(f"{name}.attention.self.value", hidden, hidden),
        out=weights.dense(f"{name}.attention.output.dense", hidden, hidden),
        out_norm=weights.norm(f"{name}.attention.output.LayerNorm", hidden),
        up=weights.dense(f"{name}.intermediate.dense", hidden, wide),
        down=weights.dense(f"{name}.output.dense", wide, hidden),
        down_norm=weights.norm(f"{name}.output.LayerNorm", hidden),
    )


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
