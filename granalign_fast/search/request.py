"""A search request: one query about one video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from granalign_fast.index import VideoIndex
from granalign_fast.types import Rewrites


@dataclass(frozen=True, slots=True)
class Request:
    """One query about one video."""

    index: VideoIndex
    query: str | Rewrites
    """A plain text is rewritten first. `Rewrites` are taken as they are."""
    aware: Mapping[int, str] | None = None
    """Query-aware captions by clip number. A clip without one keeps its query-agnostic caption.
    None: the retriever's captioner writes them, if it has one."""


def bare_rewrites(request: Request) -> Rewrites:
    """Return the request's rewrites; a plain query becomes `Rewrites` without any.

    Raises:
        GranAlignError: the query is empty.
    """
    return request.query if isinstance(request.query, Rewrites) else Rewrites(request.query)


def query_text(request: Request) -> str:
    """Return the text of the query.

    Raises:
        GranAlignError: the query is empty.
    """
    return bare_rewrites(request).query
