"""A decoder and the vision tower of Qwen2.5-VL in NumPy and float64, see `float64`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import HEAD, LINEAR, VISION_EPSILON, VISION_THETA

from .float64 import Allowed, Float64, Weights, attend, gelu, rotated

_TABLE = "model.embed_tokens.weight"


def token_embeddings(source: LlmSource, ids: list[int], *, quantised: bool) -> Float64:
    """Return the embeddings (tokens, hidden) of token ids, rounded as in an int4 export or not."""
    return Weights(source.checkpoint).rows(_TABLE, np.array(ids), HEAD if quantised else None)


def decoder_logits(
    source: LlmSource, x: Float64, angles: npt.NDArray[Any], *, quantised: bool
) -> Float64:
    """Return the logits (vocabulary,) after the last token.

    Args:
        source: the model, with as many layers as are to be computed.
        x: the tokens' embeddings, (tokens, hidden).
        angles: of the rotary positions, (tokens, head_dim / 2).
        quantised: whether weights are rounded as an int4 export rounds them.
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
    last = weights.rms_norm(x[-1:], "model.norm", shape.epsilon)
    head = _TABLE if shape.tied else "lm_head.weight"
    (logits,) = weights.product(last, head, last_rounding)
    return np.asarray(logits)


def image_embeddings(
    source: VlmSource, frame: npt.NDArray[np.uint8], *, quantised: bool
) -> Float64:
    """Return the embeddings (tokens, hidden) of a frame (height, width, 3) of the image size.

    Patches stay in the frame's order, and a mask keeps attention within windows. `quantised` says
    whether weights are rounded as an int4 export rounds them.
    """
    vision, weights = source.vision, Weights(source.checkpoint)
    rounding = HEAD if quantised else None
    rows, columns = (side * vision.merge for side in source.grid)
    x = _patches(source, frame, weights)
    # Windows and rotary positions, both by row and column of a patch.
    row, column = np.divmod(np.arange(rows * columns), columns)
    edge = vision.window * vision.merge
    window = row // edge * columns + column // edge
    size = vision.hidden // vision.heads
    frequencies = VISION_THETA ** (-np.arange(size // 4) / (size // 4))
    angles = np.concatenate([row[:, None] * frequencies, column[:, None] * frequencies], axis=1)

    def everywhere(queries: slice) -> npt.NDArray[np.bool_]:
        return np.ones((queries.stop - queries.start, len(x)), bool)

    def within(queries: slice) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = window[queries, None] == window
        return same

    for layer in range(vision.layers):
        allowed: Allowed = everywhere if layer in vision.full_layers else within
        prefix = f"visual.blocks.{layer}"
        y = weights.rms_norm(x, f"{prefix}.norm1", VISION_EPSILON)
        y = weights.linear(y, f"{prefix}.attn.qkv", rounding).reshape(len(x), 3, vision.heads, size)
        query, key, value = rotated(y[:, 0], angles), rotated(y[:, 1], angles), y[:, 2]
        y = attend(query, key, value, allowed)
        x = x + weights.linear(y, f"{prefix}.attn.proj", rounding)
        y = weights.rms_norm(x, f"{prefix}.norm2", VISION_EPSILON)
        x = x + weights.gated(y, f"{prefix}.mlp", rounding)
    # The patches of a token become one row.
    x = weights.rms_norm(x, "visual.merger.ln_q", VISION_EPSILON)
    x = x.reshape(rows // vision.merge, vision.merge, columns // vision.merge, vision.merge, -1)
    x = x.swapaxes(1, 2).reshape(source.grid[0] * source.grid[1], -1)
    x = gelu(weights.linear(x, "visual.merger.mlp.0", rounding))
    return weights.linear(x, "visual.merger.mlp.2", rounding)


def _patches(source: VlmSource, frame: npt.NDArray[np.uint8], weights: Weights) -> Float64:
    """Return the first states (patches, hidden), row by row; a frame stands for all in time."""
    patch, pixels = source.vision.patch, source.pixels
    values = (frame * pixels.rescale - np.array(pixels.mean)) / np.array(pixels.std)
    rows, columns = frame.shape[0] // patch, frame.shape[1] // patch
    values = values.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)
    kernel = weights["visual.patch_embed.proj.weight"]
    kernel = kernel.reshape(len(kernel), 3, -1, patch, patch).sum(axis=2)
    x: Float64 = values.reshape(rows * columns, -1) @ kernel.reshape(len(kernel), -1).T
    return x
