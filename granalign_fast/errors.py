"""The one error that a user can cause, and the one that a missing install causes."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice


class GranAlignError(ValueError):
    """Bad input; the message is one line: what was got, what was expected, what to do."""


class MissingExtraError(GranAlignError, ImportError):
    """A feature needs packages of an optional extra that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra [{extra}], which is not installed: "
            f"run pip install 'granalign-fast[{extra}]'"
        )


def one_line(error: BaseException) -> str:
    """An error of another library, short enough to stand inside one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def listed(items: Collection[object], most: int = 5) -> str:
    """Join items for an error message: ``a, b, c, d, e and 3 more``.

    Args:
        items: what to name; each is shown by `str`, so quote texts with `repr` first.
        most: how many are shown before the rest is counted; at least one.
    """
    shown = ", ".join(str(item) for item in islice(items, most))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
