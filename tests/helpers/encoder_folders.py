"""Random sentence encoders of each family, saved by transformers and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.sentence_folders import VOCABULARY as WORD_PIECES
from helpers.sentence_folders import save_around
from helpers.tiny_bert import write_json

TEXTS = [
    "",
    "a",
    "The CAT and the Zebra",
    "Café crème, naïve",
    "東京の写真 🎉 👩‍👩‍👧‍👦",
    "a <pad> b <pad><pad> c [PAD] d",
    "<s> a </s> <mask> [MASK] [SEP] b",
    "the cat " * 9,
    "first " + "x y z, the dog. " * 60 + "last",
]
"""Empty and short texts, emoji, padding tokens spelled out, and texts beyond any model's length."""

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?éèïñ東京の写真"
_SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"hidden_size": 32, "intermediate_size": 48}
_SPREAD = {"initializer_range": 0.3}


def _unigram(folder: Path) -> int:
    """Write a SentencePiece tokenizer as XLM-R's; return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    pieces = ["▁", "▁the", "▁The", "▁cat", "▁dog", *_LETTERS, *(f"▁{c}" for c in _LETTERS)]
    words = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words += [(piece, -float(i % 7) - 1) for i, piece in enumerate(pieces)] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=3))
    # As in published folders; transformers 5 always has these steps.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    _save(folder, tokenizer, "XLMRobertaTokenizer", _ENDS | {"unk_token": "<unk>"})
    return len(words)


def _word_pieces(folder: Path) -> int:
    """Write a tokenizer as MPNet's; return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    words = ["<s>", "<pad>", "</s>", "<unk>", *WORD_PIECES[5:], "[UNK]", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = _ENDS | {"unk_token": "[UNK]"}
    _save(folder, tokenizer, "MPNetTokenizer", special, do_lower_case=True)
    return len(words)


def _bytes(folder: Path) -> int:
    """Write a tokenizer of bytes as ModernBERT's; return the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    words = [*letters, *(a + b for a, b in merges), *special]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(token, lstrip=token == "[MASK]", normalized=False) for token in special]
    tokenizer.add_special_tokens(added)
    ends = [(token, words.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    inputs = ["input_ids", "attention_mask"]
    _save(folder, tokenizer, "PreTrainedTokenizerFast", names, model_input_names=inputs)
    return len(words)


_ENDS = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
_ENDS |= {"pad_token": "<pad>", "mask_token": "<mask>"}


def _save(
    folder: Path, tokenizer: Any, kind: str, special: dict[str, str], **settings: Any
) -> None:
    """Write a tokenizer as published folders have it."""
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings |= special | {"tokenizer_class": kind, "model_max_length": 512}
    write_json(folder / "tokenizer_config.json", settings)


_FAMILIES: dict[str, tuple[str, Callable[[Path], int], dict[str, Any]]] = {
    "xlm-roberta": (
        "XLMRoberta",
        _unigram,
        {"type_vocab_size": 1, "max_position_embeddings": 66, "layer_norm_eps": 1e-5},
    ),
    "roberta": (
        "Roberta",
        _unigram,
        {"type_vocab_size": 1, "max_position_embeddings": 66, "layer_norm_eps": 1e-5},
    ),
    "mpnet": ("MPNet", _word_pieces, {"max_position_embeddings": 302, "layer_norm_eps": 1e-5}),
    "modernbert": (
        "ModernBert",
        _bytes,
        {
            "num_hidden_layers": 4,
            "max_position_embeddings": 300,
            "local_attention": 16,
            "initializer_cutoff_factor": 3.0,
            "initializer_range": 0.15,
        },
    ),
}
"""By `model_type`: the name of transformers' classes, what writes a tokenizer, and settings."""


_THETAS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def write_encoder(
    folder: Path,
    family: str,
    *,
    pooling: str = "mean",
    normalise: bool = True,
    length: int = 300,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a random model with `SentenceTransformer.save_pretrained`, and return the folder.

    Args:
        folder: must not exist.
        family: the `model_type`.
        pooling: as sentence-transformers names it.
        normalise: whether the model scales embeddings to unit length.
        length: the model's `max_seq_length`, or less where it has fewer positions.
        seed: of the weights.
        config: settings that replace the defaults.
    """
    import torch
    import transformers

    name, write_tokenizer, settings = _FAMILIES[family]
    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir(parents=True)
    words = write_tokenizer(raw)
    settings = _SIZES | _SPREAD | settings | {"vocab_size": words + 3} | config
    if family == "modernbert":
        pad = words - 2
        ids = {"pad_token_id": pad, "bos_token_id": words - 4, "eos_token_id": words - 3}
        settings = settings | ids | {"cls_token_id": words - 4, "sep_token_id": words - 3}
    if int(transformers.__version__.partition(".")[0]) < 5:
        # Version 4 has one setting for each base of rotary positions.
        for kind, key in _THETAS.items():
            if rope := (settings.get("rope_parameters") or {}).get(kind):
                settings[key] = rope["rope_theta"]
        settings.pop("rope_parameters", None)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**settings)
    ).eval()
    rng = np.random.default_rng(seed)
    # transformers begins norms and biases at 1 and 0, and padding at 0, which would hide errors.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.tensor(rng.normal(0, 0.1, parameter.shape), dtype=torch.float32)
    model.save_pretrained(raw)
    reserved = 0 if family == "modernbert" else 2
    length = min(length, settings["max_position_embeddings"] - reserved)
    return save_around(raw, folder, pooling, normalise=normalise, length=length)
