"""QVHighlights from JSON Lines: queries, and queries that no moment answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record, iter_jsonl
from granalign_fast.types import Rewrites

from .captions import read_captions
from .records import PathLike

__all__ = ["PathLike", "Query", "read_absent", "read_captions", "read_queries"]


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a queries file."""

    qid: Any
    vid: str
    rewrites: Rewrites


def read_queries(
    path: PathLike, captions: PathLike, videos: Collection[str], truth: list[Record]
) -> list[Query]:
    """Read queries in the order of the file.

    Args:
        path: JSON Lines of `qid`, `query`, `vid` and rewrites.
        captions: where the captions come from, for error messages.
        videos: the vids that have captions.
        truth: the records of the ground truth; every query has one, and every record a query.

    Raises:
        GranAlignError: the file cannot be read, or a line is no such query. The message names file
            and line.
    """
    known = {record["qid"]: record for record in truth}
    queries: dict[Any, Query] = {}
    for location, record in iter_jsonl(path, required=("qid", "query", "vid")):
        qid, vid = record["qid"], record["vid"]
        if not isinstance(qid, int | str) or qid not in known:
            raise GranAlignError(
                f"{location}: qid {qid!r} is not in the ground truth; check that both are of one "
                "split"
            )
        if qid in queries:
            raise GranAlignError(f"{location}: qid {qid!r} repeats; expected one line a query")
        if not isinstance(vid, str) or vid not in videos:
            raise GranAlignError(
                f"{location}: video {vid!r} of qid {qid!r} has no captions in {captions}; caption "
                "it or leave the query out"
            )
        queries[qid] = Query(qid, vid, Rewrites.from_record(record, location))
    if missing := [qid for qid in known if qid not in queries]:
        raise GranAlignError(
            f"{path}: {len(missing)} of {len(known)} qids of the ground truth have no query, the "
            f"first is {missing[0]!r}; check that both are of one split"
        )
    return list(queries.values())


def read_absent(path: PathLike, captions: PathLike, videos: Collection[str]) -> list[Query]:
    """Read queries that their videos do not show.

    Args:
        path: JSON Lines of `query`, `vid` and rewrites.
        captions: where the captions come from, for error messages.
        videos: the vids that have captions.

    Raises:
        GranAlignError: the file cannot be read, or a line is no such query. The message names file
            and line.
    """
    queries = []
    for location, record in iter_jsonl(path, required=("query", "vid")):
        vid = record["vid"]
        if not isinstance(vid, str) or vid not in videos:
            raise GranAlignError(f"{location}: video {vid!r} is not in {captions}; leave it out")
        queries.append(Query(record.get("qid"), vid, Rewrites.from_record(record, location)))
    return queries
