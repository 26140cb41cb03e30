"""Rewrite a folder of transformers 4.57's layout as transformers 5.24 saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from helpers.tiny_bert import write_json


def save_as_version_5(folder: Path, *, joined_processor: bool = True) -> Path:
    """Rewrite the settings in place and return the folder.

    Args:
        folder: a folder of a language model, a vision-language model, a CLIP or a SigLIP.
        joined_processor: whether a processor was saved, not its two parts: then the settings of
            images lie in ``processor_config.json``.
    """
    config = _read(folder / "config.json")
    if config["model_type"] in ("qwen2_5_vl", "qwen3_vl"):
        config = _vision_language(config)
    elif config["model_type"] == "smolvlm":
        text = {key: v for key, v in config["text_config"].items() if key != "tie_word_embeddings"}
        config = config | {"text_config": _rope(text)}
    elif "rope_theta" in config:
        config = _rope(config)
    write_json(
        folder / "config.json", config | {"dtype": "float32", "transformers_version": "5.24.0"}
    )
    tokenizer = _read(folder / "tokenizer_config.json")
    if template := tokenizer.pop("chat_template", None):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if tokenizer.get("tokenizer_class") == "PreTrainedTokenizerFast":
        tokenizer["tokenizer_class"] = "TokenizersBackend"
    if isinstance(named := tokenizer.pop("extra_special_tokens", None), dict):
        tokenizer |= {**named, "model_specific_special_tokens": named}
    if extra := tokenizer.pop("additional_special_tokens", None):
        tokenizer["extra_special_tokens"] = extra
    write_json(folder / "tokenizer_config.json", tokenizer | {"backend": "tokenizers"})
    generation = folder / "generation_config.json"
    if generation.is_file():
        write_json(generation, _read(generation) | {"_from_model_config": True})
    images = folder / "preprocessor_config.json"
    if images.is_file() and joined_processor:
        joined = folder / "processor_config.json"
        settings = {"image_processor": _read(images), "processor_class": "Processor"}
        write_json(joined, (_read(joined) if joined.is_file() else {}) | settings)
        images.unlink()
    return folder


def rename_weights(folder: Path, *prefixes: tuple[str, str]) -> Path:
    """Replace the first prefix that fits in every weight's name, and return the folder."""
    weights = {}
    for name, array in load_file(folder / "model.safetensors").items():
        for old, new in prefixes:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        weights[name] = array
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _vision_language(config: dict[str, Any]) -> dict[str, Any]:
    """Return settings with a decoder of its own, tied embeddings at the top alone."""
    family = config["model_type"]
    whole = {
        key: value
        for key, value in config.items()
        if key.endswith("token_id") and key[:3] not in ("bos", "eos", "pad")
    }
    vision = config["vision_config"] | {
        "model_type": f"{family}_vision",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
    }
    nested = config.get("text_config")
    architectures = config.get("architectures") or (nested or {})["architectures"]
    text = nested or {key: v for key, v in config.items() if key not in whole}
    text = {key: v for key, v in text.items() if key not in ("vision_config", "architectures")}
    text = text | {"model_type": f"{family}_text"}
    tied = text.pop("tie_word_embeddings")
    return whole | {
        "architectures": architectures,
        "model_type": family,
        "text_config": _rope(text),
        "tie_word_embeddings": tied,
        "vision_config": vision,
    }


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the rotary positions in one object."""
    config = dict(config)
    scaling = config.pop("rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = config.pop("rope_theta")
    kind = {"mrope": "default"}.get(kind, kind)
    return config | {"rope_parameters": scaling | {"rope_theta": theta, "rope_type": kind}}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
