"""Tokenizers from plain vocabularies: folders that were saved before ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json
from granalign_fast.parsing.limits import MOST_JSON_BYTES
from granalign_fast.reading import read_text

_WORD_PIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")


def build_tokenizer(
    folder: Path, kind: str, settings: Mapping[str, Any], special: Mapping[str, str]
) -> Any:
    """Return a `tokenizers.Tokenizer` of a folder without ``tokenizer.json``.

    It equals what transformers converts the folder's vocabulary to. Other vocabularies than BERT's
    and CLIP's need transformers itself.

    Args:
        folder: the folder.
        kind: transformers' name of its tokenizer class, without ``Fast``.
        settings: of ``tokenizer_config.json``.
        special: special tokens by name, such as ``cls_token``.

    Raises:
        GranAlignError: there is no vocabulary, or it is damaged.
    """
    words = kind in _WORD_PIECE and (folder / "vocab.txt").is_file()
    pairs = kind == "CLIPTokenizer" and (folder / "merges.txt").is_file()
    try:
        if words:
            return _word_piece(folder, settings, special)
        if pairs and (folder / "vocab.json").is_file():
            return _clip(folder, special)
    except (KeyError, TypeError, ValueError, OSError, AttributeError) as error:
        raise GranAlignError(
            f"{folder}: unusable vocabulary ({type(error).__name__}: {error}); copy it again"
        ) from None
    except Exception as error:  # tokenizers raises plain Exception
        raise GranAlignError(f"{folder}: unusable vocabulary ({error}); copy it again") from None
    if kind == "SiglipTokenizer" and (folder / "spiece.model").is_file():
        raise GranAlignError(
            f"{folder}: no tokenizer.json beside spiece.model, and transformers has no fast "
            f"tokenizer of the first SigLIP to write one; choose a copy with tokenizer.json, or "
            f"SigLIP 2"
        )
    converted = _convert(folder)
    if converted is None:
        raise GranAlignError(
            f"{folder}: no tokenizer.json; save the model again with its fast tokenizer"
        )
    return converted


def _word_piece(folder: Path, settings: Mapping[str, Any], special: Mapping[str, str]) -> Any:
    """Return BERT's tokenizer, from ``vocab.txt``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    text = read_text(folder / "vocab.txt", MOST_JSON_BYTES)
    vocabulary = {token: i for i, token in enumerate(text.removesuffix("\n").split("\n"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    first, last = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    return tokenizer


def _clip(folder: Path, special: Mapping[str, str]) -> Any:
    """Return CLIP's tokenizer, from ``vocab.json`` and ``merges.txt``."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import RobertaProcessing

    vocabulary = read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt", MOST_JSON_BYTES).strip().split("\n")[1:]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[tuple(line.split()) for line in lines],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=special["unk_token"],
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    first, last = special["bos_token"], special["eos_token"]
    tokenizer.post_processor = RobertaProcessing(
        (last, vocabulary[last]),  # `sep` and `cls`, which version 0.23 calls otherwise
        (first, vocabulary[first]),
        add_prefix_space=False,
        trim_offsets=False,
    )
    return tokenizer


def _convert(folder: Path) -> Any | None:
    """Return the tokenizer that transformers converts a folder's vocabulary to.

    None if transformers is not installed, or cannot.
    """
    try:
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        converted = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = Tokenizer.from_str(converted.backend_tokenizer.to_str())
    except Exception:  # a foreign folder can raise anything in transformers
        return None
    return None if not json.loads(tokenizer.to_str())["model"].get("vocab") else tokenizer
