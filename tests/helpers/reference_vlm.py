"""Reference for the vision-language model, without torch: float64, one prompt, no KV cache.

This module shares no code with the code under test. Attention scores all pairs of tokens and masks
those that may not attend to each other. Patches stay in the order of the frame.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from helpers.reference_llm import norm

Array = Any


def reference_image(folder: Path, frame: Array) -> Array:
    """Return the embeddings (tokens, hidden) of a frame (height, width, 3).

    Args:
        folder: a source model that `write_tiny_vlm` wrote.
        frame: already of the model's size.
    """
    config, weights = _read(folder)
    vision = config["vision_config"]
    weights = {k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")}
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = (frame / 255 - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    edge, merge = vision["patch_size"], vision["spatial_merge_size"]
    rows, columns = frame.shape[0] // edge, frame.shape[1] // edge
    kernel = weights["patch_embed.proj.weight"].sum(axis=2)  # the model takes this frame twice
    patches = pixels.reshape(rows, edge, columns, edge, 3)
    x = np.einsum("ryxpc,dcyp->rxd", patches, kernel).reshape(rows * columns, -1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    window = vision["window_size"] // edge
    window_of = np.stack([row // window, column // window], axis=1)
    same_window = (window_of[:, None] == window_of[None]).all(axis=2)
    size = vision["hidden_size"] // vision["num_heads"]
    frequencies = 10000.0 ** (-np.arange(size // 4) / (size // 4))
    angles = np.concatenate([row[:, None] * frequencies, column[:, None] * frequencies], axis=1)
    for i in range(vision["depth"]):
        full = i in vision["fullatt_block_indexes"]
        block = {
            k.removeprefix(f"blocks.{i}."): v for k, v in weights.items() if f"blocks.{i}." in k
        }
        y = _linear(norm(x, block["norm1.weight"], 1e-6), block, "attn.qkv")
        query, key, value = y.reshape(len(x), 3, -1, size).transpose(1, 0, 2, 3)
        mask = np.ones_like(same_window) if full else same_window
        y = _attend(_rotated(query, angles), _rotated(key, angles), value, mask)
        x = x + _linear(y, block, "attn.proj")
        x = x + _gated(norm(x, block["norm2.weight"], 1e-6), block)
    x = norm(x, weights["merger.ln_q.weight"], 1e-6)
    x = x.reshape(rows // merge, merge, columns // merge, merge, -1)
    x = x.transpose(0, 2, 1, 3, 4).reshape(rows * columns // merge**2, -1)
    x = _linear(x, weights, "merger.mlp.0")
    x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return _linear(x, weights, "merger.mlp.2")


def reference_vlm_logits(folder: Path, ids: list[int], frames: Array) -> Array:
    """Return the logits (vocabulary,) of the token after `ids`.

    Args:
        folder: a source model that `write_tiny_vlm` wrote.
        ids: token ids, with a run of image tokens for each frame.
        frames: (frames, height, width, 3), already of the model's size.
    """
    config, weights = _read(folder)
    text = config.get("text_config", config)
    epsilon = text["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    if len(frames):
        images = [reference_image(folder, frame) for frame in frames]
        x[np.array(ids) == config["image_token_id"]] = np.concatenate(images)
    edge = 2 * config["vision_config"]["patch_size"]
    grids = [(frame.shape[0] // edge, frame.shape[1] // edge) for frame in frames]
    positions = reference_positions(ids, config["image_token_id"], grids)
    heads, size = text["num_attention_heads"], text["hidden_size"] // text["num_attention_heads"]
    frequencies = text["rope_theta"] ** (-2 * np.arange(size // 2) / size)
    sections = text["rope_scaling"]["mrope_section"]
    axes = [axis for axis, pairs in enumerate(sections) for _ in range(pairs)]
    angles = positions[axes].T * frequencies
    causal = np.tri(len(ids), dtype=bool)
    for i in range(text["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        layer = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        y = norm(x, layer["input_layernorm.weight"], epsilon)
        query, key, value = (
            _linear(y, layer, f"self_attn.{name}_proj").reshape(len(x), -1, size) for name in "qkv"
        )
        group = heads // key.shape[1]
        key, value = _rotated(key, angles).repeat(group, axis=1), value.repeat(group, axis=1)
        y = _attend(_rotated(query, angles), key, value, causal)
        x = x + y @ layer["self_attn.o_proj.weight"].T
        x = x + _gated(norm(x, layer["post_attention_layernorm.weight"], epsilon), layer)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x[-1], weights["model.norm.weight"], epsilon) @ head.T


def reference_positions(ids: list[int], image: int, grids: list[tuple[int, int]]) -> Array:
    """Return time, row and column of every token, (3, tokens), computed token by token.

    Args:
        ids: token ids.
        image: the image token.
        grids: rows and columns of each frame's tokens.
    """
    positions: list[tuple[int, int, int]] = []
    remaining = list(grids)
    start = 0
    while len(positions) < len(ids):
        if ids[len(positions)] == image and remaining:
            rows, columns = remaining.pop(0)
            cells = [(row, column) for row in range(rows) for column in range(columns)]
            positions += [(start, start + row, start + column) for row, column in cells]
            start += max(rows, columns)
        else:
            positions.append((start,) * 3)
            start += 1
    return np.array(positions).T


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    config = json.loads((folder / "config.json").read_text())
    return config, {k: v.astype(float) for k, v in load_file(folder / "model.safetensors").items()}


def _linear(x: Array, weights: dict[str, Array], name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def _gated(x: Array, weights: dict[str, Array]) -> Array:
    gate = _linear(x, weights, "mlp.gate_proj")
    wide = gate / (1 + np.exp(-gate)) * _linear(x, weights, "mlp.up_proj")
    return _linear(wide, weights, "mlp.down_proj")


def _rotated(x: Array, angles: Array) -> Array:
    """Rotate the points (value i, value i + size / 2) of (tokens, heads, size) by the angles."""
    first, second = np.split(x, 2, axis=2)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=2)


def _attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[2])
    scores = np.where(mask, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    return np.einsum("hqk,khd->qhd", shares, value).reshape(len(query), -1)
