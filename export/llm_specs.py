"""Facts about exports of language models as data: names, precisions and their tolerances."""

from __future__ import annotations

from dataclasses import dataclass

INPUT_IDS = "input_ids"
"""int64 (batch, sequence)."""
POSITION_IDS = "position_ids"
"""int64 (batch, sequence): a token's place in its own row, padding not counted."""
ATTENTION_MASK = "attention_mask"
"""int64 (batch, past + sequence): 0 for padding. Only ``model.onnx`` takes it."""
LOGITS = "logits"
"""float32 (batch, 1, vocabulary): of the last position."""

# The names above and below are optimum's, which `ORTModelForCausalLM` looks for.


def past_names(layer: int) -> tuple[str, str]:
    """Inputs: keys and values (batch, kv_heads, past, head_dim) in the graph's dtype.

    Of ``static.onnx`` (batch, capacity, kv_heads * head_dim), and its outputs likewise.
    """
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Outputs: keys and values (batch, kv_heads, past + sequence, head_dim)."""
    return f"present.{layer}.key", f"present.{layer}.value"


GRAPH = "model.onnx"
"""Takes a mask, so rows may be padded on their left: what `ORTModelForCausalLM` opens."""
STATIC_GRAPH = "static.onnx"
"""The same weights over a cache that stays where it is, with room for what is to come: what a GPU
runs. Rows are padded on their right, where causality hides the padding, so it takes no mask: one
that masks nothing is enough to lose ONNX Runtime's Flash kernel. Its shapes do not change from step
to step, so that a CUDA graph can hold one."""
STATIC_OPSET = 24
"""TensorScatter, and Attention over the first of a cache's tokens."""
WRITE_INDICES = "write_indices"
"""int64 (batch,): where in the cache the first of a row's new tokens goes."""
CACHED_TOKENS = "cached_tokens"
"""int64 (batch,): tokens of a row in the cache, with all the new ones."""
LAST = "last"
"""(batch, 1, sequence) in the graph's dtype: 1 for the token whose logits are wanted, 0 for others.
"""
WEIGHTS = "model.onnx_data"
"""The external data of both."""

MASKED = -1e4
"""Added to the scores of padding: float16 holds it, and its exponential is 0 in every precision."""

BLOCK = 32
"""int4: columns of a weight with a scale and a zero point: 0.64 bytes a weight, all in all. 128
would take 0.53, with 1.3 times the error on Gaussian weights and more where a column sticks out."""
LINEAR_BITS = 4
HEAD_BITS = 8
"""The last product chooses between 100,000 tokens: 4 bits there would cost more than all layers."""

INT8_PRODUCTS = 4
"""int4: the `accuracy_level` of MatMulNBits that lets a CPU round activations to 8 bits, each block
by its own scale. A decode step takes a tenth of the time that float32 activations take, a third of
fp32's, for an error of 4 %, ten times less than that of the weights' rounding."""


@dataclass(frozen=True)
class LlmTolerance:
    """How far an export's logits may be from the source's in float32.

    `max_error` is the greatest difference, in units of the logits' root mean square where that is
    over 1; `relative` is the root mean square of the difference over that of the logits. An int4
    export is held to the source with its weights rounded likewise, so that their rounding does not
    hide a wrong graph; what it costs in itself, relatively, may be up to `rounding`.
    """

    max_error: float
    relative: float
    rounding: float = 0.0


LLM_PRECISIONS = {
    # Sums in another order: 2e-5 and 3e-6 measured.
    "fp32": LlmTolerance(1e-4, 1e-4),
    # 11 bits of mantissa over every layer: 0.025 and 0.006 measured.
    "fp16": LlmTolerance(0.1, 0.02),
    # 0.26 and 0.06 measured. Rounding costs 0.3 to 0.6 on random weights, which forgive nothing;
    # logits that have nothing to do with each other are 1.4 apart.
    "int4": LlmTolerance(1.0, 0.2, rounding=0.8),
}
"""fp32; fp16: weights, activations and cache; int4: 4-bit weights of the layers' products in blocks
of 32, 8-bit ones of the last product, float16 embeddings, float32 cache."""
