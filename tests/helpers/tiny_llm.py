"""Write folders of tiny Llamas and Qwens with random weights, as transformers saves them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from granalign_fast.export.llm import write_llm
from granalign_fast.export.sources.language_model import LlmSource
from helpers.tiny_bert import write_json

VOCABULARY, CONTEXT, BOS, EOS = 320, 512, 256, 257
PREFIX_ERROR = {"fp32": 1e-5, "fp16": 2e-2, "int4": 0.3}
"""Greatest difference of logits after a prefix from those after the whole prompt. The sums have
another order, and with int4 an activation may be rounded the other way."""

UNCHECKED = {"unchecked": 0.0}
"""In the place of measured errors: a manifest without any is that of an unfinished export."""

RAGGED = (17, 5, 1, 30, 17, 8)
"""Lengths of prompts in one batch: different, equal, and one token."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "[{{ message.role }}] {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

# Templates with the syntax that these two families use: conditions, loops with an index, filters,
# white-space control.
LLAMA_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "  {%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}\n"
    "{%- else %}{%- set system = '' %}{%- endif %}\n"
    "{{- bos_token + '[system]\n' + system }}\n"
    "{%- for m in messages %}\n"
    "  {%- if m.role == 'stop' %}{%- break %}{%- endif %}\n"
    "  {{- '[' + m.role + ']\n' + m.content | trim + eos_token }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '[assistant]\n' }}{%- endif %}\n"
)
QWEN_TEMPLATE = (
    "{%- if tools %}{{- tools | tojson }}{%- endif %}\n"
    "{% for message in messages %}\n"
    "    {% if loop.first and messages[0].role != 'system' %}\n"
    "<system>{{ {'a': '<é>'} | tojson }}\n"
    "    {% endif %}\n"
    "<{{ message.role }}>{{ message.content }}{{ '</>' if not loop.last }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt is defined and add_generation_prompt %}<assistant>{% endif %}"
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-gqa-untied": LLAMA | {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
    "llama-mha-tied": LLAMA | {"num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen2-gqa-tied": LLAMA | QWEN2 | {"tie_word_embeddings": True},
    "qwen3-gqa-untied": LLAMA | QWEN3 | {"head_dim": 8},
    "qwen3-wide-heads": LLAMA | QWEN3 | {"head_dim": 16, "num_hidden_layers": 2},
}


def write_tiny_llm(
    folder: Path, config: dict[str, Any] | None = None, *, seed: int = 0, spread: float = 0.2
) -> Path:
    """Write the folder and return it.

    Args:
        folder: must not exist.
        config: of ``config.json``; None for `LLAMA`.
        seed: of the weights.
        spread: standard deviation of the weights; wide enough for greedy tokens to differ from step
            to step.
    """
    config = LLAMA if config is None else config
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [EOS], "bos_token_id": BOS})
    weights = _weights(config, np.random.default_rng(seed), spread)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    eos = {"__type": "AddedToken", "content": "<eos>", "special": True}
    settings = {"bos_token": "<bos>", "eos_token": eos, "chat_template": CHAT_TEMPLATE}
    write_tokenizer(folder, ["<bos>", "<eos>"], settings)
    return folder


def _weights(
    config: dict[str, Any], random: np.random.Generator, spread: float
) -> dict[str, np.ndarray[Any, Any]]:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim

    def matrix(*shape: int) -> np.ndarray[Any, Any]:
        return (spread * random.standard_normal(shape)).astype(np.float32)

    def gain(size: int) -> np.ndarray[Any, Any]:
        return random.uniform(0.5, 1.5, size).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden),
        "model.norm.weight": gain(hidden),
    }
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": gain(hidden),
            f"{prefix}.post_attention_layernorm.weight": gain(hidden),
            f"{prefix}.self_attn.q_proj.weight": matrix(queries, hidden),
            f"{prefix}.self_attn.k_proj.weight": matrix(keys, hidden),
            f"{prefix}.self_attn.v_proj.weight": matrix(keys, hidden),
            f"{prefix}.self_attn.o_proj.weight": matrix(hidden, queries),
            f"{prefix}.mlp.gate_proj.weight": matrix(wide, hidden),
            f"{prefix}.mlp.up_proj.weight": matrix(wide, hidden),
            f"{prefix}.mlp.down_proj.weight": matrix(hidden, wide),
        }
        if config["model_type"] == "qwen2":
            for name, size in (("q", queries), ("k", keys), ("v", keys)):
                weights[f"{prefix}.self_attn.{name}_proj.bias"] = matrix(size)
        if config["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                weights[f"{prefix}.self_attn.{name}.weight"] = gain(head_dim)
    return weights


def write_tokenizer(folder: Path, special: list[str], settings: dict[str, Any]) -> None:
    """Write a tokenizer with one token for each byte, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    write_json(folder / "tokenizer_config.json", settings)


def write_unchecked(
    folder: Path, config: dict[str, Any] | None = None, *, precision: str = "fp32"
) -> Path:
    """Export a tiny model as `export_llm` does, without the comparison with torch.

    The source is written to ``folder/source`` if missing, the export to ``folder/out``.
    """
    source, out = folder / "source", folder / "out"
    if not source.exists():
        write_tiny_llm(source, config)
    out.mkdir()
    manifest = write_llm(LlmSource.read(source), out, precision=precision, name="source")
    replace(manifest, validation=UNCHECKED).write(out)
    return out


def extension_of(
    session: Any,
    rows: int,
    past: int,
    new: int,
    *,
    heads: int = 2,
    size: int = 8,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Return inputs for a decoder's graph: new tokens behind a cache, every third row padded.

    Args:
        session: of `graph_contract.GRAPH` or `STATIC_GRAPH`.
        rows: batch size.
        past: tokens in the cache.
        new: further tokens, with 4 of padding in every third row.
        heads: of keys and values.
        size: values of a head.
        dtype: of keys and values.
    """
    random, static = np.random.default_rng(3), "attention_mask" not in session.inputs
    padded = 4 * (np.arange(rows) % 3 == 0)
    arrays: dict[str, Any] = {
        "input_ids": random.integers(200, size=(rows, new)),
        "position_ids": np.tile(np.arange(past, past + new), (rows, 1)),
    }
    cache = random.standard_normal((len(session.inputs), rows, heads, past, size)).astype(dtype)
    for name, values in zip(session.inputs, cache, strict=True):
        if name.startswith("past"):
            arrays[name] = values
            if static:  # the same values in a cache with unused capacity
                arrays[name] = np.zeros((rows, past + new + 9, heads * size), dtype)
                arrays[name][:, :past] = values.swapaxes(1, 2).reshape(rows, past, -1)
    if static:
        last = np.arange(new) == (new - 1 - padded)[:, None]
        return arrays | {
            "write_indices": np.full(rows, past),
            "cached_tokens": np.full(rows, past + new),
            "last": last[:, None].astype(dtype),
        }
    past_mask = np.ones((rows, past), np.int64)
    mask = np.concatenate([past_mask, np.arange(new) >= padded[:, None]], axis=1)
    return arrays | {"attention_mask": mask}


def prompts_of(*lengths: int) -> list[list[int]]:
    """Return random token ids of prompts, the same in every call, without special tokens."""
    random = np.random.default_rng(1)
    return [random.integers(BOS, size=length).tolist() for length in lengths]


def one_thread(*needed: str) -> Iterator[Any]:
    """Yield torch, limited to one thread: with models so small, more threads slow each other down.

    For fixtures; skips the test if a module is missing.
    """
    for module in needed:
        pytest.importorskip(module)
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def cut(path: Path) -> None:
    """Cut off the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
