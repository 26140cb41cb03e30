"""Tiny sentence encoders of the decoder type, as sentence-transformers itself saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from granalign_fast.export.sources.encoders.decoder_shape import gemma3_shape, qwen3_shape
from helpers.siglip2 import gemma_tokenizer
from helpers.tiny_bert import edit_json, write_json

QUERY, DOCUMENT = "Instruct: Find the caption\nQuery:", ""
GEMMA_QUERY, GEMMA_DOCUMENT = "task: search result | query: ", "title: none | text: "

_COMMON = {"vocab_size": 400, "rms_norm_eps": 1e-6}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rope_theta": 1_000_000.0,
    },
    # Every head of its own keys, an odd MLP, biases, and heads wider than the hidden size.
    "qwen3-biased": {
        "hidden_size": 40,
        "intermediate_size": 67,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 24,
        "max_position_embeddings": 96,
        "rope_theta": 10_000.0,
        "attention_bias": True,
    },
    # One head of keys for all, and a window in the last layers.
    "qwen3-window": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "gemma3": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "dense": [96, 48],
    },
    # Two heads of keys, other bases, and no layers after the pooling.
    "gemma3-plain": {
        "hidden_size": 32,
        "intermediate_size": 50,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "query_pre_attn_scalar": 8,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_theta": 5_000.0,
        "rope_local_base_freq": 20.0,
    },
    # One narrowing layer, with a bias and a hyperbolic tangent.
    "gemma3-tanh": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "dense": [20],
        "tanh": True,
    },
}
"""Settings of ``config.json``; `dense` and `tanh` are of the modules after the pooling."""


_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pieces of a text in Qwen2's tokenizer."""


def qwen_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer that puts an end behind each text, as Qwen3-Embedding's.

    Normal form and pieces are those of Qwen2's tokenizer, which transformers 5 builds itself.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, "th", "the", "Ġthe", "<|endoftext|>", "<|im_end|>"]
    tokenizer = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [("t", "h"), ("th", "e"), ("Ġ", "the")],
        )
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
            ),
        ]
    )
    return tokenizer


