"""The base of all sentence encoders' graphs: inputs, products, norms and pooling.

The fp32 and int8 graphs are shaped for ONNX Runtime's CPU kernels. Each precision can have two of
them. One takes texts of equal length and needs no mask. The other takes texts packed into one row:
a few texts of different lengths then read the weights once, instead of once for each length. Layer
normalisation is written as elementwise operators, because the fused CPU kernels sum each row one
value at a time and take a third of an int8 model's time. All operators are standard ONNX except
int8's quantisation and matrix product.

The fp16 graph is shaped for a GPU, with ONNX Runtime's own operators where they take fewer
launches.

A family is a subclass of `EncoderGraph`, which writes its layers, and one subclass of that with
each of `HalfGraph` and `Int8Graph`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.encoders.encoder import Array, Dense, Encoder, Norm
from granalign_fast.export.specs import FLOAT_CHANNELS, SMOOTHING
from granalign_fast.models.graph_contract import (
    EMBEDDINGS,
    INPUT_IDS,
    MASK,
    PADDED_IDS,
    POOL,
    POSITIONS,
)
from granalign_fast.runtime.standard_operators import MICROSOFT

from .builder import GraphBuilder
from .int8 import Range, quantise_columns
from .tensor_file import GraphTensors, converted


class Normed(NamedTuple):
    """The result of a layer normalisation, before and after its gamma and beta."""

    plain: str
    x: str
    norm: Norm


class EncoderGraph(GraphBuilder, ABC):
    """The float32 graph.

    Nodes are ``<kind>_<number>`` and tensors ``constant_<number>``, in the order of their making:
    names are part of the bytes of every published export.

    Args:
        encoder: the weights.
        tensors: where they go.
        packed: whether the graph takes packed texts.
        dtype: of weights and activations.
    """

    ids = INPUT_IDS

    def __init__(
        self,
        encoder: Encoder,
        tensors: GraphTensors,
        *,
        packed: bool,
        dtype: type[np.generic] = np.float32,
    ) -> None:
        super().__init__(tensors, dtype)
        self.encoder = encoder
        self.packed = packed

    def model(self, pooling: str, normalise: bool) -> Any:
        """Return the `onnx.ModelProto`.

        Args:
            pooling: ``"mean"``, ``"cls"`` or ``"last"``. In a packed graph it is an input.
            normalise: whether embeddings get unit length.
        """
        # One embedding for each text.
        self._pool(self._hidden(), pooling, normalise)
        return self._model("sentence-encoder", self._inputs(), [self._output()])

    @abstractmethod
    def _hidden(self) -> str:
        """Add all layers; return the name of their output, (batch, sequence, hidden)."""

    def _new_name(self, kind: str) -> str:
        return f"{kind}_{len(self.nodes)}"

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        # Standard operators name the empty domain, as they do in every published export.
        super()._add(kind, inputs, outputs, **{"domain": ""} | attributes)

    def _array(self, value: npt.ArrayLike, dtype: type[np.generic] | None = None) -> str:
        """Store an array, by default in the graph's dtype; return its name."""
        name = f"constant_{len(self.used)}"
        self.tensors.add(name, converted(name, np.asarray(value), dtype or self.dtype))
        return self._use(name)

    def _optional(self, value: Array | None) -> str:
        """Store an array in the graph's dtype; return its name, which is empty for None."""
        return "" if value is None else self._array(value)

    def _integers(self, *values: int) -> str:
        return self._array(values, np.int64)

    def _size(self, axis: int) -> str:
        return self._op("Shape", self.ids, start=axis, end=axis + 1)

    def _places(self, longest: int) -> str:
        """Return the name of int32 (sequence,): 0, 1, 2 and so on.

        Args:
            longest: the greatest length of a text; a row of packed texts may be longer.
        """
        if self.packed:
            length = self._op("Squeeze", self._cast(self._size(1), np.int32))
            return self._op("Range", self._array(0, np.int32), length, self._array(1, np.int32))
        # A slice, since a GPU would leave the cast of a length to the host.
        zero = self._integers(0)
        every = self._array(np.arange(longest), np.int32)
        return self._op("Slice", every, zero, self._size(1), zero)

    def _row_places(self, longest: int) -> str:
        """Return the name of int32 (sequence,): the position of each token in its text.

        It is one for the whole batch, since all rows of packed texts have the same layout.

        Args:
            longest: the greatest length of a text.
        """
        if self.packed:
            return self._op("Gather", POSITIONS, self._array(0, np.int64), axis=0)
        return self._places(longest)

    def _distances(self, places: str) -> str:
        """Return the name of int32 (sequence, sequence): a key's position minus a query's."""
        key = self._op("Unsqueeze", places, self._integers(0))
        return self._op("Sub", key, self._op("Unsqueeze", places, self._integers(1)))

    def _inputs(self) -> list[Any]:
        inputs = [self._value(self.ids, np.int32, "batch", "sequence")]
        if self.packed:
            inputs += [
                self._value(POSITIONS, np.int32, "batch", "sequence"),
                self._value(MASK, np.float32, "sequence", "sequence"),
                self._value(POOL, np.float32, "batch", "texts", "sequence"),
            ]
        return inputs

    def _output(self) -> Any:
        rows = "batch_times_texts" if self.packed else "batch"
        return self._value(EMBEDDINGS, np.float32, rows, self.encoder.dim)

    def _norm(self, x: str, norm: Norm, epsilon: float) -> Normed:
        columns = self._integers(-1)
        centred = self._op("Sub", x, self._op("ReduceMean", x, columns))
        variance = self._op("ReduceMean", self._op("Mul", centred, centred), columns)
        deviation = self._op("Sqrt", self._op("Add", variance, self._array(epsilon)))
        plain = self._op("Mul", centred, self._op("Reciprocal", deviation))
        x = self._op("Mul", plain, self._array(norm.gamma))
        if norm.beta is not None:
            x = self._op("Add", x, self._array(norm.beta))
        return Normed(plain, x, norm)

    def _products(self, state: Normed, denses: list[Dense], site: str) -> list[str]:
        """Apply several dense layers to one normalised activation."""
        return [self._product(state.x, dense, site) for dense in denses]

    def _product(self, x: str, dense: Dense, site: str) -> str:
        """Apply a dense layer. `site` is the product's name in `Encoder.run`."""
        y = self._op("MatMul", x, self._array(dense.weight))
        return y if dense.bias is None else self._op("Add", y, self._array(dense.bias))

    def _pool(self, x: str, pooling: str, normalise: bool) -> None:
        """Write the float32 embedding of each text to the graph's output."""
        if self.packed:
            shape = self._integers(-1, self.encoder.width)
            pooled = self._op("Reshape", self._op("MatMul", POOL, x), shape)
        elif pooling == "mean":
            pooled = self._op("ReduceMean", x, self._integers(1), keepdims=0)
        else:
            index = -1 if pooling == "last" else 0
            pooled = self._op("Gather", x, self._array(index, np.int64), axis=1)
        pooled = self._apply_head(pooled)
        if normalise:
            length = self._op("ReduceL2", pooled, self._integers(-1))
            floor = self._array(1e-12, np.float32)  # as in the source: 0 stays 0
            pooled = self._op("Div", pooled, self._op("Max", length, floor))
        self.nodes[-1].output[0] = EMBEDDINGS

    def _apply_head(self, pooled: str) -> str:
        """Apply the layers on pooled embeddings, in float32: they are small, and come last."""
        for layer in self.encoder.head:
            weight = self._array(np.asarray(layer.weight, np.float32), np.float32)
            pooled = self._op("MatMul", pooled, weight)
            if layer.bias is not None:
                bias = self._array(np.asarray(layer.bias, np.float32), np.float32)
                pooled = self._op("Add", pooled, bias)
            if layer.activation == "Tanh":
                pooled = self._op("Tanh", pooled)
        return pooled


