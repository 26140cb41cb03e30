"""Read queries that their videos do not show."""

from __future__ import annotations

from granalign_fast.datasets import AnnotatedQuery, PathLike
from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.jsonl import iter_jsonl
from granalign_fast.types import Rewrites


def read_absent(path: PathLike) -> tuple[AnnotatedQuery, ...]:
    """Read queries that their videos do not show.

    Args:
        path: JSON Lines of `query`, `vid` and rewrites.

    Returns:
        The queries. Their qid is file and line, because such queries have none.

    Raises:
        GranAlignError: the file cannot be read, or a line is no such query.
    """
    queries = []
    for location, record in iter_jsonl(path, required=("query", "vid")):
        if not isinstance(record["vid"], str):
            raise GranAlignError(
                f"{location}: vid: got {short_repr(record['vid'])}, expected the name of a video"
            )
        rewrites = Rewrites.from_record(record, location)
        queries.append(AnnotatedQuery(location, record["vid"], rewrites))
    return tuple(queries)
