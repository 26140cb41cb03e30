"""The body of a search request as queries and options, checked against the limits of a service."""

from __future__ import annotations

from granalign_fast.errors import GranAlignError
from granalign_fast.types import Rewrites

from .batcher import Options
from .engine import Engine
from .schemas import GivenRewrites, SearchRequest


def queries_of(body: SearchRequest, engine: Engine) -> list[str | Rewrites]:
    """Return the queries of a request.

    Raises:
        GranAlignError: there is none, there are too many, or one cannot be read.
    """
    if (body.query is None) == (body.queries is None):
        raise GranAlignError("query, queries: expected one of the two")
    given = [body.query] if body.query is not None else list(body.queries or ())
    most = engine.settings.limits.queries
    if not 1 <= len(given) <= most:
        raise GranAlignError(f"queries: got {len(given)}, expected 1 to {most}")
    if body.stream and len(given) > 1:
        raise GranAlignError(f"stream: got {len(given)} queries, expected one")
    queries: list[str | Rewrites] = []
    for query in given:
        if isinstance(query, GivenRewrites):
            queries.append(Rewrites(**query.model_dump()))
        elif query is not None:
            queries.append(Rewrites(query).query)  # an empty one is refused
    longest = max(len(query if isinstance(query, str) else query.query) for query in queries)
    if longest > engine.settings.limits.query_characters:
        raise GranAlignError(
            f"query: got {longest:,} characters, expected at most "
            f"{engine.settings.limits.query_characters:,}"
        )
    return queries


def options_of(body: SearchRequest, engine: Engine) -> Options:
    """Return the options of a request.

    Raises:
        GranAlignError: one is out of range, or the preset cannot be used.
    """
    limits = engine.settings.limits
    for name, got, most in (("top", body.top, limits.top), ("refine", body.refine, limits.refine)):
        if got > most:
            raise GranAlignError(f"{name}: got {got}, expected at most {most}")
    preset = engine.preset if body.preset is None else body.preset
    engine.library(preset)  # raises unless it can be used
    options = Options(
        preset=preset,
        top=body.top,
        refine=body.refine,
        budget=body.budget,
        videos=tuple(body.filters.videos),
        tags=tuple(body.filters.tags),
        after=body.filters.after,
        before=body.filters.before,
        min_length=body.filters.min_length,
    )
    _ = options.filters  # raises if a date cannot be read
    return options
