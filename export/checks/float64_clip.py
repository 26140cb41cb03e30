"""The towers of CLIP and SigLIP in NumPy and float64, see `float64`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.export.graphs.clip_shapes import ImageShape, TextShape, Transformer
from granalign_fast.export.sources.checkpoint import Tensors
from granalign_fast.export.specs import Rounding

from .float64 import ACTIVATIONS, Float64, Weights, attend

_LEGACY_END = 2
"""End of a text in CLIP's first configurations, which stands for the highest id."""


def embed_images(
    family: str, shape: ImageShape, tensors: Tensors, frames: Sequence[npt.NDArray[np.uint8]]
) -> Float64:
    """Return the embeddings (frames, dim), of unit length.

    Args:
        family: one of `CLIP_FAMILIES`.
        shape: of the image tower.
        tensors: the source's weights.
        frames: bytes (side, side, 3) each, resized and cropped.
    """
    tower, weights = "vision_model", Weights(tensors)
    x = image_states(family, shape, tensors, frames, tower=tower)
    if family == "clip":
        return _unit(weights.product(x[:, 0], "visual_projection.weight"))
    return _unit(_pooled(weights, f"{tower}.head", shape.layers, x))


def image_states(
    family: str,
    shape: ImageShape,
    tensors: Tensors,
    frames: Sequence[npt.NDArray[np.uint8]],
    *,
    tower: str,
) -> Float64:
    """Return the normalised states (frames, tokens, hidden) behind all layers.

    Args:
        family: one of `CLIP_FAMILIES`.
        shape: of the image tower.
        tensors: the source's weights.
        frames: bytes (side, side, 3) each, resized and cropped.
        tower: prefix of the tower's tensor names.
    """
    weights, patch = Weights(tensors), shape.patch
    # Pixels, and one product for the patches of each frame.
    levels, edge = shape.levels, shape.grid * patch
    pixels = np.stack(frames)[:, :edge, :edge].astype(np.float64) * levels.rescale
    pixels = (pixels - np.array(levels.mean)) / np.array(levels.std)
    cut = pixels.reshape(len(frames), shape.grid, patch, shape.grid, patch, 3)
    cut = cut.transpose(0, 1, 3, 5, 2, 4).reshape(len(frames), shape.grid**2, -1)
    name = f"{tower}.embeddings.patch_embedding"
    x = weights.linear(cut, name)
    if family == "clip":
        first = weights[f"{tower}.embeddings.class_embedding"]
        x = np.concatenate([np.broadcast_to(first, (len(x), 1, len(first))), x], axis=1)
    x = x + weights[f"{tower}.embeddings.position_embedding.weight"]
    if family == "clip":
        x = weights.layer_norm(x, f"{tower}.pre_layrnorm", shape.layers.epsilon)
    x = np.stack(_layers(weights, tower, shape.layers, list(x), causal=False))
    return weights.layer_norm(x, f"{tower}.post_layernorm", shape.layers.epsilon)


def embed_texts(
    family: str, shape: TextShape, tensors: Tensors, tokens: Sequence[Sequence[int]]
) -> Float64:
    """Return the embeddings (texts, dim), of unit length; arguments as of `embed_images`."""
    tower, weights = "text_model", Weights(tensors)
    positions = weights[f"{tower}.embeddings.position_embedding.weight"]
    flat = np.concatenate([np.array(ids, np.int64) for ids in tokens])
    rows = weights.rows(f"{tower}.embeddings.token_embedding.weight", flat)
    states = np.split(rows, np.cumsum([len(ids) for ids in tokens])[:-1])
    states = [x + positions[: len(x)] for x in states]
    states = _layers(weights, tower, shape.layers, states, causal=family == "clip")
    ends = []
    for x, ids in zip(
        states, np.split(flat, np.cumsum([len(i) for i in tokens])[:-1]), strict=True
    ):
        end = len(ids) - 1
        if family == "clip":
            # The first end, or the first token if there is none.
            score = ids if shape.end == _LEGACY_END else ids == shape.end
            end = int(score.argmax())
        ends.append(x[end])
    pooled = weights.layer_norm(np.stack(ends), f"{tower}.final_layer_norm", shape.layers.epsilon)
    if family == "clip":
        return _unit(weights.product(pooled, "text_projection.weight"))
    return _unit(weights.linear(pooled, f"{tower}.head"))


def _layers(
    weights: Weights, tower: str, shape: Transformer, states: list[Float64], *, causal: bool
) -> list[Float64]:
    """Apply all layers to the states (tokens, hidden) of each input, one layer after another."""
    for layer in range(shape.layers):
        prefix = f"{tower}.encoder.layers.{layer}"
        held = _Held(weights)
        states = [_layer(held, prefix, shape, x, causal=causal) for x in states]
    return states


class _Held(Weights):
    """Weights of one layer, kept for all inputs of the check."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights.tensors)
        self._kept: dict[str, Float64] = {}

    def __getitem__(self, name: str) -> Float64:
        if name not in self._kept:
            self._kept[name] = super().__getitem__(name)
        return self._kept[name]

    def product(self, x: Float64, name: str, rounding: Rounding | None = None) -> Float64:
        weight = self[name]
        result: Float64 = x @ weight.reshape(len(weight), -1).T
        return result


def _layer(
    weights: Weights, prefix: str, shape: Transformer, x: Float64, *, causal: bool
) -> Float64:
    """Apply a layer to one input (tokens, hidden)."""
    y = weights.layer_norm(x, f"{prefix}.layer_norm1", shape.epsilon)
    parts = [weights.linear(y, f"{prefix}.self_attn.{part}_proj") for part in "qkv"]
    x = x + weights.linear(_attended(parts, shape.heads, causal), f"{prefix}.self_attn.out_proj")
    y = weights.layer_norm(x, f"{prefix}.layer_norm2", shape.epsilon)
    return x + _mlp(weights, f"{prefix}.mlp", shape, y)


def _attended(parts: Sequence[Float64], heads: int, causal: bool) -> Float64:
    query, key, value = (x.reshape(len(x), heads, -1) for x in parts)
    keys = np.arange(len(key))

    def allowed(queries: slice) -> npt.NDArray[np.bool_]:
        limit = np.arange(queries.start, queries.stop) if causal else np.full(len(query), len(key))
        return keys <= limit[: queries.stop - queries.start, None]

    return attend(query, key, value, allowed)


def _mlp(weights: Weights, prefix: str, shape: Transformer, x: Float64) -> Float64:
    wide = ACTIVATIONS[shape.activation](weights.linear(x, f"{prefix}.fc1"))
    return weights.linear(wide, f"{prefix}.fc2")


def _pooled(weights: Weights, head: str, shape: Transformer, x: Float64) -> Float64:
    """Pool the patches (images, patches, hidden) as SigLIP does: attention by a learnt query."""
    joint, bias = (
        weights[f"{head}.attention.in_proj_weight"],
        weights[f"{head}.attention.in_proj_bias"],
    )
    by_part = list(zip(np.split(joint, 3), np.split(bias, 3), strict=True))
    rows = []
    for image in x:
        inputs = (weights[f"{head}.probe"][0], image, image)
        parts = [y @ w.T + b for y, (w, b) in zip(inputs, by_part, strict=True)]
        y = weights.linear(_attended(parts, shape.heads, False), f"{head}.attention.out_proj")
        normed = weights.layer_norm(y, f"{head}.layernorm", shape.epsilon)
        rows.append((y + _mlp(weights, f"{head}.mlp", shape, normed))[0])
    return np.stack(rows)


def _unit(x: Float64) -> Float64:
    unit: Float64 = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit
