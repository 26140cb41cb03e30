"""Reference for the language model, without torch: float64 NumPy, one prompt, no KV cache.

This module shares no code with the code under test.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Array = Any


def reference_logits(folder: Path, ids: list[int]) -> Array:
    """Return the logits (vocabulary,) of the token after `ids`, for a folder of `write_tiny_llm`.

    Args:
        folder: the source model.
        ids: token ids.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = {k: v.astype(float) for k, v in load_file(folder / "model.safetensors").items()}
    epsilon = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        layer = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        x = x + attention(norm(x, layer["input_layernorm.weight"], epsilon), layer, config)
        y = norm(x, layer["post_attention_layernorm.weight"], epsilon)
        gate = y @ layer["mlp.gate_proj.weight"].T
        wide = gate / (1 + np.exp(-gate)) * (y @ layer["mlp.up_proj.weight"].T)
        x = x + wide @ layer["mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x[-1], weights["model.norm.weight"], epsilon) @ head.T


def attention(x: Array, layer: dict[str, Array], config: dict[str, Any]) -> Array:
    """Return causal attention with rotary positions, over (tokens, hidden)."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    frequencies = rotary_frequencies(config, size)

    def projected(name: str) -> Array:
        y = x @ layer[f"self_attn.{name}_proj.weight"].T
        y = y + layer.get(f"self_attn.{name}_proj.bias", 0)
        y = y.reshape(len(x), -1, size)
        gain = layer.get(f"self_attn.{name}_norm.weight")
        return y if gain is None else norm(y, gain, config["rms_norm_eps"])

    query, key, value = projected("q"), projected("k"), projected("v")
    out = np.zeros_like(query)
    for t in range(len(x)):
        for h in range(heads):
            kv = h // (heads // kv_heads)
            rotated_query = rotated(query[t, h], t, frequencies)
            scores = np.array(
                [rotated_query @ rotated(key[s, kv], s, frequencies) for s in range(t + 1)]
            ) / math.sqrt(size)
            shares = np.exp(scores - scores.max())
            out[t, h] = shares / shares.sum() @ value[: t + 1, kv]
    return out.reshape(len(x), -1) @ layer["self_attn.o_proj.weight"].T


def rotated(head: Array, position: int, frequencies: list[float]) -> Array:
    """Apply a rotary position: rotate the points (value i, value i + size / 2) by its angles."""
    half = len(frequencies)
    result = np.empty_like(head)
    for i, frequency in enumerate(frequencies):
        cosine, sine = math.cos(position * frequency), math.sin(position * frequency)
        result[i] = head[i] * cosine - head[i + half] * sine
        result[i + half] = head[i + half] * cosine + head[i] * sine
    return result


def rotary_frequencies(config: dict[str, Any], size: int) -> list[float]:
    """Return the frequency of each pair, scaled as Llama 3 does if the settings say so."""
    plain = [config["rope_theta"] ** (-2 * i / size) for i in range(size // 2)]
    scaling = config.get("rope_scaling")
    if not scaling:
        return plain
    assert scaling["rope_type"] == "llama3"
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    out = []
    for frequency in plain:
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        if turns < low:
            out.append(frequency / scaling["factor"])
        elif turns > high:
            out.append(frequency)
        else:
            share = (turns - low) / (high - low)
            out.append((1 - share) * frequency / scaling["factor"] + share * frequency)
    return out


def norm(x: Array, gain: Array, epsilon: float) -> Array:
    """Return the RMS norm over the last axis."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * gain
