"""BERT as an ONNX graph, written node by node from the weights: token ids in, embeddings out.

The fp32 and int8 graphs are shaped for ONNX Runtime's CPU kernels. Each precision can have two of
them. One takes texts of equal length and needs no mask. The other takes texts packed into one row:
a few texts of different lengths then read the weights once, instead of once for each length. Layer
normalisation is written as elementwise operators, because the fused CPU kernels sum each row one
value at a time and take a third of an int8 model's time. All operators are standard ONNX except
int8's quantisation and matrix product.

The fp16 graph is shaped for a GPU, with ONNX Runtime's own operators: nine launches a layer,
matrix products included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.bert import Array, Bert, Dense, Norm
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


def build_bert(
    model: Bert,
    *,
    pooling: str,
    normalise: bool,
    precision: str,
    packed: bool = False,
    ranges: dict[str, Range] | None = None,
    tensors: GraphTensors | None = None,
) -> Any:
    """Return the whole encoder as an `onnx.ModelProto`.

    Args:
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
        graph: BertGraph = Int8BertGraph(model, tensors, ranges or {}, packed=packed)
    elif precision == "fp16":
        graph = HalfBertGraph(model, tensors)
    else:
        graph = BertGraph(model, tensors, packed=packed)
    return graph.model(pooling, normalise)


class _Normed(NamedTuple):
    """The result of a layer normalisation, before and after its gamma and beta."""

    plain: str
    x: str
    norm: Norm


class BertGraph(GraphBuilder):
    """The float32 graph.

    Nodes are ``<kind>_<number>`` and tensors ``constant_<number>``, in the order of their making:
    names are part of the bytes of every published export.

    Args:
        bert: the weights.
        tensors: where they go.
        packed: whether the graph takes packed texts.
    """

    ids = INPUT_IDS

    def __init__(
        self,
        bert: Bert,
        tensors: GraphTensors,
        *,
        packed: bool,
        dtype: type[np.generic] = np.float32,
    ) -> None:
        super().__init__(tensors, dtype)
        self.bert = bert
        self.packed = packed

    def model(self, pooling: str, normalise: bool) -> Any:
        """Return the `onnx.ModelProto`; arguments as of `build_bert`."""
        heads = self.bert.heads
        # Token ids to the first normalised state.
        state = self._embed()
        for i, layer in enumerate(self.bert.layers):
            # Self-attention, its output projection, the residual and the norm.
            context = self._attention(state, layer.query, layer.key, layer.value, heads, f"{i}.")
            state = self._project_and_norm(context, layer.out, state, layer.out_norm, f"{i}.out")
            # The multi-layer perceptron, the residual and the norm.
            (wide,) = self._products(state, [layer.up], f"{i}.up")
            wide = self._op("Gelu", wide)
            state = self._project_and_norm(wide, layer.down, state, layer.down_norm, f"{i}.down")
        # One embedding for each text.
        self._pool(state.x, pooling, normalise)
        return self._model("sentence-encoder", self._inputs(), [self._output()])

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

    def _integers(self, *values: int) -> str:
        return self._array(values, np.int64)

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
        return self._value(EMBEDDINGS, np.float32, rows, self.bert.dim)

    def _embed(self) -> _Normed:
        """Add the embeddings of each token's word and position, and normalise the sum."""
        words = self._op("Gather", self._array(self.bert.words), INPUT_IDS)
        if self.packed:
            positions = self._op("Gather", self._array(self.bert.positions), POSITIONS)
        else:
            length = self._op("Shape", INPUT_IDS, start=1, end=2)
            zero = self._integers(0)
            positions = self._op("Slice", self._array(self.bert.positions), zero, length, zero)
        return self._norm(self._op("Add", words, positions), self.bert.norm)

    def _norm(self, x: str, norm: Norm) -> _Normed:
        columns = self._integers(-1)
        centred = self._op("Sub", x, self._op("ReduceMean", x, columns))
        variance = self._op("ReduceMean", self._op("Mul", centred, centred), columns)
        deviation = self._op("Sqrt", self._op("Add", variance, self._array(self.bert.epsilon)))
        plain = self._op("Mul", centred, self._op("Reciprocal", deviation))
        scaled = self._op("Mul", plain, self._array(norm.gamma))
        return _Normed(plain, self._op("Add", scaled, self._array(norm.beta)), norm)

    def _attention(
        self, state: _Normed, query: Dense, key: Dense, value: Dense, heads: int, layer: str
    ) -> str:
        parts = self._products(state, [query, key, value], f"{layer}qkv")
        mask = [MASK] if self.packed else []
        return self._op("Attention", *parts, *mask, q_num_heads=heads, kv_num_heads=heads)

    def _products(self, state: _Normed, denses: list[Dense], site: str) -> list[str]:
        """Apply several dense layers to one normalised activation."""
        return [self._product(state.x, dense, site) for dense in denses]

    def _product(self, x: str, dense: Dense, site: str) -> str:
        """Apply a dense layer. `site` is the product's name in `Bert.hidden`."""
        y = self._op("MatMul", x, self._array(dense.weight))
        return self._op("Add", y, self._array(dense.bias))

    def _project_and_norm(
        self, x: str, dense: Dense, state: _Normed, norm: Norm, site: str
    ) -> _Normed:
        """End half a layer: project, add the residual and normalise."""
        return self._norm(self._op("Add", self._product(x, dense, site), state.x), norm)

    def _pool(self, x: str, pooling: str, normalise: bool) -> None:
        """Write the float32 embedding of each text to the graph's output."""
        if self.packed:
            shape = self._integers(-1, self.bert.dim)
            pooled = self._op("Reshape", self._op("MatMul", POOL, x), shape)
        elif pooling == "mean":
            pooled = self._op("ReduceMean", x, self._integers(1), keepdims=0)
        else:
            pooled = self._op("Gather", x, self._array(0, np.int64), axis=1)
        if normalise:
            length = self._op("ReduceL2", pooled, self._integers(-1))
            floor = self._array(1e-12, np.float32)  # as in the source: 0 stays 0
            pooled = self._op("Div", pooled, self._op("Max", length, floor))
        self.nodes[-1].output[0] = EMBEDDINGS


