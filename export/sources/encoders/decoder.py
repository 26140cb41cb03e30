"""Sentence encoders of the decoder type in NumPy: Qwen3-Embedding and EmbeddingGemma.

They are language models without a cache and without a last product. Qwen3 is causal, and the last
token stands for the text. Gemma 3 attends in both directions: in most of its layers to near tokens
alone, with rotary positions of another base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Checkpoint

from .decoder_shape import DecoderShape, gemma3_shape, qwen3_shape
from .encoder import (
    Array,
    Encoder,
    HeadLayer,
    Ids,
    Layers,
    Observer,
    Opened,
    Weights,
    gelu_tanh,
    silu,
    softmax,
)

_TABLE = "embed_tokens.weight"
_ACTIVATIONS = {"silu": silu, "gelu_pytorch_tanh": gelu_tanh}


class DecoderLayer:
    """The weights of one layer; each is read when it is first asked for.

    Args:
        weights: of the whole model.
        number: of the layer.
        shapes: of its tensors, as `DecoderShape.tensors` returns them.
    """

    def __init__(
        self, weights: Weights, number: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._weights, self._shapes = weights, shapes
        self.number, self.prefix = number, f"layers.{number}"
        self._read: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._read:
            read = self._weights.read(f"{self.prefix}.{name}", *self._shapes[name])
            self._read[name] = read
        return self._read[name]

    def product(self, x: Array, name: str) -> Array:
        """Apply a linear layer, with its bias if it has one."""
        y: Array = x @ self[f"{name}.weight"].T
        if f"{name}.bias" in self._shapes:
            y += self[f"{name}.bias"]
        return y


class WordTable:
    """A table of embeddings (rows, columns) in a file; rows that were asked for are kept.

    Args:
        weights: of the whole model.
        shape: of the table.
        scale: factor of its values, in float32 as in transformers.
    """

    def __init__(self, weights: Weights, shape: tuple[int, int], scale: float) -> None:
        weights.check(_TABLE, shape)
        self._weights, self.shape, self._scale = weights, shape, np.float32(scale)
        self._rows: dict[int, Array] = {}

    def __getitem__(self, ids: Ids) -> Array:
        self.read(ids)
        found = np.array([self._rows[one] for one in ids.ravel().tolist()], self._weights.dtype)
        return found.reshape(*ids.shape, self.shape[1])

    def read(self, ids: Ids) -> None:
        """Read the rows that are not known yet, in one pass over the file."""
        new = np.array([one for one in np.unique(ids).tolist() if one not in self._rows], np.int64)
        start = 0
        for part in self._weights.checkpoint.slices(_TABLE) if len(new) else ():
            here = new[(new >= start) & (new < start + len(part))]
            self._rows |= zip(here.tolist(), part[here - start] * self._scale, strict=True)
            start += len(part)


@dataclass(frozen=True)
class Decoder(Encoder):
    """A sentence encoder of the decoder type, from token ids to the last norm."""

    words: Any
    layers: Sequence[DecoderLayer]
    checkpoint: Checkpoint
    shape: DecoderShape
    norm: Array
    head: Sequence[HeadLayer] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of all weights, and of what is computed."""
        return self.norm.dtype

    def run(self, batches: Sequence[Ids], observe: Observer | None = None) -> list[Array]:
        """Compute the last norm's output of several batches, as `Encoder.run`."""
        self.words.read(np.concatenate([np.ravel(ids) for ids in batches]))
        return super().run(batches, observe)

    def _begin(self, ids: Ids) -> Array:
        state: Array = self.words[ids]
        return state

    def _layer(self, layer: DecoderLayer, state: Array, i: int, observe: Observer) -> Array:
        x, four = state, self.shape.norms == 4
        # Self-attention and the residual.
        y = self._attention(layer, self._normed(x, layer["input_layernorm.weight"]))
        if four:
            y = self._normed(y, layer["post_attention_layernorm.weight"])
        x = x + y
        # The gated perceptron and the residual.
        before = "pre_feedforward" if four else "post_attention"
        y = self._normed(x, layer[f"{before}_layernorm.weight"])
        gate = _ACTIVATIONS[self.shape.activation](layer.product(y, "mlp.gate_proj"))
        y = layer.product(gate * layer.product(y, "mlp.up_proj"), "mlp.down_proj")
        if four:
            y = self._normed(y, layer["post_feedforward_layernorm.weight"])
        return x + y

    def _end(self, state: Array) -> Array:
        return self._normed(state, self.norm)

    def _normed(self, x: Array, weight: Array) -> Array:
        """Apply an RMS norm over the last axis."""
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.shape.epsilon)
        normed: Array = x / scale * (weight + self.dtype.type(self.shape.gain))
        return normed

    def _attention(self, layer: DecoderLayer, x: Array) -> Array:
        """Attend within each text: (batch, sequence, heads * head_dim), projected."""
        shape, (batch, length, _) = self.shape, x.shape

        def split(part: str, heads: int) -> Array:
            y = layer.product(x, f"self_attn.{part}_proj")
            return y.reshape(batch, length, heads, shape.head_dim).swapaxes(1, 2)

        # Queries and keys are normalised head by head, then rotated.
        angles = np.arange(length)[:, None] * shape.frequencies(layer.number).astype(self.dtype)
        rows = [
            _rotated(
                self._normed(split(part, heads), layer[f"self_attn.{part}_norm.weight"]), angles
            )
            for part, heads in (("q", shape.heads), ("k", shape.kv_heads))
        ]
        group = shape.heads // shape.kv_heads
        query, key = rows[0], np.repeat(rows[1], group, axis=1)
        value = np.repeat(split("v", shape.kv_heads), group, axis=1)
        # Tokens behind the query, or too far from it, are not attended to.
        ahead = np.arange(length) - np.arange(length)[:, None]
        hidden = ahead > 0 if shape.causal else np.zeros_like(ahead, bool)
        if (window := shape.windows[layer.number]) is not None:
            hidden = hidden | (abs(ahead) >= window)
        scores = np.where(
            hidden, -np.inf, query @ key.swapaxes(2, 3) * self.dtype.type(shape.scale)
        )
        attended = (softmax(scores) @ value).swapaxes(1, 2).reshape(batch, length, -1)
        return layer.product(attended, "self_attn.o_proj")


