"""The tensors and the settings of a Qwen2.5-VL or a Qwen3-VL of random weights: `random_models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .random_tokenizer import IDS

QWEN2_5 = "Qwen2_5_VLForConditionalGeneration"
QWEN3 = "Qwen3VLForConditionalGeneration"

_AROUND = "<|vision_start|>{}<|vision_end|>"
IMAGE, VIDEO = _AROUND.format("<|image_pad|>"), _AROUND.format("<|video_pad|>")
"""The texts that a chat template writes in the place of an image and of a video."""


def sections(*pairs: int) -> dict[str, Any]:
    """Return the decoder's setting of a Qwen2.5-VL for the pairs of time, row and column."""
    return {"rope_scaling": {"type": "mrope", "mrope_section": list(pairs)}}


def interleaved(*pairs: int) -> dict[str, Any]:
    """Return the decoder's setting of a Qwen3-VL for the pairs of time, row and column."""
    scaling = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(pairs)}
    return {"rope_scaling": scaling, "attention_bias": False}


def vision(
    hidden: int, wide: int, depth: int, heads: int, out: int, full: Sequence[int]
) -> dict[str, Any]:
    """Return the settings of a Qwen2.5-VL's tower; `full` are its layers without windows."""
    return {
        "depth": depth,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_heads": heads,
        "in_chans": 3,
        "out_hidden_size": out,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(full),
    }


def vision3(
    hidden: int, wide: int, depth: int, heads: int, out: int, deepstack: Sequence[int]
) -> dict[str, Any]:
    """Return the settings of a Qwen3-VL's tower; `deepstack` are the layers that mergers follow."""
    return {
        "model_type": "qwen3_vl",
        "depth": depth,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_heads": heads,
        "in_channels": 3,
        "out_hidden_size": out,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": list(deepstack),
    }


def cut(tower: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Return the settings of a tower with at most so many layers."""
    depth = min(tower["depth"], depth)
    settings = {**tower, "depth": depth}
    for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if name in tower:
            settings[name] = [layer for layer in tower[name] if layer < depth] or [depth - 1]
    return settings


def shapes(
    architecture: str, decoder: Mapping[str, tuple[int, ...]], tower: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its published name; `decoder` has those of a Qwen."""
    if architecture == QWEN2_5:
        return {**decoder, **vision_shapes(tower)}
    found = {name.replace("model.", "model.language_model.", 1): s for name, s in decoder.items()}
    return found | {f"model.{name}": size for name, size in _vision3_shapes(tower).items()}


def vision_shapes(tower: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a Qwen2.5-VL's tower."""
    hidden, wide = tower["hidden_size"], tower["intermediate_size"]
    joined, edge = hidden * tower["spatial_merge_size"] ** 2, tower["patch_size"]
    found: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (hidden, 3, tower["temporal_patch_size"], edge, edge),
        "visual.merger.ln_q.weight": (hidden,),
    }
    linear = {"merger.mlp.0": (joined, joined), "merger.mlp.2": (tower["out_hidden_size"], joined)}
    for layer in range(tower["depth"]):
        prefix = f"blocks.{layer}"
        found |= {f"visual.{prefix}.norm{i}.weight": (hidden,) for i in (1, 2)}
        linear |= {
            **_attention(prefix, hidden),
            f"{prefix}.mlp.gate_proj": (wide, hidden),
            f"{prefix}.mlp.up_proj": (wide, hidden),
            f"{prefix}.mlp.down_proj": (hidden, wide),
        }
    return found | _with_biases(linear)


def _vision3_shapes(tower: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, wide, out = (tower[f"{name}_size"] for name in ("hidden", "intermediate", "out_hidden"))
    joined, edge = hidden * tower["spatial_merge_size"] ** 2, tower["patch_size"]
    found: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (hidden, 3, tower["temporal_patch_size"], edge, edge),
        "visual.patch_embed.proj.bias": (hidden,),
        "visual.pos_embed.weight": (tower["num_position_embeddings"], hidden),
    }
    mergers = [f"deepstack_merger_list.{n}" for n in range(len(tower["deepstack_visual_indexes"]))]
    norms = {"merger.norm": hidden} | {f"{merger}.norm": joined for merger in mergers}
    linear: dict[str, tuple[int, int]] = {}
    for merger in ("merger", *mergers):
        linear |= {f"{merger}.linear_fc1": (joined, joined), f"{merger}.linear_fc2": (out, joined)}
    for layer in range(tower["depth"]):
        prefix = f"blocks.{layer}"
        norms |= {f"{prefix}.norm1": hidden, f"{prefix}.norm2": hidden}
        linear |= {
            **_attention(prefix, hidden),
            f"{prefix}.mlp.linear_fc1": (wide, hidden),
            f"{prefix}.mlp.linear_fc2": (hidden, wide),
        }
    for name, width in norms.items():
        found |= {f"visual.{name}.{part}": (width,) for part in ("weight", "bias")}
    return found | _with_biases(linear)


def _attention(prefix: str, hidden: int) -> dict[str, tuple[int, int]]:
    return {f"{prefix}.attn.qkv": (3 * hidden, hidden), f"{prefix}.attn.proj": (hidden, hidden)}


def _with_biases(linear: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in linear.items():
        found |= {f"visual.{name}.weight": (rows, columns), f"visual.{name}.bias": (rows,)}
    return found


def settings(
    architecture: str, text: Mapping[str, Any], tower: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the files of settings by name."""
    config = {
        "architectures": [architecture],
        "model_type": "qwen2_5_vl",
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
        "vision_config": dict(tower),
    }
    mean, spread = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    if architecture == QWEN3:
        config["model_type"] = "qwen3_vl"
        config["tie_word_embeddings"] = text["tie_word_embeddings"]
        config["text_config"] = {"model_type": "qwen3_vl_text", **text}
        mean = spread = [0.5] * 3
    else:
        config |= text
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": tower["patch_size"],
        "temporal_patch_size": tower["temporal_patch_size"],
        "merge_size": tower["spatial_merge_size"],
        "image_mean": mean,
        "image_std": spread,
    }
    return {"config.json": config, "preprocessor_config.json": images}
