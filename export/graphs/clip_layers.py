"""The transformer layers of CLIP's and SigLIP's towers, written node by node from the weights.

Both are pre-norm transformers: each layer reads the normalised residual stream and adds to it.
Three things make their graphs fast:

- In fp16 one operator of ONNX Runtime adds a product, its bias and the residual, and normalises the
  sum. On a GPU every operator is a launch and a pass over memory. On a CPU the kernel of this
  operator takes six times as long as those of its parts, so fp32 graphs hold the parts
  (`standardise`).
- Products that read a norm have no bias to add, see `ClipGraph._products`.
- After the last layer's attention only the pooled row of each input is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.checkpoint import Float32, Tensors
from granalign_fast.export.specs import HEAD
from granalign_fast.models.graph_contract import EMBEDDINGS
from granalign_fast.runtime.standard_operators import MICROSOFT, standardise

from .builder import CheckpointGraph
from .clip_shapes import Float64, Transformer
from .tensor_file import GraphTensors, converted

_SHIFT = 0.25
"""The mean of every normalised row, see `ClipGraph._products`."""
_SEPARATE_QKV = 2 * 132 * 128 * 256 // 64
"""Tokens of an input times width. From this size on query, key and value are separate products: one
of them alone gives a GPU two waves (132 multiprocessors, tiles of 128 x 256, a batch of 64). A
joint product would gain nothing, and would have to be split."""
_EPSILON = 1e-30
"""Epsilon of the last norm: negligible beside any mean square but 0, and 0 stays 0."""


ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "quick_gelu": ("QuickGelu", {"alpha": 1.702, "domain": MICROSOFT}),
}
"""Operator and attributes of an activation, by transformers' name."""


class State(NamedTuple):
    """The residual stream between two halves of a layer, and its norm."""

    stream: str
    normed: str


