"""BERT in NumPy, read from safetensors: the source of our graph's weights and its reference.

Families that differ from BERT in their positions alone have the same class and the same graph, and
a file of their own that reads their settings and weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    """A BERT encoder: embedding tables (rows, hidden), layers, number of heads and epsilon.

    Attributes:
        positions: the embedding of each position, with that of token type 0 where there is one.
            With `uncounted`, row 0 is that token's, and row n is that of the n-th other token.
        uncounted: id of a token that has no position of its own and is not counted, wherever it
            stands in a text; None if there is none.
        distances: (heads, 2 * n - 1) for texts of up to n tokens, added to the scores of attention:
            column n - 1 + d is that of a key d tokens behind its query; None for nothing.
    """

    words: Array
    positions: Array
    norm: Norm
    layers: Sequence[Layer]
    heads: int
    epsilon: float
    checkpoint: Checkpoint
    uncounted: int | None = None
    distances: Array | None = None

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
        return read_bert(
            open_weights(weights, dtype, opened),
            Settings(config, weights.with_name("config.json"), "BERT"),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of weights other than words, and of what is computed."""
        return self.positions.dtype

    def _begin(self, ids: Ids) -> _State:
        words = self.words[ids].astype(self.dtype, copy=False)
        return _State(standardised(words + self._position_rows(ids), self.epsilon), self.norm)

    def _position_rows(self, ids: Ids) -> Array:
        """Return the embeddings of the positions of ids (batch, sequence)."""
        if self.uncounted is None:
            return self.positions[: ids.shape[1]]
        counted = ids != self.uncounted
        rows: Array = self.positions[np.cumsum(counted, axis=1) * counted]
        return rows

    def _layer(self, layer: Layer, state: _State, i: int, observe: Observer) -> _State:
        plain, norm = state
        batch, length, _ = plain.shape
        head = self.dim // self.heads

        def split(x: Array) -> Array:
            return x.reshape(batch, length, self.heads, head).swapaxes(1, 2)

        # Self-attention over (batch, heads, sequence, head).
        observe(f"{i}.qkv", plain)
        x = norm(plain)
        scores = split(layer.query(x)) @ split(layer.key(x)).swapaxes(2, 3)
        scores = scores / math.sqrt(head)
        if self.distances is not None:
            # Row i of the scores is a query, column j a key.
            place = np.arange(length)
            middle = self.distances.shape[1] // 2
            scores = scores + self.distances[:, middle + place - place[:, None]]
        attended = softmax(scores) @ split(layer.value(x))
        context = attended.swapaxes(1, 2).reshape(batch, length, self.dim)
        # Output projection, residual and norm.
        observe(f"{i}.out", context)
        plain = standardised(x + layer.out(context), self.epsilon)
        x = layer.out_norm(plain)
        # The multi-layer perceptron, residual and norm.
        observe(f"{i}.up", plain)
        wide = gelu(layer.up(x))
        observe(f"{i}.down", wide)
        return _State(standardised(x + layer.down(wide), self.epsilon), layer.down_norm)

    def _end(self, state: _State) -> Array:
        return state.norm(state.plain)


def fits_bert(config: Mapping[str, Any]) -> bool:
    """Return whether a model of these settings is one that `Bert` computes."""
    return (
        config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
    )


def open_weights(
    weights: Path,
    dtype: npt.DTypeLike,
    opened: Opened,
    rename: Callable[[str], str] = lambda name: name,
) -> Weights:
    """Open the weights of a folder, under the names that they have today without a wrapper's.

    Args:
        weights: as for `Bert.load`.
        dtype: as for `Weights`.
        opened: as for `Bert.load`.
        rename: from a family's own names to BERT's.
    """
    # Models with a head on top keep the encoder under "bert.".
    checkpoint = Checkpoint(weights.parent, lambda name: rename(_plain_name(name)))
    checkpoint.rooted("embeddings.word_embeddings.weight")
    opened(checkpoint)
    return Weights(checkpoint, weights, dtype)


def read_bert(weights: Weights, settings: Settings, *, types: bool = True) -> Bert:
    """Read the encoder from weights under their BERT names; `types`: whether tokens have types."""
    # Sizes from the settings.
    hidden, wide = settings.integer("hidden_size"), settings.integer("intermediate_size")
    heads, depth = settings.heads(hidden), settings.integer("num_hidden_layers", 1)
    words, positions = settings.integer("vocab_size"), settings.integer("max_position_embeddings")
    epsilon = settings.number("layer_norm_eps")
    places = weights.read("embeddings.position_embeddings.weight", positions, hidden)
    if types:
        # All tokens of a single sentence have type 0: add its row to every position.
        kinds = settings.integer("type_vocab_size")
        places = places + weights.read("embeddings.token_type_embeddings.weight", kinds, hidden)[0]
    return Bert(
        words=weights.read("embeddings.word_embeddings.weight", words, hidden, dtype=np.float32),
        positions=places,
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
