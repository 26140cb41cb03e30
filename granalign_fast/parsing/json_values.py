"""Parse JSON within limits: its memory is bounded before it is parsed, and its depth after."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from .limits import MOST_DEPTH, MOST_DIGITS, memory_for

_OBJECT, _LIST, _NEXT = 232, 88, 64
"""Bytes of memory of an object with its table of keys, of a list, and of the value after a comma,
as CPython stores them: a float and its place, or the head of a string."""

_DIGITS = bytes(0x30 if 0x30 <= code <= 0x39 else 0x20 for code in range(256))
"""A table for `bytes.translate`: each digit becomes a zero, and all others a blank."""
_TOO_MANY_DIGITS = b"0" * (MOST_DIGITS + 1)


def parse_json(content: bytes, *, memory: float | None = None, unique_keys: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        content: the text in UTF-8, perhaps with a byte order mark.
        memory: bytes that the value may take; by default `memory_for` a file of this content.
            Infinity: the caller has asked `memory_of` already.
        unique_keys: whether an object with a key that repeats is refused. Another parser of the
            same text could take another one of the values.

    Raises:
        ValueError: the text is not JSON, or a limit is passed. The message is one line.
    """
    if memory is None:
        memory = memory_for(len(content))
    if memory < math.inf and (needed := memory_of(content)) > memory:
        raise ValueError(
            f"got values of some {needed // 1_000_000:,} MB in memory, expected at most "
            f"{memory // 1_000_000:,.0f} MB in {len(content):,} bytes"
        )
    too_deep = ValueError(f"got a value nested more than {MOST_DEPTH} deep")
    # Python computes with integers of any size, and fails only where it needs a float.
    parse_int = _integer if _TOO_MANY_DIGITS in content.translate(_DIGITS) else None
    try:
        text = content.decode("utf-8-sig")
        pairs = _unique if unique_keys else None
        value = json.loads(text, parse_int=parse_int, object_pairs_hook=pairs)
    except RecursionError:
        raise too_deep from None
    if content.count(b"[") + content.count(b"{") > MOST_DEPTH and not _is_shallow(value):
        raise too_deep
    return value


def memory_of(content: bytes) -> int:
    """Return about how many bytes the value of a JSON text takes, never much too few.

    Characters inside of strings count as if they were outside. A text with one character outside of
    the Basic Multilingual Plane takes four bytes for each.
    """
    width = 1 if content.isascii() else 4
    values = _OBJECT * content.count(b"{") + _LIST * content.count(b"[")
    return width * len(content) + values + _NEXT * content.count(b",")


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"got an integer of {len(digits)} digits, expected at most {MOST_DIGITS}")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("got an object with a key that repeats")
    return value


def _is_shallow(value: Any) -> bool:
    """Whether nothing lies deeper than `MOST_DEPTH`; level by level, without recursion."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner for outer in level for inner in _inner(outer) if isinstance(inner, (list, dict))
        ]
        if not level:
            return True
    return False


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