class ClipGraph(CheckpointGraph, ABC):
    """The parts that both towers share: norms, layers, and the final normalisation.

    Args:
        weights: where weights come from, by transformers' names.
        tensors: where they go.
        shape: the numbers of the tower's layers.
        prefix: of the tower's tensor names.
        tokens: greatest number of tokens of an input.
        precision: one of `CLIP_PRECISIONS`.

    Raises:
        GranAlignError: the activation is not one of `ACTIVATIONS`.
    """

    causal = False

    def __init__(
        self,
        weights: Tensors,
        tensors: GraphTensors,
        shape: Transformer,
        *,
        prefix: str,
        tokens: int,
        precision: str,
    ) -> None:
        super().__init__(weights, tensors, np.float16 if precision == "fp16" else np.float32)
        if shape.activation not in ACTIVATIONS:
            raise GranAlignError(
                f"{prefix}: got the activation {shape.activation!r}, expected one of "
                f"{sorted(ACTIVATIONS)}; choose another model"
            )
        self.shape, self.prefix = shape, prefix
        self.quantised = precision == "int8"
        self.joint_qkv = tokens * shape.hidden < _SEPARATE_QKV
        self.gain = self._constant("gain", np.ones(shape.hidden), self.dtype)
        self.shift = self._constant("shift", np.full(shape.hidden, _SHIFT), self.dtype)

    # Norms, and the products that read them.

    def _normed(self, x: str) -> str:
        """Normalise rows, and add `_SHIFT`; the products contain the norm's gains and biases."""
        settings = {"axis": -1, "epsilon": self.shape.epsilon, "stash_type": 1}  # float32 sums
        return self._op("LayerNormalization", x, self.gain, self.shift, **settings)

    def _add_and_norm(self, update: str, stream: str, *bias: str) -> State:
        """Add an update, and possibly its bias, to the residual stream, and normalise the sum."""
        inputs = [update, stream, self.gain, self.shift, *bias]
        return State(
            *self._sum_and_norm("SkipLayerNormalization", inputs, self.shape.epsilon),
        )

    def _products(
        self, x: str, norm: str, names: list[str], size: int, *, joined: int = 1
    ) -> list[str]:
        """Apply linear layers with their biases to normalised rows, by one product without a bias.

        Args:
            x: rows n + s from `_normed`; the values of n sum to 0, and s is `_SHIFT`.
            norm: name of the norm, whose gains g and biases b the rows lack.
            names: of the linear layers, with weights W and biases c.
            size: outputs of each layer.
            joined: how many normalised rows stand behind one another in a row of x.

        A row of x has H values and sums to s H. So a matrix with equal rows can add a bias: with
        G = diag(g) W and each row of u equal to (b W + c - sum(s G)) / (s H), the product x (G + u)
        is n G + b W + c, up to the rounding of x. No addition is left.

        A key's bias adds the same number to all scores of a query, which the softmax ignores. It is
        left out.
        """
        if len(names) > 1 and not self.joint_qkv:
            return [self._products(x, norm, [name], size, joined=joined)[0] for name in names]
        folded = f"{norm}.{'.'.join(name.rpartition('.')[2] for name in names)}.{names[0]}"

        def matrix() -> Float64:
            return np.concatenate(
                [self._folded(norm, name, size, joined) for name in names], axis=1
            )

        inputs = joined * self.shape.hidden
        y = self._matrix_product(x, folded, (inputs, len(names) * size), matrix)
        if len(names) == 1:
            return [y]
        parts = [f"{name}.{y}" for name in names]
        self._add("Split", [y], parts, axis=-1, num_outputs=len(names))
        return parts

    def _folded(self, norm: str, name: str, size: int, joined: int) -> Float64:
        """Return the matrix G + u (joined * hidden, outputs) of `_products`."""
        hidden = self.shape.hidden
        inputs = joined * hidden
        weight, bias = self._linear_layer(name, inputs, size)
        affine = {
            part: np.tile(self._read_float64(f"{norm}.{part}", hidden), joined)
            for part in ("weight", "bias")
        }
        gains = weight * affine["weight"][:, None]
        constant = affine["bias"] @ weight + bias
        if name.endswith("k_proj"):
            constant[:] = 0
        # gains.mean(axis=0) is sum(s G) / (s H).
        centred: Float64 = gains - gains.mean(axis=0) + constant / (_SHIFT * inputs)
        return centred

    def _linear_layer(self, name: str, inputs: int, outputs: int) -> tuple[Float64, Float64]:
        """Return a linear layer's transposed weight and its bias, which may be zeros."""
        weight = self._read_float64(f"{name}.weight", outputs, inputs).T
        has_bias = not name.endswith("projection")  # the last layers of CLIP and SmolVLM have none
        return weight, self._read_float64(f"{name}.bias", outputs) if has_bias else np.zeros(
            outputs
        )

    def _read_float64(self, name: str, *size: int) -> Float64:
        """Read a tensor of the checkpoint as float64, for sums that the export computes once."""
        return self._read(name, *size).astype(np.float64)

    def _read(self, name: str, *size: int) -> Float32:
        """Read a tensor of the checkpoint; raise unless it has this shape."""
        self._check(name, size)
        return self.checkpoint.read(name)

    def _check(self, name: str, size: tuple[int, ...]) -> None:
        shape = self.checkpoint.shape(name)
        if shape != size:
            raise GranAlignError(
                f"{name}: got shape {shape}, expected {size} from config.json; copy or download "
                f"the model again"
            )

    def _weight(self, name: str, *size: int) -> str:
        """Use a tensor of the checkpoint unchanged; raise unless it has this shape."""
        if name not in self.tensors:
            self._check(name, size)
            self.tensors.add_slices(name, size, self.dtype, self.checkpoint.slices(name))
        return self._use(name)

    def _stored(self, name: str, compute: Callable[[], npt.ArrayLike]) -> str:
        """Use a tensor of the store, in the graph's dtype; compute it if it is not there yet."""
        if name not in self.tensors:
            self.tensors.add(name, converted(name, np.asarray(compute()), self.dtype))
        return self._use(name)

    def _product_without_bias(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """Multiply by `name`.weight; another operator adds the bias."""
        weight = f"{name}.weight"

        def matrix() -> Float32:
            return self._read(weight, outputs, inputs).T

        return self._matrix_product(x, f"{weight}.transposed", (inputs, outputs), matrix)

    def _matrix_product(
        self, x: str, name: str, size: tuple[int, int], compute: Callable[[], npt.NDArray[Any]]
    ) -> str:
        """Multiply by a matrix (inputs, outputs), which is computed if the store lacks it."""
        if not self.quantised:
            return self._op("MatMul", x, self._stored(name, compute))

        def rows() -> list[Float32]:
            return [compute().T.astype(np.float32)]

        return self._rounded_product(x, name, (size[1], size[0]), rows, HEAD)

    # Layers.

    def _layers(self, state: State) -> State:
        """Apply all layers."""
        for layer in range(self.shape.layers):
            state = self._layer(state, f"{self.prefix}.encoder.layers.{layer}", self._pools(layer))
        return state

    def _pools(self, layer: int) -> bool:
        """Return whether a layer is the last, of which only the pooled row is needed."""
        return layer == self.shape.layers - 1

    def _layer(self, state: State, prefix: str, pools: bool) -> State:
        """Apply a layer; one that pools returns a single row of each input."""
        hidden = self.shape.hidden
        projections = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
        norm, stream = f"{prefix}.layer_norm1", state.stream
        # Query, key and value. Only the pooled row needs a query; but causal attention takes all of
        # them, because a query's position in the sequence says which keys it may attend to.
        if pools and not self.causal:
            query = self._products(self._pooled(state.normed), norm, projections[:1], hidden)
            parts = query + self._products(state.normed, norm, projections[1:], hidden)
        else:
            parts = self._products(state.normed, norm, projections, hidden)
        y = self._attention(parts)
        if pools:
            stream = self._pooled(stream)
            y = self._pooled(y) if self.causal else y
        # Output projection, residual and norm.
        y = self._product_without_bias(y, f"{prefix}.self_attn.out_proj", hidden, hidden)
        bias = self._weight(f"{prefix}.self_attn.out_proj.bias", hidden)
        state = self._add_and_norm(y, stream, bias)
        # The multi-layer perceptron, residual and norm.
        y = self._mlp(state.normed, f"{prefix}.layer_norm2", f"{prefix}.mlp")
        bias = self._weight(f"{prefix}.mlp.fc2.bias", hidden)
        return self._add_and_norm(y, state.stream, bias)

    def _attention(self, parts: list[str]) -> str:
        heads, causal = self.shape.heads, int(self.causal)
        return self._op(
            "Attention", *parts, q_num_heads=heads, kv_num_heads=heads, is_causal=causal
        )

    def _mlp(self, x: str, norm: str, prefix: str) -> str:
        """Apply the multi-layer perceptron without its last bias."""
        kind, settings = ACTIVATIONS[self.shape.activation]
        (y,) = self._products(x, norm, [f"{prefix}.fc1"], self.shape.wide)
        y = self._op(kind, y, **settings)
        return self._product_without_bias(y, f"{prefix}.fc2", self.shape.wide, self.shape.hidden)

    @abstractmethod
    def _pooled(self, x: str) -> str:
        """Select the one row of each input that becomes its embedding."""

    # The end.

    def _finish(self, x: str, model_input: Any, size: int) -> Any:
        """Scale embeddings to unit length in float32; return the `onnx.ModelProto` without tensors.

        Args:
            x: embeddings of any length.
            model_input: the graph's input.
            size: values of an embedding.
        """
        if self.dtype != np.float32:
            x = self._cast(x, np.float32)
        x = self._op("Reshape", x, self._constant("embedding", [-1, size]))
        # Unit length in one launch: x / (root mean square * sqrt(size)) = x / |x|.
        scale = self._constant("unit", np.full(size, size**-0.5), np.float32)
        self._add("RMSNormalization", [x, scale], [EMBEDDINGS], axis=-1, epsilon=_EPSILON)
        output = self._value(EMBEDDINGS, np.float32, "batch", size)
        return self._complete(model_input, output)

    def _complete(self, model_input: Any, output: Any) -> Any:
        """Return the `onnx.ModelProto` of all nodes, without tensors."""
        model = self._model(self.prefix, [model_input], [output])
        if self.dtype == np.float32:
            standardise(model, {"SkipLayerNormalization"})
        return model
