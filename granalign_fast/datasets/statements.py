"""The content of one annotation file before files are joined, and the checks of its values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from granalign_fast.errors import GranAlignError, counted, short_repr
from granalign_fast.types import Rewrites

from .records import Highlights, Window

_LONGEST = 1e9
"""Seconds that no video reaches; a longer duration has another unit."""


@dataclass(slots=True)
class Statement:
    """The content of a file on one query. A field that the file lacks is None or empty."""

    location: str
    """File and line, or file, video and sentence, for error messages."""
    qid: int | str | None = None
    vid: str | None = None
    rewrites: Rewrites | None = None
    duration: float | None = None
    windows: tuple[Window, ...] = ()
    saliency: Highlights | None = None


@dataclass(slots=True)
class Statements:
    """The content of a file on all of its queries."""

    path: Path
    form: str
    """The form in words, for notes."""
    of_queries: list[Statement] = field(default_factory=list)
    lengths: dict[str, float] = field(default_factory=dict)
    """Durations in seconds by video, of a file that has no queries."""
    rewrites_key: str = ""
    """The key that the rewrites come from."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_duration(value: Any, location: str) -> float:
    """Return a duration in seconds.

    Raises:
        GranAlignError: it is no number, or not between 0 and a billion.
    """
    if not is_number(value) or not 0 < value < _LONGEST:
        raise GranAlignError(
            f"{location}: duration: got {short_repr(value)}, expected the video's length, a number "
            f"of seconds above 0; correct it"
        )
    return value


def check_windows(value: Any, location: str, key: str) -> tuple[Window, ...]:
    """Return windows as pairs of seconds.

    Raises:
        GranAlignError: the value is no list of pairs of finite numbers.
    """
    try:
        windows = tuple((start, end) for start, end in value)
        finite = all(isfinite(time) for window in windows for time in window)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        raise GranAlignError(
            f"{location}: {key}: got {short_repr(value)}, expected a list of [start, end] in "
            f"seconds; correct it"
        )
    return windows


def check_saliency(clips: Any, scores: Any, location: str) -> Highlights:
    """Return the saliency of the relevant clips.

    Raises:
        GranAlignError: the clips are no numbers, or there is no list of numbers for each of them.
    """
    try:
        highlights = Highlights(tuple(clips), tuple(tuple(row) for row in scores))
        numbers = [*highlights.clips, *(score for row in highlights.scores for score in row)]
        if len(highlights.clips) == len(highlights.scores) and all(map(is_number, numbers)):
            return highlights
    except TypeError:
        pass
    raise GranAlignError(
        f"{location}: saliency_scores: got {short_repr(scores)} for the clips {short_repr(clips)}, "
        f"expected a list of scores for each of relevant_clip_ids; download the file again"
    )


class KeyCounts:
    """Counts the keys of a file that are not used, and tells which of them look useful."""

    def __init__(self, known: frozenset[str], of: str) -> None:
        self._known, self._of = known, of
        self._counts: Counter[str] = Counter()
        self._looks: dict[str, str] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Count the unknown keys of a record."""
        for key in record.keys() - self._known:
            self._counts[key] += 1
            if look := _look(key, record[key]):
                self._looks.setdefault(key, look)

    def report(self, statements: Statements) -> None:
        """Add a warning for each key that looks like rewrites or windows, and a note for others."""
        for key, look in sorted(self._looks.items()):
            name = "rewrites" if look == "rewrites" else "relevant_windows"
            found = counted(self._counts[key], self._of)
            statements.warnings.append(
                f"{statements.path.name}: key {key!r}, in {found}, looks like {look} and is "
                f"not used; if it is, rename it to {name!r}"
            )
        if others := sorted(self._counts.keys() - self._looks.keys()):
            named = ", ".join(f"`{key}` ({self._counts[key]:,})" for key in others[:5])
            more = f" and {len(others) - 5} more keys" if len(others) > 5 else ""
            statements.notes.append(f"{statements.path.name}: not used: {named}{more}.")


_REWRITE_WORDS = ("rewrit", "rephras", "reword", "paraphras", "simplified", "detailed")
_WINDOW_WORDS = ("window", "timestamp", "segment", "moment", "span", "times")


def _look(key: str, value: Any) -> str:
    """Return "rewrites" or "windows" if an unknown key looks like one of them."""
    if not value:
        return ""
    name = key.lower()
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, str) and " " in item for item in items):
        by_value = "rewrites" if isinstance(value, list) else ""
    elif all(isinstance(item, list) and len(item) == 2 for item in items):
        by_value = "windows" if all(is_number(x) for item in items for x in item) else ""
    else:
        by_value = ""
    if by_value == "rewrites" or any(word in name for word in _REWRITE_WORDS):
        return "rewrites"
    if by_value == "windows" or any(word in name for word in _WINDOW_WORDS):
        return "windows"
    return ""


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a JSON value is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
