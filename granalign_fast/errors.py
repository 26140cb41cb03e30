"""The errors that a user can cause, and the wording that their messages share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice


class GranAlignError(ValueError):
    """Bad input. The message is one line: what was got, what was expected, what to do."""


class PromptTooLongError(GranAlignError):
    """A prompt does not fit a language model's context; nothing has been computed.

    Attributes:
        prompt: its number in the batch.
        size: what was got and what was expected, in tokens, for a message that names the text that
            a user can shorten.
    """

    def __init__(self, name: str, prompt: int, size: str) -> None:
        super().__init__(f"{name}: {size}; shorten the prompt")
        self.prompt = prompt
        self.size = size


class MissingExtraError(GranAlignError, ImportError):
    """A feature needs packages of an optional extra that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra [{extra}], which is not installed: "
            f"run pip install 'granalign-fast[{extra}]'"
        )


def one_line(error: BaseException) -> str:
    """Return another library's error in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def missing_key(where: str, key: str, record: Mapping[str, object]) -> GranAlignError:
    """Return the error of a JSON record that lacks a key; it lists the keys that are there."""
    keys = listed([short_repr(name) for name in sorted(record)]) or "none"
    return GranAlignError(f"{where}: key {key!r} is missing; got the keys {keys}")


def short_repr(value: object, most: int = 100) -> str:
    """Return the `repr` of a wrong value for an error message: one line, its middle left out.

    Args:
        value: what was got.
        most: characters of the result; longer ones are cut in the middle.
    """
    text = repr(value)
    if "\n" in text:  # that of an array, for one
        text = " ".join(text.split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def listed(items: Collection[object], most: int = 5) -> str:
    """Join items for an error message: ``a, b, c, d, e and 3 more``.

    Args:
        items: what to name; each is shown by `str`, so quote texts with `repr` first.
        most: how many are shown before the rest is counted; at least one.
    """
    shown = ", ".join(str(item) for item in islice(items, most))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
