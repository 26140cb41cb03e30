"""The result of an evaluation: its record, and the file of results that a later one reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.datasets import AnnotatedQuery, PathLike
from granalign_fast.errors import GranAlignError, counted
from granalign_fast.files import read_json, replacing
from granalign_fast.jsonl import Record

FORMAT_VERSION = 1
_KIND = "evaluation-results"
_LISTED = 5
"""Missing videos that a record names."""

Figures = Mapping[str, npt.NDArray[np.float64]]
"""The figure of every query by metric, (queries,), in percent."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The videos that could not be searched, and what became of their queries."""

    policy: str
    """``skip``: the queries are left out. ``zero``: they count as misses. ``fail``: none may miss.
    """
    not_found: tuple[str, ...] = ()
    """Ids of videos of which there is nothing."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why each of the other videos could not be searched."""
    queries: int = 0
    """The number of queries about all of these videos."""

    @property
    def videos(self) -> list[str]:
        """The ids of all missing videos."""
        return [*self.not_found, *self.failed]

    def __str__(self) -> str:
        """Return the counts in words, as they stand beside every table; empty without any."""
        if not self.videos:
            return ""
        videos = counted(len(self.videos), "missing video")
        queries = counted(self.queries, "query", "queries")
        return f"{videos}, {queries} {'counted as missed' if self.policy == 'zero' else 'left out'}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics, predictions and durations of an evaluation."""

    metrics: dict[str, Any]
    """The tables of the benchmark; empty without ground truth."""
    predictions: list[Record] = field(repr=False)
    """The lines of a submission, in the order of the annotations."""
    seconds: dict[str, float]
    """The duration of each stage."""
    counts: dict[str, int]
    """The numbers of queries, videos and captions."""
    dataset: str = "qvhighlights"
    scored: tuple[AnnotatedQuery, ...] = field(default=(), repr=False)
    """The queries that the metrics count."""
    figures: Figures = field(default_factory=dict, repr=False)
    """The main metrics of each of `scored`."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The 95% interval over videos of each main metric."""
    ground_truth_sha256: str | None = None
    """Names the ground truth of `scored`; None without any."""
    missing: Missing = field(default_factory=lambda: Missing("fail"))
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    setup: Mapping[str, Any] = field(default_factory=dict)
    """Models, rewriter, preset, encoder, precision and versions of the search."""

    @property
    def brief(self) -> dict[str, float]:
        """The metrics in one table: the benchmark's own summary, or all where it has no other."""
        brief: dict[str, float] = self.metrics.get("brief", self.metrics)
        return brief

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object of ``granalign evaluate --json``."""
        tables = self.metrics if "brief" in self.metrics else {}
        missing = self.missing
        return {
            **self.brief,
            "dataset": self.dataset,
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "tables": {name: table for name, table in tables.items() if name != "brief"},
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
            **self.counts,
            "missing": {
                "policy": missing.policy,
                "videos": len(missing.videos),
                "queries": missing.queries,
                "first": missing.videos[:_LISTED],
                "failed": dict(missing.failed),
            },
            "ground_truth_sha256": self.ground_truth_sha256,
            "setup": dict(self.setup),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Results:
    """A file of results: what a comparison needs of an evaluation."""

    name: str
    """The name of the file, for messages."""
    dataset: str
    ground_truth_sha256: str
    queries: Mapping[int | str, tuple[str, str]]
    """Video and text of each query, by qid."""
    figures: Figures
    """The main metrics of each of `queries`, in its order."""


def truth_sha256(truth: Sequence[Record]) -> str:
    """Return a name of ground truth: equal for equal windows, durations and saliency.

    Args:
        truth: records of `Annotations.ground_truth`, in any order.
    """
    lines = sorted(json.dumps(record, sort_keys=True) for record in truth)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_results(path: PathLike, evaluation: Evaluation) -> None:
    """Write the record of an evaluation and the figures of every query, whole or not at all.

    Raises:
        GranAlignError: the file cannot be written, or there are no figures.
    """
    if not evaluation.figures:
        raise GranAlignError(
            f"{path}: got no ground truth, expected one: without it there are no figures"
        )
    columns = {name: column.round(4).tolist() for name, column in evaluation.figures.items()}
    each = [
        {"qid": query.qid, "vid": query.vid, "query": query.rewrites.query}
        | {"figures": {name: column[i] for name, column in columns.items()}}
        for i, query in enumerate(evaluation.scored)
    ]
    record = {"kind": _KIND, "format_version": FORMAT_VERSION} | evaluation.to_record()
    with replacing(path) as file:
        file.write((json.dumps(record | {"each": each}) + "\n").encode())


def read_results(path: PathLike) -> Results:
    """Read a file that `write_results` wrote.

    Raises:
        GranAlignError: the file cannot be read, is truncated, or is another file.
    """
    record = read_json(Path(path))
    if not isinstance(record, dict) or record.get("kind") != _KIND:
        raise GranAlignError(
            f"{path}: got another file, expected one that `granalign evaluate --results` wrote"
        )
    if record.get("format_version") != FORMAT_VERSION:
        raise GranAlignError(
            f"{path}: got format version {record.get('format_version')!r}, expected "
            f"{FORMAT_VERSION}; evaluate again with --results"
        )
    try:
        each = record["each"]
        names = list(each[0]["figures"])
        return Results(
            name=str(path),
            dataset=record["dataset"],
            ground_truth_sha256=record["ground_truth_sha256"],
            queries={line["qid"]: (line["vid"], line["query"]) for line in each},
            figures={
                name: np.array([line["figures"][name] for line in each], np.float64)
                for name in names
            },
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise GranAlignError(
            f"{path}: got an altered file ({type(error).__name__}: {error}), expected one as "
            f"--results wrote it; evaluate again"
        ) from None
