"""Reference for the frame encoder: CLIP's and SigLIP's towers in float64 NumPy.

The steps are those of transformers' models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from granalign_fast.export.graphs.clip_shapes import ImageShape, TextShape, Transformer

Array = np.ndarray
Weights = Mapping[str, Array]
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def _norm(x: Array, weights: Weights, name: str, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    plain = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return plain * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}.weight"].T.astype(np.float64) + weights.get(f"{name}.bias", 0.0)


def _activate(x: Array, kind: str) -> Array:
    if kind == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    if kind == "gelu":
        return 0.5 * x * (1 + _ERF(x / math.sqrt(2)))
    assert kind == "gelu_pytorch_tanh"
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _attend(query: Array, key: Array, value: Array, heads: int, *, causal: bool) -> Array:
    query, key, value = (
        x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (query, key, value)
    )
    scores = query @ key.swapaxes(2, 3) / math.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = shares / shares.sum(axis=-1, keepdims=True) @ value
    return mixed.swapaxes(1, 2).reshape(len(query), query.shape[2], -1)


def _mlp(x: Array, weights: Weights, name: str, kind: str) -> Array:
    return _linear(_activate(_linear(x, weights, f"{name}.fc1"), kind), weights, f"{name}.fc2")


def _layers(x: Array, weights: Weights, tower: str, shape: Transformer, *, causal: bool) -> Array:
    for layer in range(shape.layers):
        prefix = f"{tower}.encoder.layers.{layer}"
        y = _norm(x, weights, f"{prefix}.layer_norm1", shape.epsilon)
        parts = [_linear(y, weights, f"{prefix}.self_attn.{part}_proj") for part in "qkv"]
        y = _attend(*parts, shape.heads, causal=causal)
        x = x + _linear(y, weights, f"{prefix}.self_attn.out_proj")
        y = _norm(x, weights, f"{prefix}.layer_norm2", shape.epsilon)
        x = x + _mlp(y, weights, f"{prefix}.mlp", shape.activation)
    return x


def _unit(x: Array) -> Array:
    unit: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit


def embed_images(shape: ImageShape, weights: Weights, family: str, pixels: Array) -> Array:
    """Return the embeddings (images, dim) of normalised pixels (images, 3, side, side)."""
    tower, stack, patch = "vision_model", shape.layers, shape.patch
    rows = [
        pixels[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].reshape(
            len(pixels), -1
        )
        for i in range(shape.grid)
        for j in range(shape.grid)
    ]
    kernel = weights[f"{tower}.embeddings.patch_embedding.weight"].reshape(stack.hidden, -1)
    x = np.stack(rows, axis=1).astype(np.float64) @ kernel.T
    x = x + weights.get(f"{tower}.embeddings.patch_embedding.bias", 0.0)
    if family == "clip":
        first = weights[f"{tower}.embeddings.class_embedding"]
        x = np.concatenate([np.tile(first, (len(x), 1, 1)), x], axis=1)
    x = x + weights[f"{tower}.embeddings.position_embedding.weight"]
    if family == "clip":
        x = _norm(x, weights, f"{tower}.pre_layrnorm", stack.epsilon)
    x = _layers(x, weights, tower, stack, causal=False)
    x = _norm(x, weights, f"{tower}.post_layernorm", stack.epsilon)
    if family == "clip":
        return _unit(_linear(x[:, 0], weights, "visual_projection"))
    head = f"{tower}.head"
    parts: dict[str, Any] = {}
    for i, part in enumerate("qkv"):
        for kind in ("weight", "bias"):
            joined = weights[f"{head}.attention.in_proj_{kind}"]
            parts[f"{part}.{kind}"] = np.split(joined, 3)[i]
    probe = np.tile(weights[f"{head}.probe"], (len(x), 1, 1))
    query, key, value = _linear(probe, parts, "q"), _linear(x, parts, "k"), _linear(x, parts, "v")
    x = _attend(query, key, value, stack.heads, causal=False)
    x = _linear(x, weights, f"{head}.attention.out_proj")
    y = _norm(x, weights, f"{head}.layernorm", stack.epsilon)
    return _unit((x + _mlp(y, weights, f"{head}.mlp", stack.activation))[:, 0])


def embed_texts(shape: TextShape, weights: Weights, family: str, ids: Array) -> Array:
    """Return the embeddings (texts, dim) of token ids (texts, tokens)."""
    tower, stack = "text_model", shape.layers
    words = weights[f"{tower}.embeddings.token_embedding.weight"].astype(np.float64)
    positions = weights[f"{tower}.embeddings.position_embedding.weight"]
    x = words[ids] + positions[: ids.shape[1]]
    x = _layers(x, weights, tower, stack, causal=family == "clip")
    x = _norm(x, weights, f"{tower}.final_layer_norm", stack.epsilon)
    if family == "siglip":
        return _unit(_linear(x[:, -1], weights, f"{tower}.head"))
    ends = ids.argmax(axis=1) if shape.end == 2 else (ids == shape.end).argmax(axis=1)
    return _unit(_linear(x[np.arange(len(ids)), ends], weights, "text_projection"))
