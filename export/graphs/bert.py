"""BERT as an ONNX graph, written node by node from the weights: tokens in, embeddings out.

In fp32 and int8 it is shaped by what ONNX Runtime's CPU kernels do fast. There are two: of texts of
equal length, which need no mask, and of any texts packed into one row, so that few texts of
different lengths read the weights once and not once for each. Layer normalisation is spelled out in
elementwise operators, because the fused kernels sum each row one value at a time and take a third
of an int8 model's time. All but int8's matrix product is standard ONNX. In fp16 it is shaped by
what a GPU does fast, with ONNX Runtime's own operators: nine launches a layer, products included.
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

from .builder import make_model
from .int8 import Range, quantise_columns


def build_bert(
    model: Bert,
    *,
    pooling: str,
    normalise: bool,
    precision: str,
    packed: bool = False,
    ranges: dict[str, Range] | None = None,
) -> Any:
    """The whole encoder as an `onnx.ModelProto`.

    Args:
        model: the weights.
        pooling: ``"mean"`` or ``"cls"``.
        normalise: whether rows get unit length.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        packed: whether it takes packed texts, see `specs.POOL`; their pooling is an input.
            In fp16 there are none: texts of any lengths are padded, see `specs.PADDED_IDS`.
        ranges: for int8, what `measure_ranges` found.
    """
    if precision == "int8":
        graph: _Graph = _Int8Graph(packed, ranges or {})
    else:
        graph = _HalfGraph() if precision == "fp16" else _Graph(packed)
    state = graph.embed(model)
    for i, layer in enumerate(model.layers):
        context = graph.attention(state, layer.query, layer.key, layer.value, model.heads, f"{i}.")
        state = graph.joined(context, layer.out, state, layer.out_norm, f"{i}.out")
        (wide,) = graph.products(state, [layer.up], f"{i}.up")
        wide = graph.op("Gelu", wide)
        state = graph.joined(wide, layer.down, state, layer.down_norm, f"{i}.down")
    graph.pool(state.x, pooling, normalise)
    return graph.model(model.dim)


class _Normed(NamedTuple):
    """A layer normalisation's result, before and after its gamma and beta."""

    plain: str
    x: str
    norm: Norm


