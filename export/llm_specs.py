"""Facts about exports of language models as data: names, precisions and their tolerances."""

from __future__ import annotations

from dataclasses import dataclass

# The names above and below are optimum's, which `ORTModelForCausalLM` looks for.


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
