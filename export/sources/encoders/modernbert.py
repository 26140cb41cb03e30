"""ModernBERT: pre-norm layers, rotary positions, a gated perceptron, and attention that is local.

Most layers attend within a window around each token, and some attend to the whole text. Each of the
two kinds has a base of its own for its rotary positions. The first layer has no norm before its
attention, since the embeddings are normalised (arXiv 2412.13663; transformers, `ModernBertModel`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.checkpoint import Checkpoint, Float32
from granalign_fast.export.sources.layouts import uniform_config

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

_WORDS = "embeddings.tok_embeddings.weight"

_MOST_POSITIONS = 1 << 17
"""The graph holds the rotary angles of all positions; published models have 8,192."""

_DEFAULTS: dict[str, Any] = {
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
}
"""transformers' values of settings that ``config.json`` may leave out."""


@dataclass(frozen=True)
class Layer:
    """One encoder layer.

    Attributes:
        norm: before the attention; None in the first layer, whose input is normalised.
        query: (hidden, hidden), as are `key`, `value` and `out`.
        up: (hidden, wide), through GELU; `gate` is multiplied by the result.
        local: whether attention is limited to a window.
    """

    norm: Norm | None
    query: Dense
    key: Dense
    value: Dense
    out: Dense
    mlp_norm: Norm
    up: Dense
    gate: Dense
    down: Dense
    local: bool


class _State(NamedTuple):
    """The sum of all layers so far, and the same before gamma and beta of the first norm."""

    x: Array
    plain: Array