class HalfGraph(EncoderGraph):
    """The float16 graph. Sums within a kernel, and everything from pooling on, are float32.

    A GPU's cost is launches and passes over the activations. So query, key and value are one
    product, and the next kernel adds a product's bias and residual. Texts of different lengths
    share a run, because a run costs more than its padding.
    """

    ids = PADDED_IDS
    is_token: str
    """Name of bool (batch, sequence): False for padding."""

    def __init__(self, encoder: Encoder, tensors: GraphTensors) -> None:
        super().__init__(encoder, tensors, packed=False, dtype=np.float16)

    def _padding_mask(self, rows: str, length: str) -> str:
        """Add the mask of padding, (batch, 1, sequence, sequence), and set `is_token`.

        The mask adds 0 to the scores of tokens and float16's lowest number to those of padding.
        `rows` and `length` name the sizes of the batch.
        """
        one = self._integers(1)
        self.is_token = self._cast(self.ids, np.bool_)
        lowest = self._array(np.finfo(np.float16).min)
        mask = self._op("Where", self.is_token, self._array(0), lowest)
        mask = self._op("Unsqueeze", mask, self._integers(1, 2))
        return self._op("Expand", mask, self._op("Concat", rows, one, length, length, axis=0))

    def _padded_words(self) -> str:
        """Look up the words of `PADDED_IDS`."""
        # Padded ids are token ids plus one: row 0 of the table, for padding, is zeros.
        padding = np.zeros_like(self.encoder.words[:1])
        table = self._array(np.concatenate([padding, self.encoder.words]))
        return self._op("Gather", table, self.ids)

    def _add_and_norm(
        self, terms: list[str], norm: Norm, epsilon: float, bias: Array | None = None
    ) -> Normed:
        """Add two terms and a bias and normalise in one kernel; its statistics are float32."""
        inputs = [*terms, *self._learnt(norm, bias)]
        y = self._op("SkipLayerNormalization", *inputs, domain=MICROSOFT, epsilon=epsilon)
        return Normed(y, y, norm)

    def _learnt(self, norm: Norm, bias: Array | None) -> list[str]:
        """Return the inputs of `SkipLayerNormalization` behind its terms."""
        names = [self._array(norm.gamma), self._optional(norm.beta), self._optional(bias)]
        while not names[-1]:
            names.pop()
        return names

    def _pool(self, x: str, pooling: str, normalise: bool) -> None:
        last = self._integers(-1)
        if pooling == "cls":
            first = self._op("Gather", x, self._array(0, np.int64), axis=1)
            pooled = self._cast(first, np.float32)
        elif pooling == "last":
            # The last token of a row is one for which none follows: its index is their count - 1.
            tokens = self._op("ReduceSum", self._cast(self.is_token, np.int64), last, keepdims=1)
            index = self._op("Sub", tokens, self._integers(1))
            pooled = self._cast(self._op("GatherND", x, index, batch_dims=1), np.float32)
        else:
            # Sums over tokens are products: cuDNN would take several launches for a reduction.
            tokens = self._op("Unsqueeze", self._cast(self.is_token, np.float32), last)
            pooled = self._sum_tokens(self._cast(x, np.float32), tokens, last)
            # Unit length undoes any factor, so that the mean needs no division.
            if not normalise or self.encoder.head:
                pooled = self._op("Div", pooled, self._sum_tokens(tokens, tokens, last))
        pooled = self._apply_head(pooled)
        if normalise:
            # Unit length in one launch: x / (root mean square * sqrt(width)) = x / |x|.
            width = self.encoder.dim
            scale = self._array(np.full(width, width**-0.5), np.float32)
            tiny = 1e-24 / width  # 0 stays 0
            self._op("RMSNormalization", pooled, scale, axis=-1, epsilon=tiny)
        self.nodes[-1].output[0] = EMBEDDINGS

    def _sum_tokens(self, x: str, tokens: str, last: str) -> str:
        """Sum x (batch, sequence, columns) over the tokens: (batch, columns)."""
        # ONNX Runtime fuses the transposition into the product.
        columns = self._op("Transpose", x, perm=[0, 2, 1])
        return self._op("Squeeze", self._op("MatMul", columns, tokens), last)


