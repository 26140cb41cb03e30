"""The rewrites of a batch of requests, each plain query once."""

from __future__ import annotations

from collections.abc import Sequence

from granalign_fast.protocols import Rewriter
from granalign_fast.types import Rewrites

from .request import Request


def plain_queries(requests: Sequence[Request]) -> list[str]:
    """Return the queries that come as plain text, each once."""
    return list(dict.fromkeys(r.query for r in requests if isinstance(r.query, str)))


def rewrite_requests(requests: Sequence[Request], rewriter: Rewriter) -> list[Rewrites]:
    """Return the rewrites of each request: the caller's, or those of the rewriter.

    The rewriter is called once, with each plain query once, and not at all if there is none.
    """
    plain = plain_queries(requests)
    rewritten = dict(zip(plain, rewriter.rewrite(plain), strict=True)) if plain else {}
    return [
        request.query if isinstance(request.query, Rewrites) else rewritten[request.query]
        for request in requests
    ]
