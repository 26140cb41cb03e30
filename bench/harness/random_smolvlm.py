"""The tensors and the settings of a SmolVLM2 of random weights, see `random_models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .random_tokenizer import IDS

ARCHITECTURE = "SmolVLMForConditionalGeneration"
IMAGE = "<image>"
"""The text that a chat template writes in the place of an image."""


def vision(
    hidden: int, wide: int, layers: int, heads: int, *, side: int, patch: int, merge: int
) -> dict[str, int]:
    """Return the settings of a vision tower, and the ``scale_factor``."""
    return {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
        "scale_factor": merge,
    }


def settings(text: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the files of settings by name; `tower` has the ``scale_factor`` as well."""
    stack = {key: value for key, value in tower.items() if key != "scale_factor"}
    side, merge, half = tower["image_size"], tower["scale_factor"], [0.5, 0.5, 0.5]
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "smolvlm",
        "image_token_id": IDS[IMAGE],
        "scale_factor": merge,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": {"model_type": "llama", **text},
        "vision_config": {"model_type": "smolvlm_vision", **stack},
    }
    images = {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": 4 * side},
        "max_image_size": {"longest_edge": side},
        "image_mean": half,
        "image_std": half,
        "resample": 1,
    }
    return {
        "config.json": config,
        "preprocessor_config.json": images,
        "processor_config.json": {"image_seq_len": (side // tower["patch_size"] // merge) ** 2},
    }


def shapes(
    decoder: Mapping[str, tuple[int, ...]], text: Mapping[str, Any], tower: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its published name; `decoder` has those of a Llama."""
    hidden, wide, edge = (
        tower[name] for name in ("hidden_size", "intermediate_size", "patch_size")
    )
    prefix = "model.vision_model"
    patches, joined = (tower["image_size"] // edge) ** 2, hidden * tower["scale_factor"] ** 2
    found = {name.replace("model.", "model.text_model.", 1): size for name, size in decoder.items()}
    found |= {
        f"{prefix}.embeddings.patch_embedding.weight": (hidden, 3, edge, edge),
        f"{prefix}.embeddings.patch_embedding.bias": (hidden,),
        f"{prefix}.embeddings.position_embedding.weight": (patches, hidden),
        "model.connector.modality_projection.proj.weight": (text["hidden_size"], joined),
    }
    norms, linear = [f"{prefix}.post_layernorm"], {}
    for layer in range(tower["num_hidden_layers"]):
        block = f"{prefix}.encoder.layers.{layer}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear[f"{block}.self_attn.{part}"] = (hidden, hidden)
        linear |= {f"{block}.mlp.fc1": (wide, hidden), f"{block}.mlp.fc2": (hidden, wide)}
    found |= {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}
    for name, size in linear.items():
        found |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    return found