class _Graph:
    """A float32 graph under construction: values are known by name, and every name is new."""

    dtype: npt.DTypeLike = np.float32
    ids = INPUT_IDS
    width: int
    epsilon: float

    def __init__(self, packed: bool) -> None:
        self.packed = packed
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; the output's name."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes)
        )
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """Store an array, by default in the graph's precision; its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.array(value, dtype or self.dtype, order="C")
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def embed(self, model: Bert) -> _Normed:
        """The normalised sum of each token's word and position."""
        self.width, self.epsilon = model.dim, model.epsilon
        return self.norm(self._embedded(model), model.norm)

    def _embedded(self, model: Bert) -> str:
        words = self.op("Gather", self.constant(model.words), INPUT_IDS)
        if self.packed:
            positions = self.op("Gather", self.constant(model.positions), POSITIONS)
            return self.op("Add", words, positions)
        length = self.op("Shape", INPUT_IDS, start=1, end=2)
        zero = self.integers(0)
        positions = self.op("Slice", self.constant(model.positions), zero, length, zero)
        return self.op("Add", words, positions)

    def norm(self, x: str, norm: Norm) -> _Normed:
        columns = self.integers(-1)
        centred = self.op("Sub", x, self.op("ReduceMean", x, columns))
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), columns)
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant(self.epsilon)))
        plain = self.op("Mul", centred, self.op("Reciprocal", deviation))
        scaled = self.op("Mul", plain, self.constant(norm.gamma))
        return _Normed(plain, self.op("Add", scaled, self.constant(norm.beta)), norm)

    def attention(
        self, state: _Normed, query: Dense, key: Dense, value: Dense, heads: int, layer: str
    ) -> str:
        parts = self.products(state, [query, key, value], f"{layer}qkv")
        mask = [MASK] if self.packed else []
        return self.op("Attention", *parts, *mask, q_num_heads=heads, kv_num_heads=heads)

    def products(self, state: _Normed, denses: list[Dense], site: str) -> list[str]:
        """Several products of one normalised activation."""
        return [self.product(state.x, dense, site) for dense in denses]

    def product(self, x: str, dense: Dense, site: str) -> str:
        y = self.op("MatMul", x, self.constant(dense.weight))
        return self.op("Add", y, self.constant(dense.bias))

    def joined(self, x: str, dense: Dense, state: _Normed, norm: Norm, site: str) -> _Normed:
        """The end of half a layer: a product, added to what went in, and normalised."""
        return self.norm(self.op("Add", self.product(x, dense, site), state.x), norm)

    def pool(self, x: str, pooling: str, normalise: bool) -> None:
        """Leave an embedding of each text, float32, under the output's name."""
        if self.packed:
            shape = self.integers(-1, self.width)
            pooled = self.op("Reshape", self.op("MatMul", POOL, x), shape)
        elif pooling == "mean":
            pooled = self.op("ReduceMean", x, self.integers(1), keepdims=0)
        else:
            pooled = self.op("Gather", x, self.constant(0, np.int64), axis=1)
        if normalise:
            length = self.op("ReduceL2", pooled, self.integers(-1))
            floor = self.constant(1e-12, np.float32)  # as in the source: 0 stays 0
            pooled = self.op("Div", pooled, self.op("Max", length, floor))
        self.nodes[-1].output[0] = EMBEDDINGS

    def model(self, dim: int) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        integers, floats = TensorProto.INT32, TensorProto.FLOAT
        value = helper.make_tensor_value_info
        inputs = [value(self.ids, integers, ["batch", "sequence"])]
        if self.packed:
            inputs += [
                value(POSITIONS, integers, ["batch", "sequence"]),
                value(MASK, floats, ["sequence", "sequence"]),
                value(POOL, floats, ["batch", "texts", "sequence"]),
            ]
        rows = "batch_times_texts" if self.packed else "batch"
        return make_model(
            "sentence-encoder",
            nodes=self.nodes,
            inputs=inputs,
            outputs=[value(EMBEDDINGS, floats, [rows, dim])],
            tensors=[numpy_helper.from_array(v, name) for name, v in self.constants.items()],
        )


class _HalfGraph(_Graph):
    """float16 throughout, but for sums within a kernel and everything from pooling on.

    It is shaped by what costs on a GPU, launches and passes over the activations: query, key and
    value are one product, a product's bias and what is added to it are taken in by the kernel that
    comes next. Texts of different lengths share a run, as a run costs more than its padding.
    """

    dtype = np.float16
    ids = PADDED_IDS
    there: str
    mask: str

    def __init__(self) -> None:
        super().__init__(packed=False)

    def embed(self, model: Bert) -> _Normed:
        self.width, self.epsilon = model.dim, model.epsilon
        length, rows = self._shape(1), self._shape(0)
        zero, one = self.integers(0), self.integers(1)
        self.there = self.op("Cast", self.ids, to=9)  # whether it is a token, as bool
        # Nothing looks at what is no token: this is added to the score of each pair.
        barred = self.constant(np.finfo(np.float16).min)
        mask = self.op("Where", self.there, self.constant(0), barred)
        mask = self.op("Unsqueeze", mask, self.integers(1, 2))
        self.mask = self.op("Expand", mask, self.op("Concat", rows, one, length, length, axis=0))
        nothing = np.zeros_like(model.words[:1])
        words = self.op("Gather", self.constant(np.concatenate([nothing, model.words])), self.ids)
        positions = self.op("Slice", self.constant(model.positions), zero, length, zero)
        return self._normed([words, positions], model.norm)

    def attention(
        self, state: _Normed, query: Dense, key: Dense, value: Dense, heads: int, layer: str
    ) -> str:
        weight, bias = (
            self.constant(np.concatenate(parts, axis=-1))
            for parts in zip(query, key, value, strict=True)
        )
        inputs = (state.x, weight, bias, "", "", self.mask)
        return self.op("Attention", *inputs, domain=MICROSOFT, num_heads=heads)

    def joined(self, x: str, dense: Dense, state: _Normed, norm: Norm, site: str) -> _Normed:
        y = self.op("MatMul", x, self.constant(dense.weight))
        return self._normed([y, state.x], norm, dense.bias)

    def _normed(self, terms: list[str], norm: Norm, bias: Array | None = None) -> _Normed:
        """The normalised sum of two terms and a bias, in one kernel; its statistics are float32."""
        learnt = [norm.gamma, norm.beta] + ([] if bias is None else [bias])
        y = self.op(
            "SkipLayerNormalization",
            *(*terms, *(self.constant(value) for value in learnt)),
            domain=MICROSOFT,
            epsilon=self.epsilon,
        )
        return _Normed(y, y, norm)

    def pool(self, x: str, pooling: str, normalise: bool) -> None:
        last = self.integers(-1)
        if pooling == "cls":
            pooled = self.op("Cast", self.op("Gather", x, self.constant(0, np.int64), axis=1), to=1)
        else:
            # Sums over tokens are products: a reduction would be several launches, by cuDNN.
            tokens = self.op("Unsqueeze", self.op("Cast", self.there, to=1), last)
            pooled = self._sum(self.op("Cast", x, to=1), tokens, last)
            if not normalise:  # which undoes any factor
                pooled = self.op("Div", pooled, self._sum(tokens, tokens, last))
        if normalise:
            # Unit length in one launch: each value by the root of the mean square, and of how many.
            scale = self.constant(np.full(self.width, self.width**-0.5), np.float32)
            tiny = 1e-24 / self.width  # 0 stays 0
            self.op("RMSNormalization", pooled, scale, axis=-1, epsilon=tiny)
        self.nodes[-1].output[0] = EMBEDDINGS

    def _sum(self, x: str, tokens: str, last: str) -> str:
        """x (batch, sequence, columns) summed over tokens: (batch, columns)."""
        across = self.op("Transpose", x, perm=[0, 2, 1])  # which the product takes in
        return self.op("Squeeze", self.op("MatMul", across, tokens), last)

    def _shape(self, axis: int) -> str:
        return self.op("Shape", self.ids, start=axis, end=axis + 1)


