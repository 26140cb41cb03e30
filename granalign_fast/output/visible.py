"""Text that somebody else wrote, made safe to show in a terminal, a log, a page or a subtitle.

Names of files, captions, ids and queries can hold escape sequences that a terminal obeys, line ends
that look like another message, and characters that turn the direction of the text around them.
"""

from __future__ import annotations

import re
import unicodedata

_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text around them."""

_SAFE = re.compile(r"[\x20-\x7e]*")


def visible(text: str) -> str:
    r"""Return a text in one line, with a code for what cannot be seen or would turn other text.

    >>> visible("a\x1b[2J\nb")
    'a\\u001b[2J b'
    """
    if _SAFE.fullmatch(text):  # nearly all texts
        return text
    return "".join(" " if c.isspace() else f"\\u{ord(c):04x}" if is_unsafe(c) else c for c in text)


def without_controls(text: str) -> str:
    r"""Return a text in one line without the characters that `visible` shows as codes.

    Neither has it spaces at its ends, nor two in a row.

    >>> without_controls(" a\x1b[2J\nb ")
    'a [2J b'
    """
    kept = (" " if c.isspace() or unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join("".join(c for c in kept if not is_unsafe(c)).split())


def is_unsafe(character: str) -> bool:
    """Return whether it is a control, a line end, half a surrogate, no character, or turns text."""
    code = ord(character)
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or character in _DIRECTION
        or code & 0xFFFE == 0xFFFE
        or 0xFDD0 <= code <= 0xFDEF
    )