class Int8Graph(EncoderGraph):
    """The graph with 8-bit products of fixed scales, and float32 between them.

    Args:
        encoder: the weights.
        tensors: where they go.
        ranges: the measured range of each product's input.
        packed: whether the graph takes packed texts.
    """

    def __init__(
        self, encoder: Encoder, tensors: GraphTensors, ranges: dict[str, Range], *, packed: bool
    ) -> None:
        super().__init__(encoder, tensors, packed=packed)
        self.ranges = ranges

    def _products(self, state: Normed, denses: list[Dense], site: str) -> list[str]:
        # Gamma and beta move into weights and biases: the plain norm spreads evenly around 0.
        folded = [_folded(state.norm, dense) for dense in denses]
        return self._int8_products(state.plain, folded, site)

    def _product(self, x: str, dense: Dense, site: str) -> str:
        return self._int8_products(x, [dense], site)[0]

    def _int8_products(self, x: str, denses: list[Dense], site: str) -> list[str]:
        """Apply dense layers that share one quantised activation."""
        measured, kind = self.ranges[site], site.partition(".")[2]
        # The strongest channels stay in float32: in 8 bits their range and weights are 0.
        weights = np.concatenate([dense.weight for dense in denses], axis=1)
        strongest = measured.strongest(weights, FLOAT_CHANNELS[kind])
        in_int8 = np.ones(len(weights))
        in_int8[strongest] = 0
        measured = Range(measured.low * in_int8, measured.high * in_int8)
        # Divide channels by factors that even out their ranges, then quantise with one scale.
        factors = measured.smoothing(weights * in_int8[:, None], SMOOTHING[kind])
        step, centre = measured.affine(factors)
        scale, zero = self._array(step), self._array(centre, np.uint8)
        scaled = self._op("Mul", x, self._array(1 / factors))
        # Microsoft's operator, because ONNX Runtime 1.23 lacks that of opset 23.
        quantised = self._op("QuantizeLinear", scaled, scale, zero, domain=MICROSOFT)
        products = []
        for dense in denses:
            # The factors go back into the rows of the weights, which have a scale for each column.
            weight, columns = quantise_columns((in_int8 * factors)[:, None] * dense.weight)
            weight_name, columns_name = self._array(weight, np.int8), self._array(columns)
            bias = [] if dense.bias is None else ["", self._array(dense.bias)]
            product = self._op(
                "MatMulIntegerToFloat",
                *(quantised, weight_name, scale, columns_name, zero, *bias),
                domain=MICROSOFT,
            )
            if len(strongest):
                # Add the product of the float32 channels.
                few = self._op("Gather", x, self._array(strongest, np.int64), axis=-1)
                rest = self._op("MatMul", few, self._array(dense.weight[strongest]))
                product = self._op("Add", product, rest)
            products.append(product)
        return products


