"""Read annotation files and join what they say about each query."""

from __future__ import annotations

from collections.abc import Sequence

from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record, iter_jsonl
from granalign_fast.types import Rewrites

from .records import DATASETS, AnnotatedQuery, Annotations, Highlights, PathLike


def read_annotations(paths: Sequence[PathLike], dataset: str) -> Annotations:
    """Read annotation files of one dataset, and join what they say about each query.

    Args:
        paths: of the files.
        dataset: one of `DATASETS`.

    Raises:
        GranAlignError: a file cannot be read or is of no known form, or two files disagree.
    """
    if dataset not in DATASETS:
        raise GranAlignError(f"dataset: got {dataset!r}, expected one of: {', '.join(DATASETS)}")
    joined: dict[int | str, Record] = {}
    for path in paths:
        for location, record in iter_jsonl(path, required=("qid",)):
            known = joined.setdefault(record["qid"], {"location": location})
            known.update(record)
    queries = tuple(map(_query, joined.values()))
    shown = sum(bool(query.windows) for query in queries)
    rewritten = sum(bool(query.rewrites.simplified) for query in queries)
    notes = (f"{len(queries)} queries, {shown} with windows, {rewritten} with rewrites",)
    return Annotations(dataset, queries, notes)


def _query(record: Record) -> AnnotatedQuery:
    """Return the query that the files describe together."""
    if "rephrased_query" in record:
        record = record | {"rewrites": record["rephrased_query"]}
    saliency = None
    if "saliency_scores" in record:
        scores = tuple(map(tuple, record["saliency_scores"]))
        saliency = Highlights(tuple(record["relevant_clip_ids"]), scores)
    return AnnotatedQuery(
        qid=record["qid"],
        vid=record["vid"],
        rewrites=Rewrites.from_record(record, record["location"]),
        duration=record.get("duration"),
        windows=tuple((start, end) for start, end in record.get("relevant_windows", ())),
        saliency=saliency,
    )
