"""Write folders of tiny Qwen2.5-VLs with random weights, in the layouts of the hub and of
transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from granalign_fast.export.families import read_vlm
from granalign_fast.export.vlm import write_vlm
from helpers.tiny_bert import write_json
from helpers.tiny_llm import UNCHECKED, write_tokenizer
from helpers.tiny_llm import _weights as decoder_weights

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
VOCABULARY, CONTEXT = 320, 512
PAD, START, EOS, VISION_START, VISION_END, IMAGE, VIDEO = range(256, 256 + len(SPECIAL))
IMAGE_SIZE = (84, 140)
"""Height and width of 3 x 5 tokens, which are two windows of unequal size."""

# With the syntax of the family's own template: a default system message, and contents in parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "in_chans": 3,
    "out_hidden_size": 64,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3],
}
TEXT: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "max_window_layers": 3,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100.0,  # low, so that every pair of a head rotates fast enough to matter
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "sliding_window": 256,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "bos_token_id": PAD,
    "eos_token_id": EOS,
}
_WHOLE: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_NAMED = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}

PUBLISHED: dict[str, Any] = _WHOLE | _NAMED | TEXT | {"vision_config": VISION}
"""Layout of the hub: the decoder's settings at the top level. Grouped heads, tied embeddings."""

SAVED: dict[str, Any] = _WHOLE | {
    "tie_word_embeddings": False,
    "text_config": _NAMED
    | TEXT
    | {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "sliding_window": None,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 2, 2]},
        "tie_word_embeddings": False,
    },
    "vision_config": VISION | {"depth": 3, "out_hidden_size": 96, "fullatt_block_indexes": [2]},
}
"""Layout of transformers 4.57: the decoder's settings and the architecture in ``text_config``. As
many key-value heads as query heads, and an output matrix that is not tied to the embeddings."""

CONFIGS = {"published-gqa-tied": PUBLISHED, "saved-mha-untied": SAVED}

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_tiny_vlm(
    folder: Path, config: dict[str, Any] | None = None, *, seed: int = 0, spread: float = 0.2
) -> Path:
    """Write the folder and return it.

    Args:
        folder: must not exist.
        config: of ``config.json``; None for `PUBLISHED`.
        seed: of the weights.
        spread: standard deviation of the weights; wide enough for greedy tokens to differ from step
            to step.
    """
    config = PUBLISHED if config is None else config
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [EOS, PAD], "pad_token_id": PAD})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    random = np.random.default_rng(seed)
    text = config.get("text_config", config) | {"model_type": "qwen2"}  # Qwen2's biases
    weights = decoder_weights(text, random, spread)
    weights |= _vision_weights(config["vision_config"], random, spread)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "chat_template": CHAT_TEMPLATE}
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

    def put(name: str, *shape: int) -> None:
        weights[f"visual.{name}"] = (spread * random.standard_normal(shape)).astype(np.float32)

    def linear(name: str, rows: int, columns: int) -> None:
        put(f"{name}.weight", rows, columns)
        put(f"{name}.bias", rows)

    def gain(name: str) -> None:
        weights[f"visual.{name}.weight"] = random.uniform(0.5, 1.5, hidden).astype(np.float32)

    edge = config["patch_size"]
    put("patch_embed.proj.weight", hidden, 3, config["temporal_patch_size"], edge, edge)
    weights["visual.patch_embed.proj.weight"] /= edge  # each product sums 1176 similar values
    for layer in range(config["depth"]):
        block = f"blocks.{layer}"
        gain(f"{block}.norm1")
        gain(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        linear(f"{block}.attn.proj", hidden, hidden)
        linear(f"{block}.mlp.gate_proj", wide, hidden)
        linear(f"{block}.mlp.up_proj", wide, hidden)
        linear(f"{block}.mlp.down_proj", hidden, wide)
    gain("merger.ln_q")
    linear("merger.mlp.0", joined, joined)
    linear("merger.mlp.2", out, joined)
    for part in ("weight", "bias"):  # image embeddings no larger than those of text
        weights[f"visual.merger.mlp.2.{part}"] /= 10
    return weights


def write_unchecked_vlm(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    precision: str = "fp32",
    image_size: tuple[int, int] | None = IMAGE_SIZE,
) -> Path:
    """Export a tiny model as `export_vlm` does, without the comparison with torch.

    The source is written to ``folder/source`` if missing, the export to ``folder/out``.
    """
    source, out = folder / "source", folder / "out"
    if not source.exists():
        write_tiny_vlm(source, config)
    out.mkdir()
    model = read_vlm(source, image_size)
    manifest = write_vlm(model, out, precision=precision, name="source")
    replace(manifest, validation=UNCHECKED).write(out)
    return out


def frames_of(count: int, image_size: tuple[int, int] = IMAGE_SIZE) -> np.ndarray[Any, Any]:
    """Return uint8 frames (count, height, width, 3) of coarse blocks with fine noise.

    Every call returns the same frames.
    """
    random = np.random.default_rng(2)
    height, width = image_size
    blocks = random.integers(0, 192, (count, -(-height // 20), -(-width // 20), 3))
    coarse = blocks.repeat(20, axis=1).repeat(20, axis=2)[:, :height, :width]
    return (coarse + random.integers(0, 64, coarse.shape)).astype(np.uint8)