class _Int8Graph(_Graph):
    """Products in 8 bits with fixed scales, everything between them in float32."""

    def __init__(self, packed: bool, ranges: dict[str, Range]) -> None:
        super().__init__(packed)
        self.ranges = ranges

    def products(self, state: _Normed, denses: list[Dense], site: str) -> list[str]:
        # Gamma and beta move into weights and bias: what is left spreads evenly around 0.
        gamma, beta = state.norm
        folded = [Dense(gamma[:, None] * d.weight, beta @ d.weight + d.bias) for d in denses]
        return self._products(state.plain, folded, site)

    def product(self, x: str, dense: Dense, site: str) -> str:
        return self._products(x, [dense], site)[0]

    def _products(self, x: str, denses: list[Dense], site: str) -> list[str]:
        measured, kind = self.ranges[site], site.partition(".")[2]
        together = np.concatenate([dense.weight for dense in denses], axis=1)
        strongest = measured.strongest(together, FLOAT_CHANNELS[kind])
        kept = np.ones(len(together))
        kept[strongest] = 0  # in 8 bits these count for nothing: range and weights are 0
        measured = Range(measured.low * kept, measured.high * kept)
        factors = measured.smoothing(together * kept[:, None], SMOOTHING[kind])
        step, centre = measured.affine(factors)
        scale, zero = self.constant(step), self.constant(centre, np.uint8)
        scaled = self.op("Mul", x, self.constant(1 / factors))
        # Microsoft's, because that of opset 23 is missing in ONNX Runtime 1.23.
        eight = self.op("QuantizeLinear", scaled, scale, zero, domain=MICROSOFT)
        products = []
        for dense in denses:
            weight, columns = quantise_columns((kept * factors)[:, None] * dense.weight)
            weight_name, columns_name = self.constant(weight, np.int8), self.constant(columns)
            bias = self.constant(dense.bias)
            product = self.op(
                "MatMulIntegerToFloat",
                *(eight, weight_name, scale, columns_name, zero, "", bias),
                domain=MICROSOFT,
            )
            if len(strongest):
                few = self.op("Gather", x, self.constant(strongest, np.int64), axis=-1)
                rest = self.op("MatMul", few, self.constant(dense.weight[strongest]))
                product = self.op("Add", product, rest)
            products.append(product)
        return products
