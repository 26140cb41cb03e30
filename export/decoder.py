"""A Llama or Qwen decoder as an ONNX graph, written node by node from its safetensors.

One graph serves prefill, the extension of a cached prefix and decoding. `Attention` of opset 23
takes query heads and fewer key-value heads as they are, and appends to the past inside the
operator, so nothing is repeated or concatenated outside it. All after the last layer's attention is
done for the last position alone: a prompt of 300 tokens costs one row of logits, not 300.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .graph import make_model
from .llm_source import LlmSource
from .llm_specs import (
    ATTENTION_MASK,
    BLOCK,
    HEAD_BITS,
    INPUT_IDS,
    INT8_PRODUCTS,
    LINEAR_BITS,
    LOGITS,
    MASKED,
    POSITION_IDS,
    past_names,
    present_names,
)
from .quantize_blocks import quantise_blocks
from .weights import TensorFile

_MICROSOFT = "com.microsoft"


class DecoderGraph:
    """Builds the graph; weights go to a `TensorFile` that several graphs may share.

    Args:
        source: the model.
        tensors: where its weights go, those that are not there yet.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``.
        masked: whether the graph takes an attention mask, for rows of different lengths.
    """

    def __init__(
        self, source: LlmSource, tensors: TensorFile, *, precision: str, masked: bool
    ) -> None:
        self.shape = source.shape
        self.checkpoint = source.checkpoint
        self.tensors = tensors
        self.quantised = precision == "int4"
        self.dtype: type[np.generic] = np.float16 if precision == "fp16" else np.float32
        self.masked = masked
        self.nodes: list[Any] = []
        self.used: dict[str, None] = {}  # in order of use

    def model(self) -> Any:
        """The `onnx.ModelProto`, whose large tensors lie in the `TensorFile`."""
        x = self._embed()
        self._rotation()
        mask = self._mask() if self.masked else ""
        for layer in range(self.shape.layers):
            x = self._layer(x, layer, mask)
        self._logits(self._norm(x, "model.norm.weight"))
        return make_model(
            "causal-lm",
            nodes=self.nodes,
            inputs=self._inputs(),
            outputs=self._outputs(),
            tensors=[self.tensors.tensors[name] for name in self.used],
        )

    def _embed(self) -> str:
        table = self._tensor("model.embed_tokens.weight", np.float16 if self.quantised else None)
        x = self._op("Gather", table, INPUT_IDS, axis=0)
        return self._cast(x, np.float32) if self.quantised else x

    def _rotation(self) -> None:
        """Cosine and sine of every position, (batch, sequence, head_dim / 2), for all layers."""
        positions = self._op("Unsqueeze", POSITION_IDS, self._constant("last_axis", [-1]))
        if "rotary.frequencies" not in self.tensors:
            self.tensors.add("rotary.frequencies", self.shape.frequencies)
        # In float32 even for fp16, which cannot count past 2048.
        angles = self._op("Mul", self._cast(positions, np.float32), self._use("rotary.frequencies"))
        self.cosine, self.sine = self._op("Cos", angles), self._op("Sin", angles)
        if self.dtype != np.float32:
            self.cosine = self._cast(self.cosine, self.dtype)
            self.sine = self._cast(self.sine, self.dtype)

    def _mask(self) -> str:
        """What padding adds to scores, (batch, 1, sequence, total); the operator adds causality.

        A finite number: a row that sees nothing but padding must not become NaN, as its values
        still take part, multiplied by 0, in the rows after it.
        """
        seen = self._cast(ATTENTION_MASK, self.dtype)
        hidden = self._op("Sub", self._constant("one", 1, self.dtype), seen)
        added = self._op("Mul", hidden, self._constant("masked", MASKED, self.dtype))
        added = self._op("Unsqueeze", added, self._constant("head_and_row", [1, 2]))
        rows = self._op("Shape", INPUT_IDS, start=1)
        ones = self._constant("ones", [1, 1])
        shape = self._op("Concat", ones, rows, self._constant("one_more", [1]), axis=0)
        # ONNX Runtime's kernel wants a row for every query, where the standard would broadcast.
        return self._op("Expand", added, shape)

    def _layer(self, x: str, layer: int, mask: str) -> str:
        prefix = f"model.layers.{layer}"
        normed = self._norm(x, f"{prefix}.input_layernorm.weight")
        attended = self._attention(normed, f"{prefix}.self_attn", layer, mask)
        if layer == self.shape.layers - 1:
            last = self._constant("last", -1)
            x = self._op("Gather", x, last, axis=1)  # (batch, hidden) from here on
            attended = self._op("Gather", attended, last, axis=1)
        x = self._op("Add", x, self._linear(attended, f"{prefix}.self_attn.o_proj"))
        normed = self._norm(x, f"{prefix}.post_attention_layernorm.weight")
        gate = self._linear(normed, f"{prefix}.mlp.gate_proj")
        gate = self._op("Mul", gate, self._op("Sigmoid", gate))
        wide = self._op("Mul", gate, self._linear(normed, f"{prefix}.mlp.up_proj"))
        return self._op("Add", x, self._linear(wide, f"{prefix}.mlp.down_proj"))

    def _attention(self, x: str, prefix: str, layer: int, mask: str) -> str:
        shape = self.shape
        query = self._heads(self._linear(x, f"{prefix}.q_proj"), f"{prefix}.q_norm", shape.heads)
        key = self._heads(self._linear(x, f"{prefix}.k_proj"), f"{prefix}.k_norm", shape.kv_heads)
        value = self._linear(x, f"{prefix}.v_proj")
        outputs = [f"attended.{layer}", *present_names(layer)]
        self._add(
            "Attention",
            [query, key, value, mask, *past_names(layer)],
            outputs,
            q_num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            is_causal=1,
        )
        return outputs[0]

    def _heads(self, x: str, norm: str, heads: int) -> str:
        """Normalise each head, where the model does, and rotate it; (batch, sequence, width)."""
        if f"{norm}.weight" in self.checkpoint:
            split = self._constant("split", [0, 0, -1, self.shape.head_dim])
            x = self._norm(self._op("Reshape", x, split), f"{norm}.weight")
            x = self._op("Reshape", x, self._constant("join", [0, 0, -1]))
        return self._op("RotaryEmbedding", x, self.cosine, self.sine, num_heads=heads)

    def _norm(self, x: str, weight: str) -> str:
        # stash_type 1: the mean square is taken in float32, as in the source
        return self._op(
            "RMSNormalization",
            x,
            self._tensor(weight),
            axis=-1,
            epsilon=self.shape.epsilon,
            stash_type=1,
        )

    def _linear(self, x: str, name: str) -> str:
        if self.quantised:
            y = self._quantised_product(x, f"{name}.weight", f"{name}.weight", LINEAR_BITS)
        else:
            transposed = f"{name}.weight.transposed"
            if transposed not in self.tensors:
                weight = self.checkpoint.read(f"{name}.weight")
                self.tensors.add(transposed, weight.T.astype(self.dtype, copy=False))
            y = self._op("MatMul", x, self._use(transposed))
        bias = f"{name}.bias"
        return self._op("Add", y, self._tensor(bias)) if bias in self.checkpoint else y

    def _quantised_product(self, x: str, name: str, weight: str, bits: int) -> str:
        parts = [f"{name}.{part}" for part in ("packed", "scales", "zeros")]
        if parts[0] not in self.tensors:
            arrays: tuple[npt.NDArray[Any], ...] = quantise_blocks(
                self.checkpoint.read(weight), bits, BLOCK
            )
            for part, array in zip(parts, arrays, strict=True):
                self.tensors.add(part, array)
        rows, columns = self.checkpoint.shape(weight)
        return self._op(
            "MatMulNBits",
            x,
            *(self._use(part) for part in parts),
            domain=_MICROSOFT,
            K=columns,
            N=rows,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=INT8_PRODUCTS,
        )

    def _logits(self, x: str) -> None:
        """(batch, 1, vocabulary) float32 under the output's name."""
        weight = "model.embed_tokens.weight" if self.shape.tied else "lm_head.weight"
        if self.quantised:
            y = self._quantised_product(x, "lm_head.weight", weight, HEAD_BITS)
        else:
            # Gemm takes the matrix as it is stored, so that a tied one is stored once.
            y = self._op("Gemm", x, self._tensor(weight), transB=1)
        if self.dtype != np.float32:
            y = self._cast(y, np.float32)
        self._add("Unsqueeze", [y, self._constant("sequence", [1])], [LOGITS])

    def _inputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        past: list[str | int] = ["batch", self.shape.kv_heads, "past", self.shape.head_dim]
        integers = {INPUT_IDS: "sequence", POSITION_IDS: "sequence"}
        if self.masked:
            integers[ATTENTION_MASK] = "total"
        return [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
            for name, length in integers.items()
        ] + self._cache(past_names, past)

    def _outputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        logits = ["batch", 1, self.shape.vocabulary]
        present: list[str | int] = ["batch", self.shape.kv_heads, "total", self.shape.head_dim]
        return [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, logits),
            *self._cache(present_names, present),
        ]

    def _cache(self, names: Any, shape: list[str | int]) -> list[Any]:
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        return [
            helper.make_tensor_value_info(name, kind, shape)
            for layer in range(self.shape.layers)
            for name in names(layer)
        ]

    def _tensor(self, name: str, dtype: type[np.generic] | None = None) -> str:
        """A tensor of the checkpoint, in the graph's dtype unless another is named."""
        if name not in self.tensors:
            self.tensors.add(
                name, self.checkpoint.read(name).astype(dtype or self.dtype, copy=False)
            )
        return self._use(name)

    def _constant(
        self, name: str, value: float | list[int], dtype: type[np.generic] = np.int64
    ) -> str:
        name = f"constant.{name}"
        if name not in self.tensors:
            self.tensors.add(name, np.array(value, dtype))
        return self._use(name)

    def _use(self, name: str) -> str:
        self.used[name] = None
        return name

    def _cast(self, x: str, dtype: type[np.generic]) -> str:
        from onnx import helper

        return self._op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}.{len(self.nodes)}"
        self._add(kind, list(inputs), [output], **attributes)
        return output

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))
