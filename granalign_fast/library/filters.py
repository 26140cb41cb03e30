"""Filters: which videos of a library are searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.index.naming import is_named
from granalign_fast.storage.address import path_text

from .records import CataloguedVideo
from .tags import Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The conditions that a video must meet to be searched; without any, all are.

    Example:
        >>> Filters(tags=("holiday",), after="2026-06-01", min_length=60).is_empty
        False

    Raises:
        GranAlignError: a value is of the wrong type, or a date cannot be read.
    """

    videos: Sequence[str] = ()
    """A video must be one of these: an id, the name or the end of the path of its file, or a
    pattern with ``*`` or ``?`` for an id or a path."""
    tags: Sequence[str] = ()
    """A video must have all of these."""
    after: str | None = None
    """The video was made at this time or later: a date or a time as in ISO 8601, in local time
    unless it names another."""
    before: str | None = None
    """The video was made before this time."""
    min_length: float = 0.0
    """Seconds that a video must have."""

    def __post_init__(self) -> None:
        for name in ("videos", "tags"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise GranAlignError(f"{name}: got {short_repr(texts)}, expected a list of texts")
        for name in ("after", "before"):
            if (text := getattr(self, name)) is not None:
                parse_date(name, text)
        length = self.min_length
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 0:
            raise GranAlignError(f"min_length: got {short_repr(length)}, expected seconds from 0")

    @property
    def is_empty(self) -> bool:
        """Whether every video passes."""
        return self == Filters()

    def passes(self, video: CataloguedVideo, tags: Tags) -> bool:
        """Return whether a video is to be searched. One without a date passes no date."""
        if self.after is not None and not (
            video.date is not None and video.date >= parse_date("after", self.after)
        ):
            return False
        if self.before is not None and not (
            video.date is not None and video.date < parse_date("before", self.before)
        ):
            return False
        return (
            video.seconds >= self.min_length
            and set(self.tags) <= set(tags.get(video.vid, ()))
            and (not self.videos or any(_matches(video, name) for name in self.videos))
        )


def parse_date(name: str, text: str) -> float:
    """Return the seconds since 1970 of a date or time in ISO 8601.

    Args:
        name: of the option, for the error.
        text: such as ``2026-06-01`` or ``2026-06-01T12:00+02:00``.

    Raises:
        GranAlignError: it is no such text.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        raise GranAlignError(
            f"{name}: got {short_repr(text)}, expected a date such as 2026-06-01 or a time such as "
            f"2026-06-01T12:00"
        ) from None


def _matches(video: CataloguedVideo, name: str) -> bool:
    if is_named(video.path, video.vid, name):
        return True
    if not set(name) & set("*?["):
        return False
    return fnmatchcase(video.vid, name) or (
        video.path is not None
        and (fnmatchcase(path_text(video.path), name) or fnmatchcase(video.path.name, name))
    )
