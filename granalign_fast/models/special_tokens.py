"""The special and added tokens of a language model's folder, read as transformers reads them.

``tokenizer.json`` alone is only part of a tokenizer. ``tokenizer_config.json`` and, in older
folders, ``special_tokens_map.json`` and ``added_tokens.json`` add tokens to it, and name the ones
that a chat template writes as `bos_token` and the like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json
from granalign_fast.parsing.limits import MOST_TOKEN_CHARACTERS

from .tokenizer_file import load_tokenizer, tokenizing

_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_END_OF_TEXT = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_DEFAULTS: dict[str, dict[str, str]] = {
    "BloomTokenizer": _LLAMA | {"pad_token": "<pad>"},
    "CodeGenTokenizer": _END_OF_TEXT,
    "CohereTokenizer": {
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "unk_token": "<UNK>",
    },
    "GPT2Tokenizer": _END_OF_TEXT,
    "GPTNeoXTokenizer": _END_OF_TEXT,
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "LlamaTokenizer": _LLAMA,
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
"""Special tokens of transformers' tokenizer classes, where a folder names no others."""

_CLASSES = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "phi3", "ernie4_5"), "LlamaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_5_vl", "qwen2_vl", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt", "olmo", "olmo2", "stablelm"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("exaone4", "gpt2", "granite", "olmo3", "opt", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    "bloom": "BloomTokenizer",
    "phi": "CodeGenTokenizer",
}
"""transformers' tokenizer class of each ``model_type``, where a folder names none."""


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that a folder's settings add to its ``tokenizer.json``.

    Attributes:
        settings: of ``tokenizer_config.json``; empty without one.
        variables: special tokens by the names that chat templates use: a string, or a list of them.
        added: objects of added tokens by their id, from the settings.
    """

    settings: Mapping[str, Any]
    variables: Mapping[str, Any]
    added: Mapping[int, Any]

    @classmethod
    def read(cls, folder: Path) -> SpecialTokens:
        """Read the settings of a folder.

        Raises:
            GranAlignError: a file is damaged, or a token in it is none.
        """
        settings = _object(folder / "tokenizer_config.json")
        try:
            return cls._parse(folder, settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, GranAlignError):
                raise
            raise GranAlignError(
                f"{folder / 'tokenizer_config.json'}: unusable special tokens "
                f"({type(error).__name__}: {error}); copy the tokenizer again"
            ) from None

    @classmethod
    def _parse(cls, folder: Path, settings: Mapping[str, Any]) -> SpecialTokens:
        # The named tokens: of the class, then of the settings, where null removes one.
        found: dict[str, Any] = dict(_DEFAULTS.get(_class_name(folder, settings), {}))
        keys = (*_NAMES, "additional_special_tokens")
        found |= {key: settings[key] for key in keys if key in settings}
        legacy = "added_tokens_decoder" not in settings
        if legacy:
            known = _object(folder / "special_tokens_map.json")
            found |= {key: known[key] for key in keys if key in known}
        # transformers 4.57 names further tokens in an object, version 5 in a list.
        extra = settings.get("extra_special_tokens") or {}
        if isinstance(extra, dict):
            found |= extra
        else:
            found["additional_special_tokens"] = [
                *(found.get("additional_special_tokens") or []),
                *extra,
            ]
        variables = {key: _contents(value) for key, value in found.items() if value}
        # The added tokens by their ids.
        if legacy:
            named = set(_flat(variables))
            added = {
                int(number): {"content": text, "special": text in named}
                for text, number in _object(folder / "added_tokens.json").items()
            }
            for token in added.values():
                token["normalized"] = not token["special"]
        else:
            added = {
                int(number): token for number, token in settings["added_tokens_decoder"].items()
            }
        return cls(settings, variables, added)

    def names(self) -> list[str]:
        """Return every special token, each once."""
        return list(dict.fromkeys(_flat(self.variables)))


def load_chat_tokenizer(folder: Path, tokens: SpecialTokens) -> Any:
    """Load a folder's `tokenizers.Tokenizer` and apply its settings, as transformers does.

    Args:
        folder: holds ``tokenizer.json``.
        tokens: of the same folder.

    Raises:
        GranAlignError: the tokenizer is missing or damaged, or a token in the settings is none.
    """
    tokenizer = load_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        with tokenizing(KeyError, TypeError, ValueError):
            _add_tokens(tokenizer, tokens)
    except (KeyError, TypeError, ValueError) as error:
        raise GranAlignError(
            f"{folder / 'tokenizer_config.json'}: unusable added tokens "
            f"({type(error).__name__}: {error}); copy the tokenizer again"
        ) from None
    _set_prefix_space(tokenizer, tokens.settings)
    return tokenizer


def _add_tokens(tokenizer: Any, tokens: SpecialTokens) -> None:
    """Add the tokens that only the settings hold, in transformers' order: by id, then by name."""
    from tokenizers import AddedToken

    # Settings without `added_tokens_decoder` do not change the tokens of tokenizer.json.
    known = tokenizer.get_added_tokens_decoder()
    by_id = {number: _added_token(token) for number, token in tokens.added.items()}
    if "added_tokens_decoder" not in tokens.settings:
        by_id |= known
    flags = {repr(token) for token in known.values()}
    wanted = [by_id[number] for number in sorted(by_id) if repr(by_id[number]) not in flags]
    names = tokens.names()
    present = {token.content for token in (*known.values(), *wanted)}
    wanted += [
        AddedToken(name, special=True, normalized=False) for name in names if name not in present
    ]
    for token in wanted:
        if len(token.content) > MOST_TOKEN_CHARACTERS:
            raise ValueError(
                f"got a token of {len(token.content):,} characters, expected at most "
                f"{MOST_TOKEN_CHARACTERS:,}"
            )
        token.special = token.special or token.content in names
    if wanted:
        tokenizer.add_tokens(wanted)


def _added_token(token: Any) -> Any:
    """Return an added token from an object, as files hold it."""
    from tokenizers import AddedToken

    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(token["content"], **{key: token[key] for key in flags if key in token})


def _set_prefix_space(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Set whether a byte-level tokenizer puts a space before the first word."""
    from tokenizers import pre_tokenizers

    wanted = bool(settings.get("add_prefix_space", False))
    if tokenizer.pre_tokenizer is None:
        return
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    # transformers changes a lone step only, not one in a sequence.
    if bool(state.get("add_prefix_space", wanted)) != wanted:
        kind = getattr(pre_tokenizers, state.pop("type"))
        tokenizer.pre_tokenizer = kind(**(state | {"add_prefix_space": wanted}))


def _class_name(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return transformers' name of the tokenizer class, without ``Fast``."""
    config = _object(folder / "config.json")
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    return str(named or _CLASSES.get(str(config.get("model_type")), "")).removesuffix("Fast")


def _contents(value: Any) -> Any:
    """Return a token as a string, or a list of tokens as strings."""
    if isinstance(value, list):
        return [_contents(token) for token in value]
    return value["content"] if isinstance(value, dict) else str(value)


def _flat(variables: Mapping[str, Any]) -> list[str]:
    """Return all strings of variables that are strings or lists of them."""
    return [
        text
        for value in variables.values()
        for text in (value if isinstance(value, list) else [value])
    ]


def _object(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file; empty if there is no file."""
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise GranAlignError(f"{path}: got a {type(value).__name__}, expected a JSON object")
    return value