@dataclass(frozen=True)
class ModernBert(Encoder):
    """A ModernBERT encoder.

    Attributes:
        norm: of the embeddings.
        last_norm: behind the last layer.
        heads: number of heads.
        epsilon: of every norm.
        window: how far a key may be from its query in a local layer, in tokens.
        thetas: bases of the rotary positions, of layers that attend to the whole text and of local
            ones.
        longest: number of positions.
    """

    words: Array
    norm: Norm
    layers: Sequence[Layer]
    last_norm: Norm
    heads: int
    epsilon: float
    window: int
    thetas: tuple[float, float]
    longest: int
    checkpoint: Checkpoint

    @classmethod
    def load(
        cls,
        weights: Path,
        config: Mapping[str, Any],
        dtype: npt.DTypeLike = np.float32,
        opened: Opened = lambda checkpoint: None,
    ) -> ModernBert:
        """Read safetensors; arguments and errors as of `Bert.load`."""
        path = weights.with_name("config.json")
        settings = Settings(_DEFAULTS | uniform_config(dict(config), path), path, "ModernBERT")
        # Models with a head on top keep the encoder under "model.".
        checkpoint = Checkpoint(weights.parent).rooted(_WORDS)
        opened(checkpoint)
        return _read(Weights(checkpoint, weights, dtype), settings)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of weights other than words, and of what is computed."""
        return self.norm.gamma.dtype

    def angles(self, length: int, *, local: bool) -> Float32:
        """Return the rotary angles of the first positions, (length, head size / 2).

        They are computed in float32, as in the source.
        """
        size = self.dim // self.heads
        theta = np.float32(self.thetas[local])
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        frequencies = (1 / theta**exponents).astype(np.float32)
        return np.arange(length, dtype=np.float32)[:, None] * frequencies

    def _begin(self, ids: Ids) -> _State:
        plain = standardised(self.words[ids].astype(self.dtype, copy=False), self.epsilon)
        return _State(self.norm(plain), plain)

    def _layer(self, layer: Layer, state: _State, i: int, observe: Observer) -> _State:
        x, plain = state
        normed = x
        if layer.norm is not None:
            plain = standardised(x, self.epsilon)
            normed = layer.norm(plain)
        # Self-attention and its output projection.
        observe(f"{i}.qkv", plain)
        context = self._attend(layer, normed)
        observe(f"{i}.out", context)
        x = x + layer.out(context)
        # The gated multi-layer perceptron.
        plain = standardised(x, self.epsilon)
        observe(f"{i}.up", plain)
        normed = layer.mlp_norm(plain)
        wide = gelu(layer.up(normed)) * layer.gate(normed)
        observe(f"{i}.down", wide)
        return _State(x + layer.down(wide), plain)

    def _attend(self, layer: Layer, x: Array) -> Array:
        """Attend head by head, since scores of long texts are large: (batch, sequence, hidden)."""
        batch, length, _ = x.shape
        size = self.dim // self.heads
        angles = self.angles(length, local=layer.local).astype(self.dtype)
        cosine, sine = np.cos(angles), np.sin(angles)
        place = np.arange(length)
        hidden = np.abs(place - place[:, None]) > self.window

        def heads(dense: Dense) -> Array:
            return dense(x).reshape(batch, length, self.heads, size).transpose(2, 0, 1, 3)

        def rotated(part: Array) -> Array:
            # Value i and value i + size / 2 are a point in the plane.
            first, second = np.split(part, 2, axis=-1)
            turned = [first * cosine - second * sine, second * cosine + first * sine]
            return np.concatenate(turned, axis=-1)

        context = np.empty((self.heads, batch, length, size), x.dtype)
        for head, (query, key, value) in enumerate(
            zip(heads(layer.query), heads(layer.key), heads(layer.value), strict=True)
        ):
            scores = rotated(query) @ rotated(key).swapaxes(1, 2) / math.sqrt(size)
            if layer.local:
                scores[:, hidden] = -np.inf
            context[head] = softmax(scores) @ value
        joined: Array = context.transpose(1, 2, 0, 3).reshape(batch, length, self.dim)
        return joined

    def _end(self, state: _State) -> Array:
        return self.last_norm(standardised(state.x, self.epsilon))


def fits_modernbert(config: Mapping[str, Any]) -> bool:
    """Return whether a model of these settings is one that `ModernBert` computes."""
    scaling = [config.get("rope_scaling"), config.get("rope_parameters")]
    # Rotary positions are plain, in one set of parameters or in one for each kind of layer.
    nested = [s.values() for s in scaling if isinstance(s, dict)]
    scaling += [one for values in nested for one in values if isinstance(one, dict)]
    kinds = [s.get("rope_type", s.get("type", "default")) for s in scaling if isinstance(s, dict)]
    return config.get("hidden_activation", "gelu") == "gelu" and kinds == ["default"] * len(kinds)


def _read(weights: Weights, settings: Settings) -> ModernBert:
    """Read the encoder, with all of its tensors checked."""
    hidden, wide = settings.integer("hidden_size"), settings.integer("intermediate_size")
    heads, depth = settings.heads(hidden), settings.integer("num_hidden_layers", 1)
    if hidden // heads % 2:
        raise GranAlignError(
            f"{settings.path}: got {heads} heads for hidden size {hidden}, expected heads of an "
            f"even size, which rotary positions turn in pairs"
        )
    longest = settings.integer("max_position_embeddings")
    if not 0 < longest <= _MOST_POSITIONS:
        raise GranAlignError(
            f"{settings.path}: got max_position_embeddings {longest}, expected 1 to "
            f"{_MOST_POSITIONS}; copy or download the model again"
        )
    norms = settings.flag("norm_bias")
    _check(weights, _norm_shapes("embeddings.norm", hidden, norms))
    for i in range(depth):
        _check(weights, _layer_shapes(settings, i, hidden, wide))
    local = _local_layers(settings, depth)
    # Without a base of their own, local layers have the other one.
    base = settings.number("global_rope_theta", least=1)
    own = settings.config["local_rope_theta"]
    return ModernBert(
        words=weights.read(_WORDS, settings.integer("vocab_size"), hidden, dtype=np.float32),
        norm=weights.norm("embeddings.norm", hidden, biased=norms),
        layers=Layers(lambda i: _layer(weights, settings, i, local[i]), depth),
        last_norm=weights.norm("final_norm", hidden, biased=norms),
        heads=heads,
        epsilon=settings.number("norm_eps"),
        window=settings.integer("local_attention") // 2,
        thetas=(base, base if own is None else settings.number("local_rope_theta", least=1)),
        longest=longest,
        checkpoint=weights.checkpoint,
    )


def _local_layers(settings: Settings, depth: int) -> list[bool]:
    """Return which layers attend within a window."""
    kinds = settings.config.get("layer_types")
    if kinds is None:
        every = settings.integer("global_attn_every_n_layers", 1)
        return [bool(i % every) for i in range(depth)]
    known = {"full_attention": False, "sliding_attention": True}
    valid = isinstance(kinds, list) and len(kinds) == depth
    if not valid or any(kind not in [*known] for kind in kinds):
        raise GranAlignError(
            f"{settings.path}: got layer_types {kinds!r}, expected {depth} of {sorted(known)}; "
            f"copy or download the model again"
        )
    return [known[kind] for kind in kinds]


def _layer(weights: Weights, settings: Settings, i: int, local: bool) -> Layer:
    name = f"layers.{i}"
    hidden, wide = settings.integer("hidden_size"), settings.integer("intermediate_size")
    attention, mlp, norms = (
        settings.flag(key) for key in ("attention_bias", "mlp_bias", "norm_bias")
    )
    joined = weights.dense(f"{name}.attn.Wqkv", hidden, 3 * hidden, biased=attention)
    query, key, value = joined.split(3)
    up, gate = weights.dense(f"{name}.mlp.Wi", hidden, 2 * wide, biased=mlp).split(2)
    return Layer(
        norm=weights.norm(f"{name}.attn_norm", hidden, biased=norms) if i else None,
        query=query,
        key=key,
        value=value,
        out=weights.dense(f"{name}.attn.Wo", hidden, hidden, biased=attention),
        mlp_norm=weights.norm(f"{name}.mlp_norm", hidden, biased=norms),
        up=up,
        gate=gate,
        down=weights.dense(f"{name}.mlp.Wo", wide, hidden, biased=mlp),
        local=local,
    )


Shapes = dict[str, tuple[int, ...] | None]
"""Shapes by name; None for a tensor that there must not be, since transformers would ignore it."""


def _layer_shapes(settings: Settings, i: int, hidden: int, wide: int) -> Shapes:
    """Return the shapes of a layer's tensors."""
    shapes: Shapes = {}
    for dense, rows, columns, biased in (
        ("attn.Wqkv", 3 * hidden, hidden, "attention_bias"),
        ("attn.Wo", hidden, hidden, "attention_bias"),
        ("mlp.Wi", 2 * wide, hidden, "mlp_bias"),
        ("mlp.Wo", hidden, wide, "mlp_bias"),
    ):
        shapes[f"layers.{i}.{dense}.weight"] = (rows, columns)
        shapes[f"layers.{i}.{dense}.bias"] = (rows,) if settings.flag(biased) else None
    for norm in ["attn_norm"] * (i > 0) + ["mlp_norm"]:
        shapes |= _norm_shapes(f"layers.{i}.{norm}", hidden, settings.flag("norm_bias"))
    return shapes


def _norm_shapes(name: str, hidden: int, biased: bool) -> Shapes:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,) if biased else None}


def _check(weights: Weights, shapes: Shapes) -> None:
    """Raise unless tensors have these shapes; this is before anything is written."""
    for name, shape in shapes.items():
        if shape is not None:
            weights.check(name, shape)
        elif name in weights.checkpoint:
            raise GranAlignError(
                f"{weights.path}: got the tensor {name}, expected none, as config.json says; "
                f"copy or download the model again"
            )
