"""Vision towers in NumPy and float64, see `float64`: a function for each family."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import HEAD, VISION_EPSILON, VISION_THETA
from granalign_fast.models.graph_contract import DEEPSTACK, IMAGE_EMBEDS

from .float64 import Allowed, Float64, Weights, attend, gelu, gelu_tanh, rotated

Frames = npt.NDArray[np.uint8]


def qwen2_5_vl(source: VlmSource, clip: Frames, *, quantised: bool) -> dict[str, Float64]:
    """Return the embeddings (tokens, hidden) of a clip (frames, height, width, 3).

    Patches stay in the frame's order, and a mask keeps attention within windows.

    Args:
        source: the model, with as many layers as are to be computed.
        clip: of the image size; a single frame stands for all that an image spans.
        quantised: whether weights are rounded as an int4 export rounds them.
    """
    vision, weights = source.vision, Weights(source.checkpoint)
    rounding = HEAD if quantised else None
    rows, columns = (side * vision.merge for side in source.grid)
    x = _patches(source, clip, weights)
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
    return {IMAGE_EMBEDS: weights.linear(x, "visual.merger.mlp.2", rounding)}


def qwen3_vl(source: VlmSource, clip: Frames, *, quantised: bool) -> dict[str, Float64]:
    """Return embeddings (tokens, hidden) and deepstack features (layers, tokens, hidden) of a clip.

    Patches stay in the frame's order. Arguments are those of `qwen2_5_vl`.
    """
    vision, weights = source.vision, Weights(source.checkpoint)
    rounding = HEAD if quantised else None
    rows, columns = (side * vision.merge for side in source.grid)
    row, column = np.divmod(np.arange(rows * columns), columns)
    # Patches, with the positions of the learned table between which each of them lies.
    x = _patches(source, clip, weights) + weights["visual.patch_embed.proj.bias"]
    table = weights["visual.pos_embed.weight"]
    side = math.isqrt(len(table))
    down, right = row * (side - 1) / max(rows - 1, 1), column * (side - 1) / max(columns - 1, 1)
    for table_row in (np.floor(down), np.floor(down) + 1):
        for table_column in (np.floor(right), np.floor(right) + 1):
            near = (1 - abs(down - table_row)) * (1 - abs(right - table_column))
            at = np.minimum(table_row, side - 1) * side + np.minimum(table_column, side - 1)
            x = x + near[:, None] * table[at.astype(int)]
    size = vision.hidden // vision.heads
    frequencies = VISION_THETA ** (-np.arange(size // 4) / (size // 4))
    angles = np.concatenate([row[:, None] * frequencies, column[:, None] * frequencies], axis=1)

    def everywhere(queries: slice) -> npt.NDArray[np.bool_]:
        return np.ones((queries.stop - queries.start, len(x)), bool)

    def merged(y: Float64, name: str, *, joined_first: bool) -> Float64:
        if not joined_first:
            y = weights.layer_norm(y, f"{name}.norm", VISION_EPSILON)
        y = y.reshape(rows // vision.merge, vision.merge, columns // vision.merge, vision.merge, -1)
        y = y.swapaxes(1, 2).reshape(source.grid[0] * source.grid[1], -1)
        if joined_first:
            y = weights.layer_norm(y, f"{name}.norm", VISION_EPSILON)
        y = gelu(weights.linear(y, f"{name}.linear_fc1", rounding))
        return weights.linear(y, f"{name}.linear_fc2", rounding)

    features = []
    for layer in range(vision.layers):
        prefix = f"visual.blocks.{layer}"
        y = weights.layer_norm(x, f"{prefix}.norm1", VISION_EPSILON)
        y = weights.linear(y, f"{prefix}.attn.qkv", rounding).reshape(len(x), 3, vision.heads, size)
        query, key, value = rotated(y[:, 0], angles), rotated(y[:, 1], angles), y[:, 2]
        y = attend(query, key, value, everywhere)
        x = x + weights.linear(y, f"{prefix}.attn.proj", rounding)
        y = weights.layer_norm(x, f"{prefix}.norm2", VISION_EPSILON)
        y = gelu_tanh(weights.linear(y, f"{prefix}.mlp.linear_fc1", rounding))
        x = x + weights.linear(y, f"{prefix}.mlp.linear_fc2", rounding)
        for number, after in enumerate(vision.deepstack):
            if after == layer:
                name = f"visual.deepstack_merger_list.{number}"
                features.append(merged(x, name, joined_first=True))
    found = {IMAGE_EMBEDS: merged(x, "visual.merger", joined_first=False)}
    return found | ({DEEPSTACK: np.stack(features)} if features else {})


def qwen_pixels(source: VlmSource, clip: Frames) -> Float64:
    """Return the pixels (1, patches, values) of a frame as transformers' processor sorts them."""
    vision, pixels = source.vision, source.pixels
    values = (clip[0] * pixels.rescale - np.array(pixels.mean)) / np.array(pixels.std)
    rows, columns = source.grid
    cut = values.reshape(rows, vision.merge, vision.patch, columns, vision.merge, vision.patch, 3)
    # Tokens row by row, the patches of a token, and in a patch colour, time, row and column.
    cut = cut.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    cut = np.repeat(cut, vision.temporal, axis=5)
    return np.asarray(cut.reshape(1, rows * columns * vision.merge**2, -1))


def _patches(source: VlmSource, clip: Frames, weights: Weights) -> Float64:
    """Return the first states (patches, hidden), row by row; they have no bias yet."""
    patch, pixels, (frames, height, width, _) = source.vision.patch, source.pixels, clip.shape
    values = (clip * pixels.rescale - np.array(pixels.mean)) / np.array(pixels.std)
    rows, columns = height // patch, width // patch
    values = values.reshape(frames, rows, patch, columns, patch, 3).transpose(1, 3, 5, 0, 2, 4)
    kernel = weights["visual.patch_embed.proj.weight"]
    kernel = kernel.reshape(len(kernel), 3, -1, patch, patch)
    if frames == 1:  # it is repeated
        kernel = kernel.sum(axis=2)
    x: Float64 = values.reshape(rows * columns, -1) @ kernel.reshape(len(kernel), -1).T
    return x
