"""Sentence encoders of the decoder type as ONNX graphs, written node by node from the weights.

The graphs of a folder share one file of weights. In fp32 and int8, `Attention` of opset 23 takes
fewer key-value heads than query heads, so nothing is repeated. A causal model needs no mask of
padding behind a text: no token attends to it. int8 rounds weights in blocks of 8 bits: a decoder's
activations have channels that a fixed scale of 8 bits would cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from granalign_fast.export.sources.checkpoint import JoinedProjections
from granalign_fast.export.sources.encoders.decoder import Decoder
from granalign_fast.export.specs import HEAD
from granalign_fast.models.graph_contract import MASK, POSITIONS

from .builder import transposed_weight
from .encoder import EncoderGraph, HalfGraph
from .int8 import Range
from .tensor_file import GraphTensors, converted

_TABLE = "embed_tokens.weight"


def build_decoder_encoder(
    model: Decoder,
    *,
    pooling: str,
    normalise: bool,
    precision: str,
    packed: bool = False,
    ranges: dict[str, Range] | None = None,
    tensors: GraphTensors | None = None,
) -> Any:
    """Return the whole encoder as an `onnx.ModelProto`; arguments as of `build_encoder`.

    `ranges` must be None: no precision needs them.
    """
    assert ranges is None
    tensors = tensors or GraphTensors()
    if precision == "fp16":
        graph: DecoderEncoderGraph = HalfDecoderGraph(model, tensors)
    else:
        graph = DecoderEncoderGraph(model, tensors, packed=packed)
        graph.quantised = precision == "int8"
    return graph.model(pooling, normalise)


class DecoderEncoderGraph(EncoderGraph):
    """The graph in float32; arguments as of `EncoderGraph`."""

    encoder: Decoder
    quantised = False
    """Whether weights of products and the table of words are rounded in blocks of 8 bits."""

    def _hidden(self) -> str:
        shape = self.encoder.shape
        self.weights = JoinedProjections(self.encoder.checkpoint)
        # Token ids to embeddings; positions and masks, which layers of one kind share.
        x = self._words()
        positions = self._token_positions()
        self.angles = {theta: self._angles(positions, theta) for theta in {*shape.thetas}}
        self.masks = {window: self._mask(positions, window) for window in {*shape.windows}}
        for i, layer in enumerate(self.encoder.layers):
            norms, prefix = f"{layer.prefix}.{{}}_layernorm".format, layer.prefix
            # Self-attention and the residual.
            y = self._attention(self._normed(x, norms("input")), prefix, i)
            y, before = self._widened(y), norms("post_attention")
            if shape.norms == 4:
                y, before = self._rms_norm(y, before, np.float32), norms("pre_feedforward")
            x = self._op("Add", x, y)
            # The gated perceptron and the residual.
            y = self._widened(self._perceptron(self._normed(x, before), f"{prefix}.mlp"))
            if shape.norms == 4:
                y = self._rms_norm(y, norms("post_feedforward"), np.float32)
            x = self._op("Add", x, y)
        return self._rms_norm(x, "norm", np.float32)

    # Tokens, positions and masks.

    def _words(self) -> str:
        """Look up the embeddings of tokens, (batch, sequence, hidden)."""
        shape = self.encoder.shape
        size = shape.words, shape.hidden
        if self.quantised:
            return self._rounded_rows(self.ids, _TABLE, size, self._scaled_words, HEAD)
        if _TABLE not in self.tensors:
            self.tensors.add_slices(_TABLE, size, self.dtype, self._scaled_words())
        return self._op("Gather", self._use(_TABLE), self.ids)

    def _scaled_words(self) -> Any:
        """Yield the table of words in slices of rows, with the model's factor in it."""
        factor = np.float32(self.encoder.shape.words_scale)
        return (part * factor for part in self.weights.slices(_TABLE))

    def _token_positions(self) -> str:
        """Return the position of each token in its text, int32 (batch, sequence)."""
        if self.packed:
            return POSITIONS
        # The row is cast, not its length: a GPU would leave the cast of a length to the host.
        start, step = self._constant("range.start", 0), self._constant("range.step", 1)
        row = self._op("Range", start, self._op("Squeeze", self._size(1)), step)
        return self._op("Expand", self._cast(row, np.int32), self._op("Shape", self.ids))

    def _angles(self, positions: str, theta: float) -> tuple[str, str]:
        """Compute the cosines and sines of all tokens, (batch, sequence, head_dim / 2) each."""
        layer = self.encoder.shape.thetas.index(theta)
        steps = self._constant(
            f"frequencies.{theta:g}", self.encoder.shape.frequencies(layer), np.float32
        )
        column = self._op("Unsqueeze", self._cast(positions, np.float32), self._integers(-1))
        angles = self._op("Mul", column, steps)
        return self._narrowed(self._op("Cos", angles)), self._narrowed(self._op("Sin", angles))

    def _mask(self, positions: str, window: int | None) -> str:
        """Return what is added to attention scores; empty if nothing has to be."""
        packed = MASK if self.packed else ""
        if window is None:
            return packed
        far = self._far(positions, window)
        rest = packed or self._constant("none", 0, np.float32)
        return self._op("Where", far, self._constant("never", -np.inf, np.float32), rest)

    def _far(self, positions: str, window: int) -> str:
        """Return which tokens are too far from which, bool (sequence, sequence).

        All rows of a batch have the same positions.
        """
        row = self._op("Gather", positions, self._constant("first", 0), axis=0)
        queries = self._op("Unsqueeze", row, self._integers(1))
        keys = self._op("Unsqueeze", row, self._integers(0))
        distance = self._op("Abs", self._op("Sub", queries, keys))
        edge = self._constant(f"window.{window}", window, np.int32)
        return self._op("GreaterOrEqual", distance, edge)

    # Parts of a layer.

    def _attention(self, x: str, prefix: str, layer: int) -> str:
        shape, prefix = self.encoder.shape, f"{prefix}.self_attn"
        # Query, key and value by one product; queries and keys are normalised and rotated.
        heads = [shape.heads, shape.kv_heads, shape.kv_heads]
        sizes = self._constant("qkv", [count * shape.head_dim for count in heads])
        parts = [f"{part}.{layer}" for part in ("query", "key", "value")]
        self._add("Split", [self._linear(x, f"{prefix}.qkv_proj"), sizes], parts, axis=-1)
        angles = self.angles[shape.thetas[layer]]
        query, key = (
            self._heads(part, f"{prefix}.{name}_norm", count, angles)
            for part, name, count in zip(parts[:2], "qk", heads[:2], strict=True)
        )
        mask = self.masks[shape.windows[layer]]
        attended = self._op(
            "Attention",
            *([query, key, parts[2]] + ([mask] if mask else [])),
            q_num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            is_causal=int(shape.causal),
            scale=shape.scale,
        )
        return self._linear(attended, f"{prefix}.o_proj")

    def _heads(self, x: str, norm: str, heads: int, angles: tuple[str, str]) -> str:
        """Normalise each head and rotate it; (batch, sequence, heads * head_dim)."""
        split = self._constant("split", [0, 0, -1, self.encoder.shape.head_dim])
        x = self._rms_norm(self._op("Reshape", x, split), norm, self.dtype)
        x = self._op("Reshape", x, self._constant("join", [0, 0, -1]))
        return self._op("RotaryEmbedding", x, *angles, num_heads=heads)

    def _perceptron(self, x: str, prefix: str) -> str:
        """Apply the gated perceptron: down(activation(gate(x)) * up(x))."""
        gate = self._gate(self._linear(x, f"{prefix}.gate_proj"))
        wide = self._op("Mul", gate, self._linear(x, f"{prefix}.up_proj"))
        return self._linear(wide, f"{prefix}.down_proj")

    def _gate(self, x: str) -> str:
        if self.encoder.shape.activation == "silu":
            return self._op("Mul", x, self._op("Sigmoid", x))
        return self._op("Gelu", x, approximate="tanh")

    def _normed(self, x: str, name: str) -> str:
        """Normalise rows of the residual, for a product."""
        return self._narrowed(self._rms_norm(x, name, np.float32))

    def _rms_norm(self, x: str, name: str, dtype: type[np.generic]) -> str:
        gains, kind = f"{name}.weight", np.dtype(dtype).name
        stored = f"{gains}.{kind}"
        if stored not in self.tensors:
            values = self.weights.read(gains) + np.float32(self.encoder.shape.gain)
            self.tensors.add(stored, converted(gains, values, dtype))
        # stash_type 1: the mean square is computed in float32, as in the source.
        settings = {"axis": -1, "epsilon": self.encoder.shape.epsilon, "stash_type": 1}
        return self._op("RMSNormalization", x, self._use(stored), **settings)

    def _linear(self, x: str, name: str) -> str:
        """Multiply by `name`.weight, and add `name`.bias if the model has it."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        if self.quantised:
            rows, columns = self.weights.shape(weight)
            slices = lambda: self.weights.slices(weight)  # noqa: E731
            y = self._rounded_product(x, weight, (rows, columns), slices, HEAD)
        else:
            stored = f"{weight}.transposed"
            if stored not in self.tensors:
                self.tensors.add(stored, transposed_weight(self.weights, weight, self.dtype))
            y = self._op("MatMul", x, self._use(stored))
        if not self.encoder.shape.biased or ".mlp." in name:
            return y
        if bias not in self.tensors:
            self.tensors.add(bias, converted(bias, self.weights.read(bias), self.dtype))
        return self._op("Add", y, self._use(bias))

    # Between float32 and the type of products.

    def _widened(self, x: str) -> str:
        """Return an output of a product in float32, the type of the residual."""
        return x

    def _narrowed(self, x: str) -> str:
        """Return float32 values in the type of products."""
        return x


class HalfDecoderGraph(HalfGraph, DecoderEncoderGraph):
    """The float16 graph of padded texts; arguments as of `HalfGraph`.

    The residual, the norms on it and, in a Gemma, the perceptron's gate are float32: their values
    can be beyond float16's greatest number.
    """

    padding = ""
    """Name of the mask of padding; empty where none is needed."""

    def _words(self) -> str:
        # Padded ids are token ids plus one. Padding, which no token sees, takes the first row.
        zero = self._constant("zero.id", 0, np.int32)
        self.is_token = self._cast(self.ids, np.bool_)
        ids = self._op("Max", self._op("Sub", self.ids, self._constant("step", 1, np.int32)), zero)
        if _TABLE not in self.tensors:
            shape = self.encoder.shape
            size = shape.words, shape.hidden
            self.tensors.add_slices(_TABLE, size, self.dtype, self._scaled_words())
        return self._cast(self._op("Gather", self._use(_TABLE), ids), np.float32)

    def _mask(self, positions: str, window: int | None) -> str:
        # Padding stands behind each text, where a causal model never looks.
        if not self.encoder.shape.causal and not self.padding:
            self.padding = self._padding_mask(self._size(0), self._size(1))
        if window is None:
            return self.padding
        lowest = self._constant("lowest", np.finfo(np.float16).min, np.float16)
        rest = self.padding or self._constant("none", 0, np.float16)
        return self._op("Where", self._far(positions, window), lowest, rest)

    def _perceptron(self, x: str, prefix: str) -> str:
        if self.encoder.shape.norms != 4:
            return super()._perceptron(x, prefix)
        gate = self._gate(self._widened(self._linear(x, f"{prefix}.gate_proj")))
        wide = self._op("Mul", gate, self._widened(self._linear(x, f"{prefix}.up_proj")))
        return self._linear(self._narrowed(wide), f"{prefix}.down_proj")

    def _widened(self, x: str) -> str:
        return self._cast(x, np.float32)

    def _narrowed(self, x: str) -> str:
        return self._cast(x, np.float16)
