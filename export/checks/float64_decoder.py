"""A decoder in NumPy and float64, see `float64`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.export.specs import HEAD, LINEAR

from .float64 import Float64, Weights, attend, rotated

_TABLE = "model.embed_tokens.weight"


def token_embeddings(source: LlmSource, ids: list[int], *, quantised: bool) -> Float64:
    """Return the embeddings (tokens, hidden) of token ids, rounded as in an int4 export or not."""
    return Weights(source.checkpoint).rows(_TABLE, np.array(ids), HEAD if quantised else None)


def decoder_logits(
    source: LlmSource,
    x: Float64,
    angles: npt.NDArray[Any],
    *,
    quantised: bool,
    features: Sequence[Float64] = (),
) -> Float64:
    """Return the logits (vocabulary,) after the last token.

    Args:
        source: the model, with as many layers as are to be computed.
        x: the tokens' embeddings, (tokens, hidden).
        angles: of the rotary positions, (tokens, head_dim / 2).
        quantised: whether weights are rounded as an int4 export rounds them.
        features: what is added behind each of the first layers, (tokens, hidden).
    """
    shape, weights = source.shape, Weights(source.checkpoint)
    rounding, last_rounding = (LINEAR, HEAD) if quantised else (None, None)
    count = len(x)

    def causal(queries: slice) -> npt.NDArray[np.bool_]:
        reach: npt.NDArray[np.int64] = np.arange(queries.start, queries.stop)[:, None]
        return np.arange(count) <= reach

    def heads(y: Float64, name: str) -> Float64:
        part = weights.linear(y, f"{name}_proj", rounding).reshape(count, -1, shape.head_dim)
        if f"{name}_norm.weight" in weights:
            part = weights.rms_norm(part, f"{name}_norm", shape.epsilon)
        return part

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        y = weights.rms_norm(x, f"{prefix}.input_layernorm", shape.epsilon)
        query, key, value = (heads(y, f"{prefix}.self_attn.{part}") for part in "qkv")
        y = attend(rotated(query, angles), rotated(key, angles), value, causal)
        x = x + weights.linear(y, f"{prefix}.self_attn.o_proj", rounding)
        y = weights.rms_norm(x, f"{prefix}.post_attention_layernorm", shape.epsilon)
        x = x + weights.gated(y, f"{prefix}.mlp", rounding)
        if layer < len(features):
            x = x + features[layer]
    last = weights.rms_norm(x[-1:], "model.norm", shape.epsilon)
    head = _TABLE if shape.tied else "lm_head.weight"
    (logits,) = weights.product(last, head, last_rounding)
    return np.asarray(logits)