def build_encoder(
    plain: type[EncoderGraph],
    half: type[HalfGraph],
    rounded: type[Int8Graph],
    model: Any,
    *,
    pooling: str,
    normalise: bool,
    precision: str,
    packed: bool = False,
    ranges: dict[str, Range] | None = None,
    tensors: GraphTensors | None = None,
) -> Any:
    """Return a whole encoder as an `onnx.ModelProto`.

    Args:
        plain: the family's class of float32 graphs.
        half: its class of float16 graphs.
        rounded: its class of int8 graphs.
        model: the weights.
        pooling: ``"mean"`` or ``"cls"``.
        normalise: whether embeddings get unit length.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        packed: whether the graph takes packed texts, see `graph_contract.POOL`; their pooling is
            an input. There is no packed fp16 graph: its texts are padded, see
            `graph_contract.PADDED_IDS`.
        ranges: for int8, the result of `measure_ranges`.
        tensors: the store of weights; None for one in memory.
    """
    tensors = tensors or GraphTensors()
    if precision == "int8":
        graph: EncoderGraph = rounded(model, tensors, ranges or {}, packed=packed)
    elif precision == "fp16":
        graph = half(model, tensors)
    else:
        graph = plain(model, tensors, packed=packed)
    return graph.model(pooling, normalise)


def _folded(norm: Norm, dense: Dense) -> Dense:
    """Return the layer that gives for a norm's plain rows what `dense` gives for its output."""
    bias = dense.bias
    if norm.beta is not None:
        shift = norm.beta @ dense.weight
        bias = shift if bias is None else shift + bias
    return Dense(norm.gamma[:, None] * dense.weight, bias)
