"""The towers of CLIP and SigLIP as ONNX graphs, written node by node from the weights.

Both are pre-norm transformers: layers add to a stream, and read it normalised. In fp16 one operator
of ONNX Runtime's own adds a product, its bias and the stream, and normalises the sum, as on a GPU
each operator is a launch and a way through memory. Its kernel for the CPU takes six times as long
as those of its parts do: in fp32 they stand instead of it (`standard`). Biases of products that
read a norm are gone altogether, see `ClipGraph._products`. And of the last layer only what the
embedding needs is computed: one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.checkpoint import Float32, Tensors
from granalign_fast.models.graph_contract import EMBEDDINGS
from granalign_fast.runtime.standard_operators import MICROSOFT, standardise

from .builder import CheckpointGraph
from .tensor_file import GraphTensors

_SHIFT = 0.25
"""What a norm's rows sum to, for each of their numbers; see `ClipGraph._products`."""
_FULL = 2 * 132 * 128 * 256 // 64
"""Tokens of an input times width, from where a product of that width alone fills a GPU twice: 132
processors, tiles of 128 x 256, batches of 64. Query, key and value then have one each: joined they
would gain nothing, and have to be split."""
_NOTHING = 1e-30
"""Beside the mean square of any embedding; where that is 0, the embedding stays 0."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Transformer:
    """The layers of a tower.

    Attributes:
        hidden: numbers of a token.
        wide: numbers of a token within a layer.
        layers: of them.
        heads: of each layer.
        activation: of each layer, as transformers names it.
        epsilon: of every norm.
    """

    hidden: int
    wide: int
    layers: int
    heads: int
    activation: str
    epsilon: float

    @classmethod
    def of(cls, config: Any) -> Transformer:
        """Of transformers' configuration of a tower."""
        return cls(
            hidden=int(config.hidden_size),
            wide=int(config.intermediate_size),
            layers=int(config.num_hidden_layers),
            heads=int(config.num_attention_heads),
            activation=str(config.hidden_act),
            epsilon=float(config.layer_norm_eps),
        )


ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "quick_gelu": ("QuickGelu", {"alpha": 1.702, "domain": MICROSOFT}),
}
"""By transformers' name."""


class State(NamedTuple):
    """The stream between two layers, and what the next layer reads of it."""

    stream: str
    normed: str


