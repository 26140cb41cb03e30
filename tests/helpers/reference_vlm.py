"""The judge of the vision-language model where there is no torch: float64, one prompt, no cache.

Nothing here is shared with the code under test. Attention goes over all pairs, and those that may
not see each other are left out; patches stay in the order of the frame.
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
    """Embeddings (tokens, hidden) of a frame (height, width, 3), for a folder of tiny_vlm."""
    config, weights = _read(folder)
    vision = config["vision_config"]
    weights = {k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")}
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = (frame / 255 - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    edge, merge = vision["patch_size"], vision["spatial_merge_size"]
    rows, columns = frame.shape[0] // edge, frame.shape[1] // edge
    kernel = weights["patch_embed.proj.weight"].sum(axis=2)  # both frames are this one
    patches = pixels.reshape(rows, edge, columns, edge, 3)
    x = np.einsum("ryxpc,dcyp->rxd", patches, kernel).reshape(rows * columns, -1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    window = vision["window_size"] // edge
    place = np.stack([row // window, column // window], axis=1)
    near = (place[:, None] == place[None]).all(axis=2)
    size = vision["hidden_size"] // vision["num_heads"]
    slow = 10000.0 ** (-np.arange(size // 4) / (size // 4))
    angles = np.concatenate([row[:, None] * slow, column[:, None] * slow], axis=1)
    for i in range(vision["depth"]):
        full = i in vision["fullatt_block_indexes"]
        block = {
            k.removeprefix(f"blocks.{i}."): v for k, v in weights.items() if f"blocks.{i}." in k
        }
        y = _linear(norm(x, block["norm1.weight"], 1e-6), block, "attn.qkv")
        query, key, value = y.reshape(len(x), 3, -1, size).transpose(1, 0, 2, 3)
        seen = np.ones_like(near) if full else near
        y = _attend(_turned(query, angles), _turned(key, angles), value, seen)
        x = x + _linear(y, block, "attn.proj")
        x = x + _gated(norm(x, block["norm2.weight"], 1e-6), block)
    x = norm(x, weights["merger.ln_q.weight"], 1e-6)
    x = x.reshape(rows // merge, merge, columns // merge, merge, -1)
    x = x.transpose(0, 2, 1, 3, 4).reshape(rows * columns // merge**2, -1)
    x = _linear(x, weights, "merger.mlp.0")
    x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return _linear(x, weights, "merger.mlp.2")


def reference_vlm_logits(folder: Path, ids: list[int], frames: Array) -> Array:
    """Logits (vocabulary,) of the token after `ids`, where each run of image tokens is a frame."""
    config, weights = _read(folder)
    text = config.get("text_config", config)
    epsilon = text["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    if len(frames):
        images = [reference_image(folder, frame) for frame in frames]
        x[np.array(ids) == config["image_token_id"]] = np.concatenate(images)
    edge = 2 * config["vision_config"]["patch_size"]
    grids = [(frame.shape[0] // edge, frame.shape[1] // edge) for frame in frames]
    places = reference_places(ids, config["image_token_id"], grids)
    heads, size = text["num_attention_heads"], text["hidden_size"] // text["num_attention_heads"]
    slow = text["rope_theta"] ** (-2 * np.arange(size // 2) / size)
    sections = text["rope_scaling"]["mrope_section"]
    axes = [axis for axis, pairs in enumerate(sections) for _ in range(pairs)]
    angles = places[axes].T * slow
    before = np.tri(len(ids), dtype=bool)
    for i in range(text["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        layer = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        y = norm(x, layer["input_layernorm.weight"], epsilon)
        query, key, value = (
            _linear(y, layer, f"self_attn.{name}_proj").reshape(len(x), -1, size) for name in "qkv"
        )
        shared = heads // key.shape[1]
        key, value = _turned(key, angles).repeat(shared, axis=1), value.repeat(shared, axis=1)
        y = _attend(_turned(query, angles), key, value, before)
        x = x + y @ layer["self_attn.o_proj.weight"].T
        x = x + _gated(norm(x, layer["post_attention_layernorm.weight"], epsilon), layer)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x[-1], weights["model.norm.weight"], epsilon) @ head.T


def reference_places(ids: list[int], image: int, grids: list[tuple[int, int]]) -> Array:
    """Time, row and column of every token, (3, tokens), one after another."""
    places: list[tuple[int, int, int]] = []
    left = list(grids)
    following = 0
    while len(places) < len(ids):
        if ids[len(places)] == image and left:
            rows, columns = left.pop(0)
            cells = [(row, column) for row in range(rows) for column in range(columns)]
            places += [(following, following + row, following + column) for row, column in cells]
            following += max(rows, columns)
        else:
            places.append((following,) * 3)
            following += 1
    return np.array(places).T


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    config = json.loads((folder / "config.json").read_text())
    return config, {k: v.astype(float) for k, v in load_file(folder / "model.safetensors").items()}


def _linear(x: Array, weights: dict[str, Array], name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def _gated(x: Array, weights: dict[str, Array]) -> Array:
    gate = _linear(x, weights, "mlp.gate_proj")
    wide = gate / (1 + np.exp(-gate)) * _linear(x, weights, "mlp.up_proj")
    return _linear(wide, weights, "mlp.down_proj")


def _turned(x: Array, angles: Array) -> Array:
    """(tokens, heads, size): values i and i + size / 2 are a point in the plane."""
    first, second = np.split(x, 2, axis=2)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=2)


def _attend(query: Array, key: Array, value: Array, seen: Array) -> Array:
    scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[2])
    scores = np.where(seen, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    return np.einsum("hqk,khd->qhd", shares, value).reshape(len(query), -1)
