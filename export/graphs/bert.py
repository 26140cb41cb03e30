"""BERT as an ONNX graph, written node by node from the weights: token ids in, embeddings out.

RoBERTa, XLM-R and MPNet are the same graph, with other positions and, for MPNet, a bias for the
distance of two tokens.

The fp16 graph takes nine launches a layer on a GPU, matrix products included.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from granalign_fast.export.sources.encoders.bert import Bert
from granalign_fast.export.sources.encoders.encoder import Array, Dense, Norm
from granalign_fast.models.graph_contract import INPUT_IDS, MASK, POSITIONS
from granalign_fast.runtime.standard_operators import MICROSOFT

from .encoder import EncoderGraph, HalfGraph, Int8Graph, Normed, build_encoder


class BertGraph(EncoderGraph):
    """The float32 graph; arguments as of `EncoderGraph`."""

    encoder: Bert
    mask: str = ""
    """Name of what is added to the scores of attention; empty for nothing."""

    def _hidden(self) -> str:
        heads = self.encoder.heads
        # Token ids to the first normalised state.
        state = self._embed()
        for i, layer in enumerate(self.encoder.layers):
            # Self-attention, its output projection, the residual and the norm.
            context = self._attention(state, layer.query, layer.key, layer.value, heads, f"{i}.")
            state = self._project_and_norm(context, layer.out, state, layer.out_norm, f"{i}.out")
            # The multi-layer perceptron, the residual and the norm.
            (wide,) = self._products(state, [layer.up], f"{i}.up")
            wide = self._op("Gelu", wide)
            state = self._project_and_norm(wide, layer.down, state, layer.down_norm, f"{i}.down")
        return state.x

    def _embed(self) -> Normed:
        """Add the embeddings of each token's word and position, and normalise the sum."""
        words = self._op("Gather", self._array(self.encoder.words), INPUT_IDS)
        if self.encoder.uncounted is not None:
            count = self._count(self.encoder.uncounted)
            positions = self._op("Gather", self._array(self.encoder.positions), count)
        elif self.packed:
            positions = self._op("Gather", self._array(self.encoder.positions), POSITIONS)
        else:
            length = self._size(1)
            zero = self._integers(0)
            positions = self._op("Slice", self._array(self.encoder.positions), zero, length, zero)
        self.mask = MASK if self.packed else ""
        if self.encoder.distances is not None:
            self.mask = self._add_distances(self.encoder.distances, self.mask)
        summed = self._op("Add", words, positions)
        return self._norm(summed, self.encoder.norm, self.encoder.epsilon)

    def _count(self, uncounted: int) -> str:
        """Count tokens from 1 in each text, int32 (batch, sequence); `uncounted` ones have 0."""
        counted = self._counted(uncounted)
        axis = self._array(1, np.int64)
        so_far = self._op("CumSum", counted, axis)
        if self.packed:
            # Subtract what stands in the row before the token's own text.
            start = self._op("Sub", self._places(len(self.encoder.positions)), POSITIONS)
            before = self._op("Sub", so_far, counted)
            so_far = self._op("Sub", so_far, self._op("GatherElements", before, start, axis=1))
        return self._op("Mul", so_far, counted)

    def _counted(self, uncounted: int) -> str:
        """Return the name of int32 (batch, sequence): 1 for tokens that are counted, else 0."""
        without = self._op("Equal", self.ids, self._array(uncounted, np.int32))
        return self._cast(self._op("Not", without), np.int32)

    def _add_distances(self, distances: Array, mask: str) -> str:
        """Add the bias of distances to a mask; return (1, heads, sequence, sequence) or larger."""
        distance = self._distances(self._row_places(len(self.encoder.positions)))
        column = self._op("Add", distance, self._array(distances.shape[1] // 2, np.int32))
        bias = self._op("Gather", self._array(distances), column, axis=1)
        bias = self._op("Unsqueeze", bias, self._integers(0))
        return self._op("Add", bias, mask) if mask else bias

    def _attention(
        self, state: Normed, query: Dense, key: Dense, value: Dense, heads: int, layer: str
    ) -> str:
        parts = self._products(state, [query, key, value], f"{layer}qkv")
        mask = [self.mask] if self.mask else []
        return self._op("Attention", *parts, *mask, q_num_heads=heads, kv_num_heads=heads)

    def _project_and_norm(
        self, x: str, dense: Dense, state: Normed, norm: Norm, site: str
    ) -> Normed:
        """End half a layer: project, add the residual and normalise."""
        summed = self._op("Add", self._product(x, dense, site), state.x)
        return self._norm(summed, norm, self.encoder.epsilon)


class HalfBertGraph(HalfGraph, BertGraph):
    """The float16 graph of padded texts; arguments as of `HalfGraph`."""

    def _embed(self) -> Normed:
        length, rows = self._size(1), self._size(0)
        zero = self._integers(0)
        self.mask = self._padding_mask(rows, length)
        words = self._padded_words()
        if self.encoder.uncounted is not None:
            count = self._count(self.encoder.uncounted)
            positions = self._op("Gather", self._array(self.encoder.positions), count)
        else:
            positions = self._op("Slice", self._array(self.encoder.positions), zero, length, zero)
        if self.encoder.distances is not None:
            self.mask = self._add_distances(self.encoder.distances, self.mask)
        return self._add_and_norm([words, positions], self.encoder.norm, self.encoder.epsilon)

    def _counted(self, uncounted: int) -> str:
        # Padded ids are token ids plus one.
        without = self._op("Equal", self.ids, self._array(uncounted + 1, np.int32))
        other = self._op("Not", without)
        return self._cast(self._op("And", self.is_token, other), np.int32)

    def _attention(
        self, state: Normed, query: Dense, key: Dense, value: Dense, heads: int, layer: str
    ) -> str:
        joined = Dense.joined([query, key, value])
        weight, bias = self._array(joined.weight), self._optional(joined.bias)
        inputs = (state.x, weight, bias, "", "", self.mask)
        return self._op("Attention", *inputs, domain=MICROSOFT, num_heads=heads)

    def _project_and_norm(
        self, x: str, dense: Dense, state: Normed, norm: Norm, site: str
    ) -> Normed:
        y = self._op("MatMul", x, self._array(dense.weight))
        return self._add_and_norm([y, state.x], norm, self.encoder.epsilon, dense.bias)


class Int8BertGraph(Int8Graph, BertGraph):
    """The graph with 8-bit products; arguments as of `Int8Graph`."""


build_bert = partial(build_encoder, BertGraph, HalfBertGraph, Int8BertGraph)
"""Writes a `Bert` as a graph; arguments as of `build_encoder`, from `model` on."""
