"""Vision towers in NumPy and float64, see `float64`: a function for each family."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import HEAD, VISION_EPSILON, VISION_THETA
from granalign_fast.models.graph_contract import IMAGE_EMBEDS

from .float64 import Allowed, Float64, Weights, attend, gelu, rotated

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
