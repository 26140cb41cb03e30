"""Statements of JSON records: QVHighlights, VTG-GPT, lighthouse's releases, and our own form."""

from __future__ import annotations

from typing import Any

from granalign_fast.errors import GranAlignError, missing_key, short_repr
from granalign_fast.jsonl import Record
from granalign_fast.types import Rewrites

from .documents import FORMS, Document
from .records import REWRITE_KEYS
from .statements import (
    KeyCounts,
    Statement,
    Statements,
    check_duration,
    check_saliency,
    check_windows,
)

_VTG_GPT = "rephrased_query"
"""The key of the rephrasings in VTG-GPT's files of queries."""
_KNOWN = frozenset(
    {
        "qid",
        "query",
        "vid",
        "duration",
        "relevant_windows",
        "relevant_clip_ids",
        "saliency_scores",
        "fallbacks",
        _VTG_GPT,
        *REWRITE_KEYS,
    }
)

_OTHERS = {
    "captions": "captions",
    "description": "captions",
    "pred_relevant_windows": "predictions",
    "pred_saliency_scores": "predictions",
}
"""Keys of records that are no annotations, and what they are."""


def read_records(document: Document) -> Statements:
    """Read the queries of JSON records.

    A record has a `qid`, or `vid` and `query`, or all three. `duration`, `relevant_windows`,
    `relevant_clip_ids` with `saliency_scores`, and rewrites are optional. The rewrites are those of
    our own form (`Rewrites.from_record`) or VTG-GPT's `rephrased_query`.

    Raises:
        GranAlignError: a record is none of a query, a value has the wrong type, or a qid repeats.
    """
    statements = Statements(document.path, "JSON records")
    unused = KeyCounts(_KNOWN, "record")
    seen: set[int | str] = set()
    for location, record in document.records:
        statement = _statement(record, location)
        unused.add(record)
        if statement.qid is not None:
            if statement.qid in seen:
                raise GranAlignError(
                    f"{location}: qid {statement.qid!r} repeats; expected one line a query"
                )
            seen.add(statement.qid)
        statements.of_queries.append(statement)
        if not statements.rewrites_key:
            statements.rewrites_key = _rewrites_key(record)
    unused.report(statements)
    return statements


def _statement(record: Record, location: str) -> Statement:
    """Return what a record says."""
    qid, vid = record.get("qid"), record.get("vid")
    _refuse_other(record, location)
    if qid is None and not ("query" in record and "vid" in record):
        raise missing_key(location, "qid", record)
    if qid is not None and (isinstance(qid, bool) or not isinstance(qid, int | str)):
        raise GranAlignError(
            f"{location}: qid is {short_repr(qid)}; expected an integer or a string"
        )
    if vid is not None and not isinstance(vid, str):
        raise GranAlignError(f"{location}: vid is {short_repr(vid)}; expected a string")
    statement = Statement(location, qid, vid)
    if "query" in record:
        statement.rewrites = _rewrites(record, location)
    if record.get("duration") is not None:
        statement.duration = check_duration(record["duration"], location)
    if record.get("relevant_windows") is not None:
        windows = record["relevant_windows"]
        statement.windows = check_windows(windows, location, "relevant_windows")
    if record.get("saliency_scores") is not None:
        if "relevant_clip_ids" not in record:
            raise missing_key(location, "relevant_clip_ids", record)
        statement.saliency = check_saliency(
            record["relevant_clip_ids"], record["saliency_scores"], location
        )
    return statement


def _refuse_other(record: Record, location: str) -> None:
    """Raise if a record is one of captions or predictions, and not of a query."""
    for key, what in _OTHERS.items():
        if key in record and "relevant_windows" not in record:
            raise GranAlignError(
                f"{location}: got {what}, expected {FORMS}; give this file where {what} are taken"
            )


def _rewrites(record: Record, location: str) -> Rewrites:
    """Return the query and the rewrites that the record gives with it."""
    values: dict[str, Any] = {key: record[key] for key in REWRITE_KEYS if record.get(key)}
    if not values and record.get(_VTG_GPT):
        values = {"rewrites": record[_VTG_GPT]}
        if not isinstance(record[_VTG_GPT], list):
            raise GranAlignError(
                f"{location}: {_VTG_GPT}: got {short_repr(record[_VTG_GPT])}, expected a list of "
                f"texts; correct it"
            )
    fallbacks = {"fallbacks": record["fallbacks"]} if "fallbacks" in record else {}
    return Rewrites.from_record({"query": record["query"]} | values | fallbacks, location)


def _rewrites_key(record: Record) -> str:
    """Return the keys of a record that its rewrites come from; empty: it has none."""
    own = [key for key in REWRITE_KEYS if record.get(key)]
    return " and ".join(f"`{key}`" for key in own or [_VTG_GPT] if record.get(key))
