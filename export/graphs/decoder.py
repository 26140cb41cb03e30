"""A Llama or Qwen decoder as an ONNX graph, written node by node from its safetensors.

One graph serves prefill, the extension of a cached prefix and decoding. `Attention` of opset 23
accepts fewer key-value heads than query heads, and appends to the past inside the operator. So the
graph repeats and concatenates nothing. After the last layer's attention only the last position is
computed: a prompt of 300 tokens costs one row of logits, not 300.

The static graph writes to a cache in place. Its `Attention`, of opset 24, has an input that says
how much of the cache is valid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from granalign_fast.export.sources.checkpoint import JoinedProjections
from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.export.specs import HEAD, LINEAR, MASKED
from granalign_fast.models.graph_contract import (
    ATTENTION_MASK,
    CACHED_TOKENS,
    INPUT_IDS,
    LAST,
    LOGITS,
    POSITION_IDS,
    STATIC_OPSET,
    WRITE_INDICES,
    past_names,
    present_names,
)
from granalign_fast.runtime.standard_operators import MICROSOFT

from .builder import CheckpointGraph
from .tensor_file import GraphTensors

_TABLE = "model.embed_tokens.weight"


class DecoderGraph(CheckpointGraph):
    """The decoder's graph; several graphs may share one store of weights.

    Args:
        source: the model.
        tensors: the store. Weights that it holds already are not written again.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``.
        static: whether to build ``static.onnx``.
    """

    def __init__(
        self, source: LlmSource, tensors: GraphTensors, *, precision: str, static: bool = False
    ) -> None:
        dtype = np.float16 if precision == "fp16" else np.float32
        super().__init__(JoinedProjections(source.checkpoint), tensors, dtype)
        self.shape = source.shape
        self.quantised = precision == "int4"
        self.static = static
        if static:
            self.opset = STATIC_OPSET

    def model(self) -> Any:
        """Return the `onnx.ModelProto`, whose large tensors are in the store's file."""
        # Token ids to embeddings, rotary positions and a mask: the inputs of all layers.
        x = self._embed()
        self._rotary_positions()
        mask = "" if self.static else self._mask(x)
        # Each layer returns the residual and its output; the next one adds them.
        update = ""
        for layer in range(self.shape.layers):
            x, update = self._layer(x, update, layer, mask)
            x = self._with_features(x, layer)
        self._logits(self._add_and_norm(x, update, "model.norm.weight")[1])
        # Inputs and outputs. The static cache has a capacity; the other one grows.
        inputs = self._inputs()
        if self.static:
            inputs += [self._value(n, np.int64, "batch") for n in (WRITE_INDICES, CACHED_TOKENS)]
            inputs.append(self._value(LAST, self.dtype, "batch", 1, "sequence"))
        else:
            inputs.append(self._value(ATTENTION_MASK, np.int64, "batch", "total"))
        inputs += self._cache(past_names, "capacity" if self.static else "past")
        logits = self._value(LOGITS, np.float32, "batch", 1, self.shape.vocabulary)
        cache = self._cache(present_names, "capacity" if self.static else "total")
        return self._model("causal-lm", inputs, [logits, *cache])

    def _inputs(self) -> list[Any]:
        """Describe the inputs of a step; those of cache and mask are the same for every decoder."""
        names = (INPUT_IDS, POSITION_IDS)
        return [self._value(name, np.int64, "batch", "sequence") for name in names]

    def _with_features(self, x: str, layer: int) -> str:
        """Return the residual with what is added to it behind a layer: here nothing."""
        return x

    def _embed(self) -> str:
        """Look up token embeddings (batch, sequence, hidden)."""
        if self.quantised:
            return self._rounded_rows(INPUT_IDS, *self._rounded_weight(_TABLE), HEAD)
        return self._op("Gather", self._tensor(_TABLE), INPUT_IDS, axis=0)

    def _rotary_positions(self) -> None:
        """Look up cosine and sine of every position, (batch, sequence, head_dim / 2).

        All layers use them. They come from tables, because float16 could not compute them, and
        because a table needs few operators a step.
        """
        self.cosine, self.sine = self._rotary("cosine"), self._rotary("sine")

    def _rotary(self, name: str) -> str:
        return self._op(
            "Gather", self._table(name, list(range(self.shape.head_dim // 2))), POSITION_IDS, axis=0
        )

    def _table(self, name: str, pairs: list[int]) -> str:
        """Store the cosines or sines (context, pairs) of some rotary pairs."""
        tensor = f"rotary.{name}.{pairs[0]}"
        if tensor not in self.tensors:
            positions = np.arange(self.shape.context, dtype=np.float32)[:, None]
            angles = positions * self.shape.frequencies[pairs]
            values = np.cos(angles) if name == "cosine" else np.sin(angles)
            self.tensors.add(tensor, values.astype(self.dtype))
        return self._use(tensor)

    def _mask(self, x: str) -> str:
        """Compute what padding adds to scores, (batch, 1, sequence, total).

        The operator itself makes attention causal. `MASKED` is a finite number: a row that attends
        to padding alone must not become NaN, because later rows multiply its values by 0.
        """
        valid = self._cast(ATTENTION_MASK, self.dtype)
        padding = self._op("Sub", self._constant("one", 1, self.dtype), valid)
        added = self._op("Mul", padding, self._constant("masked", MASKED, self.dtype))
        added = self._op("Unsqueeze", added, self._constant("head_and_row", [1, 2]))
        rows = self._op("Shape", x, start=1, end=2)
        ones = self._constant("ones", [1, 1])
        shape = self._op("Concat", ones, rows, self._constant("one_more", [1]), axis=0)
        # The standard would broadcast one row; ONNX Runtime's kernel needs one for every query.
        return self._op("Expand", added, shape)

    def _layer(self, x: str, update: str, layer: int, mask: str) -> tuple[str, str]:
        """Apply a layer; return the residual and the MLP's output.

        The next layer fuses their sum with its norm.
        """
        prefix = f"model.layers.{layer}"
        # Self-attention.
        x, normed = self._add_and_norm(x, update, f"{prefix}.input_layernorm.weight")
        attended = self._attention(normed, f"{prefix}.self_attn", layer, mask)
        # Only the last position's logits are needed, so the last layer drops all others.
        if layer == self.shape.layers - 1:
            x, attended = self._last(x), self._last(attended)
        # The multi-layer perceptron.
        update = self._linear(attended, f"{prefix}.self_attn.o_proj")
        x, normed = self._add_and_norm(x, update, f"{prefix}.post_attention_layernorm.weight")
        return x, self._gated_mlp(normed, f"{prefix}.mlp")

    def _add_and_norm(self, x: str, update: str, weight: str) -> tuple[str, str]:
        """Return the sum, and the normalised sum; x is the sum if there is no update."""
        epsilon = self.shape.epsilon
        if not update or not self.static:
            x = self._op("Add", x, update) if update else x
            return x, self._norm(x, weight, epsilon)
        inputs = [x, update, self._tensor(weight)]
        return self._sum_and_norm("SkipSimplifiedLayerNormalization", inputs, epsilon)

    def _last(self, x: str) -> str:
        """Select the last position: (batch, hidden), or (batch, 1, hidden) if static."""
        if self.static:  # rows end at different positions; `LAST` is 1 at the end and 0 elsewhere
            return self._op("MatMul", LAST, x)
        return self._op("Gather", x, self._constant("last", -1), axis=1)

    def _attention(self, x: str, prefix: str, layer: int, mask: str) -> str:
        """Attend over the cache and the new tokens, and write the new tokens to the cache."""
        shape = self.shape
        # Query, key and value by one product; queries and keys are rotated.
        heads = [shape.heads, shape.kv_heads, shape.kv_heads]
        sizes = self._constant("qkv", [count * shape.head_dim for count in heads])
        parts = [f"{part}.{layer}" for part in ("query", "key", "value")]
        self._add("Split", [self._linear(x, f"{prefix}.qkv_proj"), sizes], parts, axis=-1)
        query = self._heads(parts[0], f"{prefix}.q_norm", shape.heads)
        key = self._heads(parts[1], f"{prefix}.k_norm", shape.kv_heads)
        # The growing cache: the operator itself appends keys and values to the past.
        new, past, present = (key, parts[2]), past_names(layer), present_names(layer)
        inputs, outputs = [query, *new, mask, *past], [f"attended.{layer}", *present]
        # The static cache: write keys and values in place, then attend to the valid tokens.
        if self.static:
            for rows, before, after in zip(new, past, present, strict=True):
                self._add("TensorScatter", [before, rows, WRITE_INDICES], [after], axis=1)
            inputs, outputs = [query, *present, "", "", "", CACHED_TOKENS], outputs[:1]
        self._add(
            "Attention",
            inputs,
            outputs,
            q_num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            is_causal=1,
        )
        return outputs[0]

    def _heads(self, x: str, norm: str, heads: int) -> str:
        """Normalise each head, if the model does, and rotate it; (batch, sequence, width)."""
        if f"{norm}.weight" in self.checkpoint:
            split = self._constant("split", [0, 0, -1, self.shape.head_dim])
            x = self._op("Reshape", x, split)
            x = self._norm(x, f"{norm}.weight", self.shape.epsilon)
            x = self._op("Reshape", x, self._constant("join", [0, 0, -1]))
        return self._op("RotaryEmbedding", x, self.cosine, self.sine, num_heads=heads)

    def _product(self, x: str, weight: str) -> str:
        if self.quantised:
            return self._rounded_product(x, *self._rounded_weight(weight), LINEAR)
        return super()._product(x, weight)

    def _logits(self, x: str) -> None:
        """Write float32 logits (batch, 1, vocabulary) to the graph's output."""
        weight = _TABLE if self.shape.tied else "lm_head.weight"
        # FusedMatMul and Gemm transpose the stored matrix, so a tied one is stored once.
        if self.quantised:
            y = self._rounded_product(x, *self._rounded_weight(weight), HEAD)
        elif self.static:
            y = self._op("FusedMatMul", x, self._tensor(weight), domain=MICROSOFT, transB=1)
        else:
            y = self._op("Gemm", x, self._tensor(weight), transB=1)
        if self.dtype != np.float32:
            y = self._cast(y, np.float32)
        if not self.static:
            y = self._op("Unsqueeze", y, self._constant("sequence", [1]))
        self.nodes[-1].output[0] = LOGITS

    def _cache(self, names: Callable[[int], tuple[str, str]], length: str) -> list[Any]:
        """Describe the keys and values of all layers, as inputs or outputs."""
        heads, size = self.shape.kv_heads, self.shape.head_dim
        shape = ("batch", length, heads * size) if self.static else ("batch", heads, length, size)
        layers = range(self.shape.layers)
        return [self._value(name, self.dtype, *shape) for n in layers for name in names(n)]