class ClipGraph(CheckpointGraph, ABC):
    """What both towers have in common.

    Args:
        weights: where weights come from, by transformers' names.
        tensors: where they go.
        shape: of the tower's layers.
        prefix: of the tower's names.
        tokens: of an input, at most.
        precision: ``"fp32"`` or ``"fp16"``.

    Raises:
        GranAlignError: the activation is of another kind.
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
        self.joined = tokens * shape.hidden < _FULL
        self.gain = self._constant("gain", np.ones(shape.hidden), self.dtype)
        self.shift = self._constant("shift", np.full(shape.hidden, _SHIFT), self.dtype)

    # Norms, and the products that read them.

    def _normed(self, x: str) -> str:
        """A row less its mean, over its deviation, plus `_SHIFT`: gains are in the products."""
        settings = {"axis": -1, "epsilon": self.shape.epsilon, "stash_type": 1}  # sums in float32
        return self._op("LayerNormalization", x, self.gain, self.shift, **settings)

    def _added(self, update: str, stream: str, *bias: str) -> State:
        """The stream with a layer's update in it, and its norm."""
        inputs = [update, stream, self.gain, self.shift, *bias]
        return State(
            *self._sum_and_norm("SkipLayerNormalization", inputs, self.shape.epsilon),
        )

    def _products(self, x: str, norm: str, names: list[str], size: int) -> list[str]:
        """What linear maps, biases included, make of a norm's rows.

        Args:
            x: of `_normed`: rows n + s, where the numbers of n sum to 0 and s is `_SHIFT`.
            norm: whose gains g and biases b the rows lack.
            names: of the maps, with weights W and biases c.
            size: outputs of each map.

        The rows of x sum to s for each of their H numbers, so a bias can be had from a matrix with
        equal rows: of x (G + u) with G = diag(g) W and each row of u = (b W + c - sum(s G)) / (s H)
        come n G + b W + c, to the rounding of x: no addition is left to do. A key's bias adds the
        same to all scores of a query, which changes no share of the softmax: it is left out.
        """
        if len(names) > 1 and not self.joined:
            return [self._products(x, norm, [name], size)[0] for name in names]
        folded = f"{norm}.{'.'.join(name.rpartition('.')[2] for name in names)}.{names[0]}"
        if folded not in self.tensors:
            matrices = [self._folded(norm, name, size) for name in names]
            self.tensors.add(folded, np.concatenate(matrices, axis=1).astype(self.dtype))
        y = self._op("MatMul", x, self._use(folded))
        if len(names) == 1:
            return [y]
        parts = [f"{name}.{y}" for name in names]
        self._add("Split", [y], parts, axis=-1, num_outputs=len(names))
        return parts

    def _folded(self, norm: str, name: str, size: int) -> Float64:
        """The matrix (hidden, outputs) of `_products`."""
        hidden = self.shape.hidden
        weight, bias = self._map(name, hidden, size)
        gains = weight * self._wide(f"{norm}.weight", hidden)[:, None]
        constant = self._wide(f"{norm}.bias", hidden) @ weight + bias
        if name.endswith("k_proj"):
            constant[:] = 0
        centred: Float64 = gains - gains.mean(axis=0) + constant / (_SHIFT * hidden)
        return centred

    def _map(self, name: str, inputs: int, outputs: int) -> tuple[Float64, Float64]:
        """The transposed weight and the bias of a linear map; zeros where it has none."""
        weight = self._wide(f"{name}.weight", outputs, inputs).T
        has_bias = not name.endswith("projection")  # only those of CLIP at the end have none
        return weight, self._wide(f"{name}.bias", outputs) if has_bias else np.zeros(outputs)

    def _wide(self, name: str, *size: int) -> Float64:
        """A tensor of the checkpoint in float64, for sums that are made once."""
        return self._read(name, *size).astype(np.float64)

    def _read(self, name: str, *size: int) -> Float32:
        found = self.checkpoint.shape(name)
        if found != size:
            raise GranAlignError(
                f"{name}: got shape {found}, expected {size} from config.json; copy or download "
                f"the model again"
            )
        return self.checkpoint.read(name)

    def _own(self, name: str, *size: int) -> str:
        """A tensor of the checkpoint as it is."""
        return self._stored(name, lambda: self._read(name, *size))

    def _stored(self, name: str, make: Any) -> str:
        if name not in self.tensors:
            self.tensors.add(name, np.asarray(make()).astype(self.dtype, copy=False))
        return self._use(name)

    def _plain(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """A product without its bias."""
        weight = f"{name}.weight"
        stored = f"{weight}.transposed"
        self._stored(stored, lambda: self._read(weight, outputs, inputs).T)
        return self._op("MatMul", x, stored)

    # Layers.

    def _layers(self, state: State) -> State:
        for layer in range(self.shape.layers):
            state = self._layer(state, f"{self.prefix}.encoder.layers.{layer}", self._pools(layer))
        return state

    def _pools(self, layer: int) -> bool:
        """Whether this layer is the last, and only the pooled row of it counts."""
        return layer == self.shape.layers - 1

    def _layer(self, state: State, prefix: str, pools: bool) -> State:
        hidden = self.shape.hidden
        maps = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
        norm, stream = f"{prefix}.layer_norm1", state.stream
        if pools and not self.causal:
            query = self._products(self._pooled(state.normed), norm, maps[:1], hidden)
            parts = query + self._products(state.normed, norm, maps[1:], hidden)
        else:
            parts = self._products(state.normed, norm, maps, hidden)
        y = self._attention(parts)
        if pools:
            stream = self._pooled(stream)
            y = self._pooled(y) if self.causal else y
        y = self._plain(y, f"{prefix}.self_attn.out_proj", hidden, hidden)
        state = self._added(y, stream, self._own(f"{prefix}.self_attn.out_proj.bias", hidden))
        y = self._mlp(state.normed, f"{prefix}.layer_norm2", f"{prefix}.mlp")
        return self._added(y, state.stream, self._own(f"{prefix}.mlp.fc2.bias", hidden))

    def _attention(self, parts: list[str]) -> str:
        heads, causal = self.shape.heads, int(self.causal)
        return self._op(
            "Attention", *parts, q_num_heads=heads, kv_num_heads=heads, is_causal=causal
        )

    def _mlp(self, x: str, norm: str, prefix: str) -> str:
        """Without its last bias."""
        kind, settings = ACTIVATIONS[self.shape.activation]
        (y,) = self._products(x, norm, [f"{prefix}.fc1"], self.shape.wide)
        y = self._op(kind, y, **settings)
        return self._plain(y, f"{prefix}.fc2", self.shape.wide, self.shape.hidden)

    @abstractmethod
    def _pooled(self, x: str) -> str:
        """The one row of each input that its embedding is made of."""

    # The end.

    def _finish(self, x: str, taken: Any, size: int) -> Any:
        """The `onnx.ModelProto` less its tensors; embeddings get unit length, in float32."""
        if self.dtype != np.float32:
            x = self._cast(x, np.float32)
        x = self._op("Reshape", x, self._constant("embedding", [-1, size]))
        # Over the square root of the mean square, and of the count: over the length, in one launch.
        scale = self._constant("unit", np.full(size, size**-0.5), np.float32)
        self._add("RMSNormalization", [x, scale], [EMBEDDINGS], axis=-1, epsilon=_NOTHING)
        given = self._value(EMBEDDINGS, np.float32, "batch", size)
        model = self._model(self.prefix, [taken], [given])
        if self.dtype == np.float32:
            standardise(model, {"SkipLayerNormalization"})
        return model
