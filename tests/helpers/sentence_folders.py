"""Sentence encoders as sentence-transformers itself saves them, and edits of their folders."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from granalign_fast.models.sources import INDEX
from helpers.tiny_bert import write_json

LENGTH = 20
POSITIONS = 40

_LETTERS = [*string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *string.punctuation]
_LETTERS += [*"éèüñçß東京写真"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS]
VOCABULARY += [f"##{letter}" for letter in _LETTERS]
VOCABULARY += ["the", "The", "cat", "dog", "zebra", "[unused1]", "<|im_end|>"]

TEXTS = [
    "",
    "a cat",
    "The CAT and the Zebra",
    "Café crème, naïve",
    "cafe\u0301",
    "東京の写真",
    "a [MASK] b [SEP] c <|im_end|> d [unused1]",
    "first " + "x y z " * 30 + "last",
    "emoji 🎉 and !?",
]


def write_sentence_transformer(
    folder: Path,
    *,
    pooling: str = "mean",
    normalise: bool = True,
    lower: bool = True,
    length: int = LENGTH,
    **arguments: Any,
) -> Path:
    """Write a tiny BERT with `SentenceTransformer.save_pretrained`, and return the folder.

    Args:
        folder: must not exist.
        pooling: as sentence-transformers names it.
        normalise: whether the model scales embeddings to unit length.
        lower: the tokenizer's `do_lower_case`.
        length: the model's `max_seq_length`.
        arguments: further arguments of `SentenceTransformer`.
    """
    import torch
    import transformers

    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir(parents=True)
    (raw / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast(
        vocab_file=str(raw / "vocab.txt"), do_lower_case=lower, model_max_length=length
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    return save_around(raw, folder, pooling, normalise=normalise, length=length, **arguments)


def save_around(
    raw: Path, folder: Path, pooling: str, *, normalise: bool, length: int, **arguments: Any
) -> Path:
    """Save a transformers folder as a sentence encoder, and return its folder.

    Arguments as of `write_sentence_transformer`; `raw` is the transformers folder.
    """
    import sentence_transformers
    from sentence_transformers import models

    body = models.Transformer(str(raw))
    width = json.loads((raw / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    steps = [body, models.Pooling(width, pooling)] + [models.Normalize()] * normalise
    whole = sentence_transformers.SentenceTransformer(modules=steps, device="cpu", **arguments)
    whole.max_seq_length = length
    whole.save_pretrained(str(folder), create_model_card=False)
    return folder


def embed_with_sentence_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    """Return the library's own embeddings of a folder, rows of unit length."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    # One text at a time: with padding on the left, the positions of BERT depend on the batch.
    rows = model.encode(texts, batch_size=1, show_progress_bar=False)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


Edit = Callable[[Path], None]


def edit(name: str, **changes: Any) -> Edit:
    """Return an edit of a JSON file of the folder; a key with the value `...` goes."""

    def apply(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        known |= changes
        write_json(path, {key: value for key, value in known.items() if value is not ...})

    return apply


def drop(*names: str) -> Edit:
    """Return an edit that removes files, where they exist."""

    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return apply


def edit_tokenizer(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Return an edit of ``tokenizer.json``."""

    def apply(folder: Path) -> None:
        path = folder / "tokenizer.json"
        known = json.loads(path.read_text(encoding="utf-8"))
        change(known)
        write_json(path, known)

    return apply


def together(*edits: Edit) -> Edit:
    """Return several edits as one."""

    def apply(folder: Path) -> None:
        for one in edits:
            one(folder)

    return apply


def shard(folder: Path) -> None:
    """Split the weights of a folder in two files, with their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    files = {name: file for file, part in parts.items() for name in part}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": files})