def _rotated(x: Array, angles: Array) -> Array:
    """Rotate the pairs (value i, value i + size / 2) of (..., sequence, size)."""
    first, second = np.split(x, 2, axis=-1)
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def load_qwen3(
    weights: Path,
    config: Mapping[str, Any],
    dtype: npt.DTypeLike = np.float32,
    opened: Opened = lambda checkpoint: None,
) -> Decoder:
    """Read a Qwen3; arguments and errors as of `Bert.load`."""
    return _read(weights, qwen3_shape(config, weights.with_name("config.json")), dtype, opened)


def load_gemma3(
    weights: Path,
    config: Mapping[str, Any],
    dtype: npt.DTypeLike = np.float32,
    opened: Opened = lambda checkpoint: None,
) -> Decoder:
    """Read a text model of Gemma 3; arguments and errors as of `Bert.load`."""
    return _read(weights, gemma3_shape(config, weights.with_name("config.json")), dtype, opened)


def _read(weights: Path, shape: DecoderShape, dtype: npt.DTypeLike, opened: Opened) -> Decoder:
    """Read a decoder of either family."""
    checkpoint = Checkpoint(weights.parent)
    checkpoint.rooted(_TABLE)
    opened(checkpoint)
    # Shapes are checked now, before anything is written.
    reader, shapes = Weights(checkpoint, weights, dtype), shape.tensors()
    layers = len(shape.thetas)
    for i in range(layers):
        for name, size in shapes.items():
            reader.check(f"layers.{i}.{name}", size)
    return Decoder(
        words=WordTable(reader, (shape.words, shape.hidden), shape.words_scale),
        layers=Layers(lambda i: DecoderLayer(reader, i, shapes), layers),
        checkpoint=checkpoint,
        shape=shape,
        norm=reader.read("norm.weight", shape.hidden),
    )