class HalfBertGraph(BertGraph):
    """The float16 graph. Sums within a kernel, and everything from pooling on, are float32.

    A GPU's cost is launches and passes over the activations. So query, key and value are one
    product, and the next kernel adds a product's bias and residual. Texts of different lengths
    share a run, because a run costs more than its padding.
    """

    ids = PADDED_IDS
    is_token: str
    """Name of bool (batch, sequence): False for padding."""
    mask: str
    """Name of float16 (batch, 1, sequence, sequence), added to the attention scores."""

    def __init__(self, bert: Bert, tensors: GraphTensors) -> None:
        super().__init__(bert, tensors, packed=False, dtype=np.float16)

    def _embed(self) -> _Normed:
        length, rows = self._size(1), self._size(0)
        zero, one = self._integers(0), self._integers(1)
        # The mask adds 0 to the scores of tokens and float16's lowest number to those of padding.
        self.is_token = self._cast(self.ids, np.bool_)
        lowest = self._array(np.finfo(np.float16).min)
        mask = self._op("Where", self.is_token, self._array(0), lowest)
        mask = self._op("Unsqueeze", mask, self._integers(1, 2))
        self.mask = self._op("Expand", mask, self._op("Concat", rows, one, length, length, axis=0))
        # Padded ids are token ids plus one: row 0 of the table, for padding, is zeros.
        padding = np.zeros_like(self.bert.words[:1])
        table = self._array(np.concatenate([padding, self.bert.words]))
        words = self._op("Gather", table, self.ids)
        positions = self._op("Slice", self._array(self.bert.positions), zero, length, zero)
        return self._add_and_norm([words, positions], self.bert.norm)

    def _attention(
        self, state: _Normed, query: Dense, key: Dense, value: Dense, heads: int, layer: str
    ) -> str:
        weight, bias = (
            self._array(np.concatenate(parts, axis=-1))
            for parts in zip(query, key, value, strict=True)
        )
        inputs = (state.x, weight, bias, "", "", self.mask)
        return self._op("Attention", *inputs, domain=MICROSOFT, num_heads=heads)

    def _project_and_norm(
        self, x: str, dense: Dense, state: _Normed, norm: Norm, site: str
    ) -> _Normed:
        y = self._op("MatMul", x, self._array(dense.weight))
        return self._add_and_norm([y, state.x], norm, dense.bias)

    def _add_and_norm(self, terms: list[str], norm: Norm, bias: Array | None = None) -> _Normed:
        """Add two terms and a bias and normalise in one kernel; its statistics are float32."""
        learnt = [norm.gamma, norm.beta] + ([] if bias is None else [bias])
        y = self._op(
            "SkipLayerNormalization",
            *(*terms, *(self._array(value) for value in learnt)),
            domain=MICROSOFT,
            epsilon=self.bert.epsilon,
        )
        return _Normed(y, y, norm)

    def _pool(self, x: str, pooling: str, normalise: bool) -> None:
        last = self._integers(-1)
        if pooling == "cls":
            first = self._op("Gather", x, self._array(0, np.int64), axis=1)
            pooled = self._cast(first, np.float32)
        else:
            # Sums over tokens are products: cuDNN would take several launches for a reduction.
            tokens = self._op("Unsqueeze", self._cast(self.is_token, np.float32), last)
            pooled = self._sum_tokens(self._cast(x, np.float32), tokens, last)
            if not normalise:  # unit length undoes any factor, so the mean needs no division
                pooled = self._op("Div", pooled, self._sum_tokens(tokens, tokens, last))
        if normalise:
            # Unit length in one launch: x / (root mean square * sqrt(width)) = x / |x|.
            width = self.bert.dim
            scale = self._array(np.full(width, width**-0.5), np.float32)
            tiny = 1e-24 / width  # 0 stays 0
            self._op("RMSNormalization", pooled, scale, axis=-1, epsilon=tiny)
        self.nodes[-1].output[0] = EMBEDDINGS

    def _sum_tokens(self, x: str, tokens: str, last: str) -> str:
        """Sum x (batch, sequence, columns) over the tokens: (batch, columns)."""
        # ONNX Runtime fuses the transposition into the product.
        columns = self._op("Transpose", x, perm=[0, 2, 1])
        return self._op("Squeeze", self._op("MatMul", columns, tokens), last)

    def _size(self, axis: int) -> str:
        return self._op("Shape", self.ids, start=axis, end=axis + 1)


