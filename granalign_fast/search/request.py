"""A search request: one query about one video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.index import VideoIndex
from granalign_fast.types import Rewrites


@dataclass(frozen=True, slots=True)
class Request:
    """One query about one video.

    Raises:
        GranAlignError: a field is of the wrong type.
    """

    index: VideoIndex
    query: str | Rewrites
    """A plain text is rewritten first. `Rewrites` are taken as they are."""
    aware: Mapping[int, str] | None = None
    """Query-aware captions by clip number. A clip without one keeps its query-agnostic caption.
    None: the retriever's captioner writes them, if it has one."""

    def __post_init__(self) -> None:
        if not isinstance(self.index, VideoIndex):
            raise GranAlignError(
                f"index: got {short_repr(self.index)}, expected a VideoIndex; read one with "
                f"VideoIndex.load, or make one with the retriever's index method"
            )
        if not isinstance(self.query, str | Rewrites):
            raise GranAlignError(
                f"query: got {short_repr(self.query)}, expected a text or Rewrites"
            )
        if self.aware is None:
            return
        if not isinstance(self.aware, Mapping):
            raise GranAlignError(
                f"aware: got {short_repr(self.aware)}, expected captions by clip number, such as "
                f"{{3: 'a dog runs'}}"
            )
        for clip, caption in self.aware.items():
            if isinstance(clip, bool) or not isinstance(clip, int | np.integer):
                raise GranAlignError(f"aware: got clip {short_repr(clip)}, expected an integer")
            if not isinstance(caption, str):
                raise GranAlignError(
                    f"aware caption of clip {clip}: got {short_repr(caption)}, expected a text"
                )


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


def check_requests(requests: Sequence[Request]) -> None:
    """Raise unless this is a list of requests.

    Raises:
        GranAlignError: it is something else; the message names the first wrong item.
    """
    if isinstance(requests, str) or not isinstance(requests, Sequence):
        remedy = "; put the request into a list" if isinstance(requests, Request) else ""
        raise GranAlignError(
            f"requests: got a {type(requests).__name__}, expected a list of Request{remedy}"
        )
    for i, request in enumerate(requests):
        if not isinstance(request, Request):
            raise GranAlignError(
                f"requests[{i}]: got {short_repr(request)}, expected a Request; write "
                f"Request(index, query)"
            )