def write_tiny_decoder(folder: Path, name: str, *, seed: int = 0) -> Path:
    """Write one of `CONFIGURATIONS` by `SentenceTransformer.save_pretrained`; return the folder."""
    import sentence_transformers
    import torch
    import transformers
    from sentence_transformers.sentence_transformer import modules

    settings = dict(CONFIGURATIONS[name])
    dense, tanh = settings.pop("dense", []), settings.pop("tanh", False)
    raw = folder.with_name(f"{folder.name}-raw")
    gemma = name.startswith("gemma3")
    torch.manual_seed(seed)
    if gemma:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
        config = transformers.Gemma3TextConfig(
            **_COMMON | _gemma_rope(settings), use_bidirectional_attention=True
        )
        model: Any = transformers.Gemma3TextModel(config)
        tokenizer = gemma_tokenizer()
        tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
        )
        special = {f"{one}_token": f"<{one}>" for one in ("bos", "eos", "pad", "unk")}
    else:
        config = transformers.Qwen3Config(**_COMMON | _qwen_rope(settings))
        model = transformers.Qwen3Model(config)
        tokenizer = qwen_tokenizer()
        special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    with torch.no_grad():
        # Wider than the usual initialisation, so that every part matters.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.eval().save_pretrained(raw)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=config.max_position_embeddings, **special
    )
    fast.save_pretrained(raw)
    # The stated window, which version 4.57 saves as the half that it computed.
    if gemma:
        edit_json(raw / "config.json", sliding_window=settings["sliding_window"])
    steps: list[Any] = [modules.Transformer(str(raw))]
    width = config.hidden_size
    steps.append(modules.Pooling(width, pooling_mode="mean" if gemma else "lasttoken"))
    for size in dense:
        activation = torch.nn.Tanh() if tanh else torch.nn.Identity()
        steps.append(modules.Dense(width, size, bias=tanh, activation_function=activation))
        width = size
    steps.append(modules.Normalize())
    prompts = (
        {"query": GEMMA_QUERY, "document": GEMMA_DOCUMENT}
        if gemma
        else {"query": QUERY, "document": DOCUMENT}
    )
    whole = sentence_transformers.SentenceTransformer(modules=steps, prompts=prompts, device="cpu")
    whole.save_pretrained(str(folder))
    if gemma:
        edit_json(folder / "config.json", sliding_window=settings["sliding_window"])
        edit_json(
            folder / "tokenizer_config.json",
            tokenizer_class="GemmaTokenizer",
            add_bos_token=True,
            add_eos_token=True,
        )
    else:
        edit_json(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    return folder


def _qwen_rope(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in the layout of the installed transformers."""
    theta = settings.pop("rope_theta", 10_000.0)
    if _is_new():
        return settings | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    return settings | {"rope_theta": theta}


def _gemma_rope(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in the layout of the installed transformers."""
    settings = dict(settings)
    full = settings.pop("rope_theta", 1_000_000.0)
    local = settings.pop("rope_local_base_freq", 10_000.0)
    if _is_new():
        bases = {"full_attention": full, "sliding_attention": local}
        parameters = {k: {"rope_type": "default", "rope_theta": v} for k, v in bases.items()}
        return settings | {"rope_parameters": parameters}
    return settings | {"rope_theta": full, "rope_local_base_freq": local}


def _is_new() -> bool:
    import transformers

    return int(transformers.__version__.partition(".")[0]) >= 5


WIDE = CONFIGURATIONS["qwen3"] | {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64}
"""Large enough that the graphs themselves are a small part of an export."""


def write_bare_decoder(folder: Path, name: str, **changes: Any) -> Path:
    """Write a folder with random weights, without torch, and return it.

    Args:
        folder: must not exist. Its layout is that of transformers 4.57.
        name: one of `CONFIGURATIONS`, or ``"qwen3-wide"``.
        changes: settings that replace those of the configuration.
    """
    settings = dict(WIDE if name == "qwen3-wide" else CONFIGURATIONS[name]) | changes
    dense, tanh = settings.pop("dense", []), settings.pop("tanh", False)
    gemma = name.startswith("gemma3")
    if gemma:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
        settings |= {"model_type": "gemma3_text", "use_bidirectional_attention": True}
        tokenizer = gemma_tokenizer()
    else:
        settings |= {"model_type": "qwen3"}
        tokenizer = qwen_tokenizer()
    (folder / "1_Pooling").mkdir(parents=True)
    write_json(folder / "config.json", _COMMON | settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    mode = "mean_tokens" if gemma else "lasttoken"
    write_json(folder / "1_Pooling" / "config.json", {f"pooling_mode_{mode}": True})
    rng, width = np.random.default_rng(0), settings["hidden_size"]

    def tensor(*shape: int) -> Any:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.2
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    shape = (gemma3_shape if gemma else qwen3_shape)(_COMMON | settings, folder / "config.json")
    table = {
        "embed_tokens.weight": tensor(_COMMON["vocab_size"], width),
        "norm.weight": tensor(width),
    }
    shapes, layers = shape.tensors().items(), range(settings["num_hidden_layers"])
    table |= {f"layers.{i}.{key}": tensor(*size) for i in layers for key, size in shapes}
    save_file(table, folder / "model.safetensors", {"format": "pt"})
    steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
    for number, size in enumerate(dense, 2):
        path = f"{number}_Dense"
        (folder / path).mkdir()
        kind = "activation.Tanh" if tanh else "linear.Identity"
        write_json(
            folder / path / "config.json",
            {
                "in_features": width,
                "out_features": size,
                "bias": tanh,
                "activation_function": f"torch.nn.modules.{kind}",
            },
        )
        weights = {"linear.weight": tensor(size, width)} | (
            {"linear.bias": tensor(size)} if tanh else {}
        )
        save_file(weights, folder / path / "model.safetensors", {"format": "pt"})
        steps.append(("Dense", path))
        width = size
    steps.append(("Normalize", f"{len(steps)}_Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(steps)
        ],
    )
    prompts = {"query": GEMMA_QUERY, "document": GEMMA_DOCUMENT} if gemma else {"query": QUERY}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return folder
