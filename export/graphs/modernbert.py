"""ModernBERT as an ONNX graph, written node by node from the weights.

Layers of both kinds have their own cosines, sines and mask, which are made once for all layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from granalign_fast.export.sources.encoders.encoder import Dense, Norm
from granalign_fast.export.sources.encoders.modernbert import Layer, ModernBert
from granalign_fast.export.specs import MASKED
from granalign_fast.models.graph_contract import INPUT_IDS, MASK, POSITIONS
from granalign_fast.runtime.standard_operators import MICROSOFT

from .encoder import EncoderGraph, HalfGraph, Int8Graph, Normed, build_encoder


class _Attended(NamedTuple):
    """What layers of one kind share: names of cosine, sine and mask; an empty one is no mask."""

    cosine: str
    sine: str
    mask: str


class ModernBertGraph(EncoderGraph):
    """The float32 graph; arguments as of `EncoderGraph`."""

    encoder: ModernBert
    kinds: dict[bool, _Attended]
    """By whether attention is local."""

    def _hidden(self) -> str:
        # Token ids to the first normalised state; it is the residual of the first layer as well.
        state = self._embed()
        residual = state.x
        self.kinds = self._layer_kinds()
        update, bias = "", None
        for i, layer in enumerate(self.encoder.layers):
            # Self-attention and its output projection; the first layer has no norm.
            if layer.norm is not None:
                residual, state = self._next(residual, update, bias, layer.norm)
            context = self._attention(state, layer, f"{i}.qkv")
            update, bias = self._project(context, layer.out, f"{i}.out")
            # The gated multi-layer perceptron.
            residual, state = self._next(residual, update, bias, layer.mlp_norm)
            wide = self._gated(state, layer, f"{i}.up")
            update, bias = self._project(wide, layer.down, f"{i}.down")
        return self._next(residual, update, bias, self.encoder.last_norm)[1].x

    def _embed(self) -> Normed:
        """Add the embedding of each token's word, and normalise it."""
        words = self._op("Gather", self._array(self.encoder.words), INPUT_IDS)
        return self._norm(words, self.encoder.norm, self.encoder.epsilon)

    # What layers of a kind share.

    def _layer_kinds(self) -> dict[bool, _Attended]:
        """Add cosines, sines and masks of both kinds of layers."""
        first = self._row_places(self.encoder.longest)
        if self.packed:
            places, mask = POSITIONS, MASK
        else:
            mask = self._mask()
            size = self._op("Concat", self._size(0), self._size(1), axis=0)
            places = self._op("Expand", first, size)
        local = self._local_mask(first, mask)
        return {
            kind: _Attended(*self._rotary(places, kind), local if kind else mask)
            for kind in (False, True)
        }

    def _mask(self) -> str:
        """Return the name of what layers that attend to the whole text add to scores."""
        return ""

    def _rotary(self, places: str, local: bool) -> tuple[str, str]:
        """Look up cosine and sine of each token's position, (batch, sequence, head size / 2)."""
        angles = self.encoder.angles(self.encoder.longest, local=local).astype(np.float64)
        cosine = self._op("Gather", self._array(np.cos(angles)), places)
        return cosine, self._op("Gather", self._array(np.sin(angles)), places)

    def _local_mask(self, places: str, mask: str) -> str:
        """Return the name of a mask that also hides keys outside the window of each query.

        Args:
            places: name of int32 (sequence,), the position of each token.
            mask: name of the mask for the whole text; empty for none.
        """
        distance = self._distances(places)
        window = self._array(self.encoder.window, np.int32)
        outside = self._op("Greater", self._op("Abs", distance), window)
        return self._op("Where", outside, self._array(self._hidden_score()), mask or self._array(0))

    def _hidden_score(self) -> float:
        """Return what is added to the score of a key outside the window."""
        return -np.inf

    # Layers.

    def _attention(self, state: Normed, layer: Layer, site: str) -> str:
        """Attend to the whole text or within the window: (batch, sequence, hidden)."""
        query, key, value = self._products(state, [layer.query, layer.key, layer.value], site)
        kind = self.kinds[layer.local]
        return self._attend([self._rotated(query, kind), self._rotated(key, kind), value], kind)

    def _attend(self, parts: list[str], kind: _Attended) -> str:
        heads = self.encoder.heads
        mask = [kind.mask] if kind.mask else []
        return self._op("Attention", *parts, *mask, q_num_heads=heads, kv_num_heads=heads)

    def _rotated(self, x: str, kind: _Attended) -> str:
        heads = self.encoder.heads
        return self._op("RotaryEmbedding", x, kind.cosine, kind.sine, num_heads=heads)

    def _gated(self, state: Normed, layer: Layer, site: str) -> str:
        up, gate = self._products(state, [layer.up, layer.gate], site)
        return self._op("Mul", self._op("Gelu", up), gate)

    def _project(self, x: str, dense: Dense, site: str) -> tuple[str, Any]:
        """Return a product, and the bias that `_next` has to add to it."""
        return self._product(x, dense, site), None

    def _next(self, residual: str, update: str, bias: Any, norm: Norm) -> tuple[str, Normed]:
        """Add an update and its bias to the residual; return the sum, and the sum normalised."""
        summed = self._op("Add", residual, update)
        return summed, self._norm(summed, norm, self.encoder.epsilon)


class HalfModernBertGraph(HalfGraph, ModernBertGraph):
    """The float16 graph of padded texts; arguments as of `HalfGraph`."""

    def _embed(self) -> Normed:
        norm = self.encoder.norm
        inputs = [self._padded_words(), self._array(norm.gamma)]
        inputs += [] if norm.beta is None else [self._array(norm.beta)]
        x = self._op("LayerNormalization", *inputs, axis=-1, epsilon=self.encoder.epsilon)
        return Normed(x, x, norm)

    def _mask(self) -> str:
        return self._padding_mask(self._size(0), self._size(1))

    def _hidden_score(self) -> float:
        # Finite, because a query of padding may have padding alone in its window.
        return MASKED

    def _products(self, state: Normed, denses: list[Dense], site: str) -> list[str]:
        # One product is one launch.
        joined = self._product(state.x, Dense.joined(denses), site)
        first = self._op("Split", joined, axis=-1, num_outputs=len(denses))
        names = [first, *(f"{first}.{i}" for i in range(1, len(denses)))]
        self.nodes[-1].output[:] = names
        return names

    def _attend(self, parts: list[str], kind: _Attended) -> str:
        return self._op(
            "MultiHeadAttention",
            *(*parts, "", "", kind.mask),
            domain=MICROSOFT,
            num_heads=self.encoder.heads,
        )

    def _project(self, x: str, dense: Dense, site: str) -> tuple[str, Any]:
        # The next norm's kernel adds the bias.
        return self._op("MatMul", x, self._array(dense.weight)), dense.bias

    def _next(self, residual: str, update: str, bias: Any, norm: Norm) -> tuple[str, Normed]:
        inputs = [update, residual, *self._learnt(norm, bias)]
        summed, y = self._sum_and_norm(
            "SkipLayerNormalization", inputs, epsilon=self.encoder.epsilon
        )
        return summed, Normed(y, y, norm)


class Int8ModernBertGraph(Int8Graph, ModernBertGraph):
    """The graph with 8-bit products; arguments as of `Int8Graph`."""


build_modernbert = partial(build_encoder, ModernBertGraph, HalfModernBertGraph, Int8ModernBertGraph)
"""Writes a `ModernBert` as a graph; arguments as of `build_encoder`, from `model` on."""
