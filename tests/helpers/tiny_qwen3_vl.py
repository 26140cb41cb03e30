"""Write folders of tiny Qwen3-VLs with random weights, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from helpers.tiny_bert import write_json
from helpers.tiny_llm import _weights as decoder_weights
from helpers.tiny_llm import write_tokenizer
from helpers.tiny_vlm import (
    CHAT_TEMPLATE,
    EOS,
    IMAGE,
    PAD,
    SPECIAL,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY,
    write_unchecked_vlm,
)

IMAGE_SIZE = (96, 160)
"""Height and width of 3 x 5 tokens of 32 pixels."""

_VISION: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "depth": 4,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_heads": 4,
    "in_channels": 3,
    "out_hidden_size": 64,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 49,
    "deepstack_visual_indexes": [0, 2],
}
_TEXT: dict[str, Any] = {
    "model_type": "qwen3_vl_text",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100.0,  # low, so that every pair of a head rotates fast enough to matter
    "rope_scaling": {
        "rope_type": "default",
        "mrope_interleaved": True,
        "mrope_section": [4, 4, 4],
    },
    "bos_token_id": PAD,
    "eos_token_id": EOS,
}


def _config(text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    sections = text.pop("sections", None)
    text = _TEXT | text
    if sections:
        text["rope_scaling"] = text["rope_scaling"] | {"mrope_section": sections}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "tie_word_embeddings": tied,
        "text_config": text | {"tie_word_embeddings": tied},
        "vision_config": _VISION | vision,
    }


GQA_TIED = _config({}, {}, tied=True)
"""Grouped heads, whose size does not depend on the width; two of four layers have features."""
MHA_UNTIED = _config(
    {
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 16,
        "sections": [4, 2, 2],
    },
    {
        "depth": 3,
        "out_hidden_size": 96,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1, 2],
    },
    tied=False,
)
"""As many key-value heads as query heads, an untied output, and as many mergers as layers."""
WIDE_HEADS = _config(
    {
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "sections": [6, 5, 5],
    },
    {"depth": 2, "patch_size": 8, "spatial_merge_size": 4, "deepstack_visual_indexes": [1]},
    tied=False,
)
"""Heads wider than the model, one key-value head, and tokens of four by four patches."""

CONFIGS = {"gqa-tied": GQA_TIED, "mha-untied": MHA_UNTIED, "wide-heads": WIDE_HEADS}


def write_tiny_qwen3_vl(
    folder: Path, config: dict[str, Any] | None = None, *, seed: int = 0, spread: float = 0.2
) -> Path:
    """Write the folder and return it; arguments as of `write_tiny_vlm`."""
    config = GQA_TIED if config is None else config
    vision = config["vision_config"]
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [EOS, PAD], "pad_token_id": PAD})
    pixels = {
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.45, 0.55],
        "size": {"shortest_edge": 1024, "longest_edge": 1 << 24},
        "processor_class": "Qwen3VLProcessor",
    }
    kinds = {
        "preprocessor_config": {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config": {"video_processor_type": "Qwen3VLVideoProcessor"},
    }
    for name, kind in kinds.items():
        write_json(folder / f"{name}.json", pixels | kind)
    random = np.random.default_rng(seed)
    text = config["text_config"] | {"model_type": "qwen3"}  # Qwen3's norms of heads
    weights = decoder_weights(text, random, spread)
    weights = {
        name.replace("model.", "model.language_model.", 1): value for name, value in weights.items()
    }
    weights |= _vision_weights(vision, random, spread)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "chat_template": CHAT_TEMPLATE,
        "processor_class": "Qwen3VLProcessor",
    }
    write_tokenizer(folder, SPECIAL, settings)
    return folder


def _vision_weights(
    config: dict[str, Any], random: np.random.Generator, spread: float
) -> dict[str, np.ndarray[Any, Any]]:
    hidden, wide, out = (
        config[f"{name}_size"] for name in ("hidden", "intermediate", "out_hidden")
    )
    joined = hidden * config["spatial_merge_size"] ** 2
    weights: dict[str, np.ndarray[Any, Any]] = {}

    def put(name: str, *shape: int, scale: float = spread) -> None:
        values = scale * random.standard_normal(shape)
        weights[f"model.visual.{name}"] = values.astype(np.float32)

    def linear(name: str, rows: int, columns: int, scale: float = spread) -> None:
        put(f"{name}.weight", rows, columns, scale=scale)
        put(f"{name}.bias", rows, scale=scale)

    def norm(name: str, width: int) -> None:
        gains = random.uniform(0.5, 1.5, width).astype(np.float32)
        weights[f"model.visual.{name}.weight"] = gains
        put(f"{name}.bias", width)

    edge = config["patch_size"]
    kernel = (hidden, 3, config["temporal_patch_size"], edge, edge)
    put("patch_embed.proj.weight", *kernel, scale=spread / edge)  # a sum of many similar values
    put("patch_embed.proj.bias", hidden)
    put("pos_embed.weight", config["num_position_embeddings"], hidden, scale=1.0)
    for layer in range(config["depth"]):
        block = f"blocks.{layer}"
        norm(f"{block}.norm1", hidden)
        norm(f"{block}.norm2", hidden)
        linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        linear(f"{block}.attn.proj", hidden, hidden)
        linear(f"{block}.mlp.linear_fc1", wide, hidden)
        linear(f"{block}.mlp.linear_fc2", hidden, wide)
    mergers = [f"deepstack_merger_list.{n}" for n in range(len(config["deepstack_visual_indexes"]))]
    for merger in ("merger", *mergers):
        norm(f"{merger}.norm", hidden if merger == "merger" else joined)
        linear(f"{merger}.linear_fc1", joined, joined)
        # Image embeddings are no larger than those of text. Features are as large as the states
        # that they are added to.
        linear(
            f"{merger}.linear_fc2", out, joined, scale=spread / (10 if merger == "merger" else 2)
        )
    return weights


def write_unchecked_qwen3_vl(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    precision: str = "fp32",
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> Path:
    """Export a tiny model without the comparison with torch; see `write_unchecked_vlm`."""
    if not (folder / "source").exists():
        write_tiny_qwen3_vl(folder / "source", config)
    return write_unchecked_vlm(folder, precision=precision, image_size=image_size)