class Int8BertGraph(BertGraph):
    """The graph with 8-bit products of fixed scales, and float32 between them.

    Args:
        bert: the weights.
        tensors: where they go.
        ranges: the measured range of each product's input.
        packed: whether the graph takes packed texts.
    """

    def __init__(
        self, bert: Bert, tensors: GraphTensors, ranges: dict[str, Range], *, packed: bool
    ) -> None:
        super().__init__(bert, tensors, packed=packed)
        self.ranges = ranges

    def _products(self, state: _Normed, denses: list[Dense], site: str) -> list[str]:
        # Gamma and beta move into weights and biases: the plain norm spreads evenly around 0.
        gamma, beta = state.norm
        folded = [Dense(gamma[:, None] * d.weight, beta @ d.weight + d.bias) for d in denses]
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
            bias = self._array(dense.bias)
            product = self._op(
                "MatMulIntegerToFloat",
                *(quantised, weight_name, scale, columns_name, zero, "", bias),
                domain=MICROSOFT,
            )
            if len(strongest):
                # Add the product of the float32 channels.
                few = self._op("Gather", x, self._array(strongest, np.int64), axis=-1)
                rest = self._op("MatMul", few, self._array(dense.weight[strongest]))
                product = self._op("Add", product, rest)
            products.append(product)
        return products
