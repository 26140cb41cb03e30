"""Write a sentence-transformers folder with a tiny BERT of random weights."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

HIDDEN, WIDE, LAYERS, POSITIONS = 32, 64, 2, 24
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = [*SPECIAL, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), "."]


def write_tiny_bert(
    folder: Path, *, pooling: str = "mean", normalise: bool = True, seed: int = 0, **config: Any
) -> Path:
    """Write the folder and return it.

    Args:
        folder: must not exist.
        pooling: ``"mean"``, ``"cls"`` or, unsupported by exports, ``"max"``.
        normalise: whether the model scales embeddings to unit length.
        seed: of the weights.
        config: values of ``config.json`` that replace the defaults.
    """
    (folder / "1_Pooling").mkdir(parents=True)
    steps = ["Transformer", "Pooling"] + ["Normalize"] * normalise
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    kinds = [
        {"idx": i, "name": str(i), "path": paths[step], "type": f"sentence_transformers.{step}"}
        for i, step in enumerate(steps)
    ]
    write_json(folder / "modules.json", kinds)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_max_tokens": pooling == "max",
        },
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True})
    defaults = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    write_json(folder / "config.json", defaults | config)
    save_file(random_weights(seed), folder / "model.safetensors")
    tokenizer = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_weights(seed: int = 0, layers: int = LAYERS) -> dict[str, np.ndarray]:
    """Return random tensors under the names that transformers gives them."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, *shape: int, spread: float = 0.2, centre: float = 0.0) -> None:
        tensors[name] = rng.normal(centre, spread, shape).astype(np.float32)

    def norm(name: str) -> None:
        put(f"{name}.weight", HIDDEN, centre=1.0)
        put(f"{name}.bias", HIDDEN)

    def dense(name: str, out: int, inputs: int) -> None:
        put(f"{name}.weight", out, inputs)
        put(f"{name}.bias", out)

    put("embeddings.word_embeddings.weight", len(VOCABULARY), HIDDEN, spread=1.0)
    put("embeddings.position_embeddings.weight", POSITIONS, HIDDEN)
    put("embeddings.token_type_embeddings.weight", 2, HIDDEN)
    norm("embeddings.LayerNorm")
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        dense(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", WIDE, HIDDEN)
        dense(f"{layer}.output.dense", HIDDEN, WIDE)
        norm(f"{layer}.output.LayerNorm")
    return tensors


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Replace or add keys of a JSON object in a file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def config(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes these keys of a model folder's ``config.json``."""
    return lambda folder: edit_json(folder / "config.json", **changes)


def pickled_weights(folder: Path) -> None:
    """Rename a folder's weights to the file name of pickled weights."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def flip_byte(path: Path, offset: int = -1000) -> None:
    """Invert one byte of a file, so that its hash changes."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)
