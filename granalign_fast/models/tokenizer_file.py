"""Load a ``tokenizer.json`` that somebody else made.

The package `tokenizers` trusts the file: a wrong number ends the process, or takes all memory at
the first text. So the file is checked first. Padding and truncation are never the file's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError, foreign_errors, short_repr
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_PADDED_TOKENS, MOST_TOKENIZER, MOST_TOKENS
from granalign_fast.reading import read_file

_FILE = "tokenizer.json"
_STEPS = 64
"""Steps of a part of a tokenizer. Published ones have up to ten."""
_GROWTH = 64.0
"""How many times longer the steps may make a text together. Usual ones triple it, in bytes."""
_PATTERN = 4096
"""Characters of a pattern or of what replaces it. The longest published pattern has some 400."""
_ADDED_TOKENS = 64
"""Tokens that are put around a text; there are two."""


def load_tokenizer(folder: Path, remedy: str = "export the model again") -> Any:
    """Load the `tokenizers.Tokenizer` of a folder.

    Its padding and truncation are still the file's: `fit` or remove them before a text comes.

    Args:
        folder: holds ``tokenizer.json``.
        remedy: ends the error message about a damaged file.

    Raises:
        GranAlignError: the file is missing or damaged, or what it says would take too much.
        MissingExtraError: the package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("embedding sentences", "cpu") from None
    path = folder / _FILE
    content = read_file(path, MOST_TOKENIZER, inside=folder, remedy=remedy)
    try:
        _check(parse_json(content, unique_keys=True))
    except ValueError as error:
        raise GranAlignError(f"{path}: not a tokenizer ({error}); {remedy}") from None
    with foreign_errors(f"{path}: not a tokenizer", remedy):
        return Tokenizer.from_buffer(content)


def fit(tokenizer: Any, most_tokens: int) -> Any:
    """Cut texts to a length; where the tokenizer pads them, pad them to this length.

    Args:
        tokenizer: changed in place; the direction of both stays.
        most_tokens: of a text.

    Returns:
        The tokenizer.

    Raises:
        GranAlignError: texts would be padded to too many tokens.
    """
    padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
    tokenizer.no_padding()
    direction = str(truncation.get("direction", "right")).lower()
    tokenizer.enable_truncation(most_tokens, direction=direction)
    if padding:
        if most_tokens > MOST_PADDED_TOKENS:
            raise GranAlignError(
                f"tokenizer: got padding to {most_tokens:,} tokens, expected at most "
                f"{MOST_PADDED_TOKENS:,}; export the model again"
            )
        named = {name: padding[name] for name in ("direction", "pad_id", "pad_token")}
        tokenizer.enable_padding(**named, length=most_tokens)
    return tokenizer


def tokenizing(*passed: type[Exception]) -> AbstractContextManager[None]:
    """Return a context in which a tokenizer's errors and panics become one line.

    Args:
        passed: exceptions that stay as they are.
    """
    return foreign_errors(
        "tokenizer: cannot take a text", "copy or export the model again", passed=passed
    )


def _check(value: Any) -> None:
    """Raise ValueError for a tokenizer that would take too much memory, or end the process."""
    if not isinstance(value, dict):
        raise ValueError(f"got a {type(value).__name__}, expected a JSON object")
    _check_ids(value)
    growth = 1.0
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        steps = list(_steps(value.get(name)))
        if len(steps) > _STEPS:
            raise ValueError(f"got {len(steps)} steps in {name}, expected at most {_STEPS}")
        for step in steps:
            _check_step(step)
            growth *= _growth(step)
    if growth > _GROWTH:
        raise ValueError(
            f"got steps that make a text {growth:.0f} times longer, expected at most {_GROWTH:.0f}"
        )


def _check_ids(value: Mapping[str, Any]) -> None:
    """Check the numbers of tokens: the library's tables have a place for each up to the largest."""
    model, added = value.get("model"), value.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if isinstance(added, list):
        ids += [one.get("id") for one in added if isinstance(one, dict)]
    wrong = next((one for one in ids if type(one) is not int or not 0 <= one < MOST_TOKENS), None)
    if wrong is not None:
        raise ValueError(f"got the token id {short_repr(wrong)}, expected 0 to {MOST_TOKENS - 1:,}")


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part of a tokenizer; those of a sequence one by one."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            yield one
            pending += [inner for part in one.values() if isinstance(part, list) for inner in part]


def _check_step(step: Mapping[str, Any]) -> None:
    """Check the numbers and the texts of a step."""
    for name in ("pattern", "content", "prepend", "replacement"):
        text = _text(step.get(name))
        if len(text) > _PATTERN:
            raise ValueError(f"got {name} of {len(text):,} characters, expected {_PATTERN:,}")
    kind = step.get("type")
    if kind == "FixedLength" and not _is_count(step.get("length"), least=1):
        raise ValueError(f"got length {short_repr(step.get('length'))}, expected a length from 1")
    if kind == "Precompiled":
        _check_map(step.get("precompiled_charsmap"))
    if kind == "TemplateProcessing":
        _check_template(step)
    for name in ("start", "stop"):
        if name in step and not _is_count(step[name]):
            raise ValueError(f"got {name} {short_repr(step[name])}, expected a small number")


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and least <= value <= _PATTERN


def _check_map(value: Any) -> None:
    """Check SentencePiece's table of characters: its length stands in front of it."""
    try:
        table = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("got a table of characters that is not base64") from None
    size = int.from_bytes(table[:4], "little")
    if not 4 <= size <= len(table) - 4 or size % 4:
        raise ValueError(f"got a table of {len(table)} bytes, expected one with {size:,}")


def _check_template(step: Mapping[str, Any]) -> None:
    """Check the tokens that are put around a text: each must be described."""
    known = step.get("special_tokens")
    for name in ("single", "pair"):
        pieces = step.get(name)
        if not isinstance(pieces, list) or not isinstance(known, dict):
            raise ValueError(f"got {name} {short_repr(pieces)}, expected a list of pieces")
        named = [piece.get("SpecialToken") for piece in pieces if isinstance(piece, dict)]
        missing = [one for one in named if isinstance(one, dict) and one.get("id") not in known]
        if missing:
            raise ValueError(f"got the token {short_repr(missing[0])}, expected one described")
        if len(pieces) > _ADDED_TOKENS:
            raise ValueError(f"got {len(pieces):,} pieces, expected at most {_ADDED_TOKENS}")
    for token in known.values() if isinstance(known, dict) else ():
        ids = token.get("ids") if isinstance(token, dict) else None
        if isinstance(ids, list) and len(ids) > _ADDED_TOKENS:
            raise ValueError(f"got {len(ids):,} ids of a token, expected at most {_ADDED_TOKENS}")


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many times longer a step can make a text."""
    if step.get("type") != "Replace":
        return 1.0
    content, pattern = len(_text(step.get("content")).encode()), step.get("pattern")
    literal = _text(pattern.get("String")) if isinstance(pattern, dict) else ""
    # A regular expression can match nothing, before every character.
    return max(1.0, content / len(literal.encode())) if literal else 1.0 + content


def _text(value: Any) -> str:
    """Return a text, or that of a pattern; empty for anything else."""
    if isinstance(value, dict):
        value = next(iter(value.values()), "")
    return value if isinstance(value, str) else ""
