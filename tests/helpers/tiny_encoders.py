"""Tiny sentence encoders of every family that we write node by node, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from helpers.tiny_bert import HIDDEN, LAYERS, WIDE, random_weights, write_tiny_bert

TEXTS = ["a", "b c d.", "zebra " * 50, "UPPER", "", "d e 7 f 7 7 g", "7", "ab " * 6]
"""Texts of several lengths. A digit is an unknown token, whose id is that of RoBERTa's padding."""


def write_tiny_encoder(folder: Path, family: str, **arguments: Any) -> Path:
    """Write a folder with random weights and the tokenizer of `write_tiny_bert`.

    Args:
        folder: must not exist.
        family: the `model_type`.
        arguments: of `write_tiny_bert`.
    """
    seed = arguments.get("seed", 0)
    settings = _SETTINGS[family] | {"model_type": family} | arguments
    layers = settings.get("num_hidden_layers", LAYERS)
    weights = random_weights(seed, layers)
    write_tiny_bert(folder, **settings)
    rng = np.random.default_rng(seed)
    save_file(_RENAMED[family](weights, rng, layers), folder / "model.safetensors")
    return folder


def _roberta(weights: dict[str, Any], rng: np.random.Generator, layers: int) -> dict[str, Any]:
    types = "embeddings.token_type_embeddings.weight"
    return weights | {types: weights[types][:1]}


def _mpnet(weights: dict[str, Any], rng: np.random.Generator, layers: int) -> dict[str, Any]:
    names = {"query": "q", "key": "k", "value": "v"}
    renamed = {"encoder.relative_attention_bias.weight": _random(rng, 32, 4)}
    for name, value in weights.items():
        for usual, own in names.items():
            name = name.replace(f"attention.self.{usual}", f"attention.attn.{own}")
        name = name.replace("attention.output.dense", "attention.attn.o")
        if "token_type" not in name:
            renamed[name.replace("attention.output.LayerNorm", "attention.LayerNorm")] = value
    return renamed


def _modernbert(weights: dict[str, Any], rng: np.random.Generator, layers: int) -> dict[str, Any]:
    """Weights without any bias; the perceptron has an activation and a gate."""
    named = {
        "embeddings.tok_embeddings.weight": weights["embeddings.word_embeddings.weight"],
        "embeddings.norm.weight": weights["embeddings.LayerNorm.weight"],
        "final_norm.weight": 1 + _random(rng, HIDDEN),
    }
    for i in range(layers):
        layer = f"layers.{i}"
        named[f"{layer}.attn.Wqkv.weight"] = _random(rng, 3 * HIDDEN, HIDDEN)
        named[f"{layer}.attn.Wo.weight"] = _random(rng, HIDDEN, HIDDEN)
        named[f"{layer}.mlp.Wi.weight"] = _random(rng, 2 * WIDE, HIDDEN)
        named[f"{layer}.mlp.Wo.weight"] = _random(rng, HIDDEN, WIDE)
        norms = ("attn_norm", "mlp_norm") if i else ("mlp_norm",)
        named |= {f"{layer}.{norm}.weight": 1 + _random(rng, HIDDEN) for norm in norms}
    return named


def _random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 0.2, shape).astype(np.float32)


_SETTINGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {
        "num_hidden_layers": 3,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 900.0,
        "local_rope_theta": 30.0,
        "local_attention": 6,
    },
    "mpnet": {"relative_attention_num_buckets": 32},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1},
}
_RENAMED: dict[str, Any] = {
    "bert": lambda weights, rng, layers: weights,
    "modernbert": _modernbert,
    "mpnet": _mpnet,
    "xlm-roberta": _roberta,
}
FAMILIES = sorted(_SETTINGS)
