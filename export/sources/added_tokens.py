"""Special and added tokens that only an encoder's settings name, in transformers' order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError

from .folder import read_object
from .tokenizer_checks import check_own_tokenizer

_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Settings that name a special token."""


def read_optional(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file; empty if there is no file."""
    return read_object(path) if path.is_file() else {}


def special_tokens(
    folder: Path, settings: Mapping[str, Any], defaults: Mapping[str, str]
) -> dict[str, Any]:
    """Return the special tokens by their setting's name: strings, objects, or lists of these."""
    keys = set(_NAMES)
    found: dict[str, Any] = dict(defaults)
    found |= {key: settings[key] for key in keys & settings.keys()}
    if "added_tokens_decoder" not in settings:
        known = read_optional(folder / "special_tokens_map.json")
        found |= {key: known[key] for key in keys & known.keys()}
        settings = dict(settings) | known
    # transformers 5 has a list of further tokens, 4.57 an object of named ones.
    extra = settings.get("extra_special_tokens") or []
    found |= extra if isinstance(extra, dict) else {}
    further = [*(settings.get("additional_special_tokens") or [])]
    found["additional_special_tokens"] = further + (extra if isinstance(extra, list) else [])
    return found


def contents(special: Mapping[str, Any]) -> dict[str, str]:
    """Return the named special tokens as strings."""
    return {
        key: token["content"] if isinstance(token, dict) else str(token)
        for key, token in special.items()
        if token and not isinstance(token, list)
    }


def add_tokens(
    tokenizer: Any,
    folder: Path,
    settings: Mapping[str, Any],
    special: Mapping[str, Any],
    words: Any,
) -> None:
    """Add the tokens that only the settings name, in transformers' order.

    Raises:
        GranAlignError: the settings cannot be used, or the tokenizer is that of another model.
    """
    path = folder / "tokenizer_config.json"
    try:
        wanted = _wanted_tokens(tokenizer, folder, settings, special)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GranAlignError(
            f"{path}: unusable added tokens ({type(error).__name__}: {error}); copy it again"
        ) from None
    named = contents(special_tokens(folder, settings, {})).values()
    check_own_tokenizer(tokenizer, folder, settings, named, words)
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for token in wanted:
        if token.content in known:
            continue
        # A token beyond the vocabulary has no embedding: its text stays plain.
        number = tokenizer.token_to_id(token.content)
        number = _next_id(tokenizer) if number is None else number
        if isinstance(words, int) and number >= words:
            continue
        tokenizer.add_tokens([token])
        known[token.content] = token


def _wanted_tokens(
    tokenizer: Any, folder: Path, settings: Mapping[str, Any], special: Mapping[str, Any]
) -> list[Any]:
    """Return the added tokens by their ids, then the special tokens."""
    from tokenizers import AddedToken

    named = list(contents(special).values())
    listed = [_token(token) for token in special["additional_special_tokens"]]
    names = {*named, *(token.content for token in listed)}
    by_id: dict[int, Any] = {}
    if "added_tokens_decoder" in settings:
        by_id = {int(i): _token(token) for i, token in settings["added_tokens_decoder"].items()}
    else:
        for content, number in read_optional(folder / "added_tokens.json").items():
            plain = content not in names
            by_id[int(number)] = AddedToken(content, normalized=plain, special=not plain)
    for token in by_id.values():
        token.special = token.special or token.content in names
    single = [_token(token) for token in special.values() if token and not isinstance(token, list)]
    return [by_id[number] for number in sorted(by_id)] + single + listed


def _token(token: Any) -> Any:
    """Return an added token from a string, or from an object as files hold it."""
    from tokenizers import AddedToken

    if isinstance(token, dict):
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return AddedToken(token["content"], **{key: token[key] for key in flags if key in token})
    return AddedToken(str(token), special=True)


def _next_id(tokenizer: Any) -> int:
    """Return the id that the next new token gets."""
    added = max(tokenizer.get_added_tokens_decoder(), default=-1) + 1
    return max(added, int(tokenizer.get_vocab_size(with_added_tokens=False)))
