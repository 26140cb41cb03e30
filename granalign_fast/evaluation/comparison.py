"""Compare two evaluations query by query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from granalign_fast.datasets import AnnotatedQuery
from granalign_fast.errors import GranAlignError, listed
from granalign_fast.metrics import intervals

from .results import Evaluation, Results


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two evaluations, in percent."""

    metric: str
    this: float
    other: float
    difference: float
    """The first less the second."""
    interval: tuple[float, float] | None
    """The 95% interval of the difference; None with fewer than two videos."""

    @property
    def clear(self) -> bool:
        """Whether the interval does not contain zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def compare(evaluation: Evaluation, other: Results) -> list[Difference]:
    """Return the paired differences of the metrics that both evaluations have.

    A difference is taken query by query, and its interval is `metrics.intervals` of these, over
    videos. It is narrower than the two intervals suggest, because most of what makes a query hard
    is the same in both evaluations.

    Raises:
        GranAlignError: as `check_comparable`.
    """
    check_comparable(other, evaluation.dataset, evaluation.scored, evaluation.ground_truth_sha256)
    row = {qid: number for number, qid in enumerate(other.queries)}
    order = [row[query.qid] for query in evaluation.scored]
    pairs = {
        name: (column, other.figures[name][order])
        for name, column in evaluation.figures.items()
        if name in other.figures
    }
    differences = {name: this - that for name, (this, that) in pairs.items()}
    bounds = intervals(differences, [query.vid for query in evaluation.scored])
    return [
        Difference(
            metric=name,
            this=round(float(np.mean(this)), 2),
            other=round(float(np.mean(that)), 2),
            difference=round(float(np.mean(differences[name])), 2),
            interval=bounds.get(name),
        )
        for name, (this, that) in pairs.items()
    ]


def check_comparable(
    other: Results,
    dataset: str,
    scored: tuple[AnnotatedQuery, ...],
    ground_truth_sha256: str | None,
) -> None:
    """Raise unless results are of the same dataset, queries and ground truth.

    Args:
        other: the results.
        dataset: of the evaluation.
        scored: the queries of the evaluation.
        ground_truth_sha256: of the evaluation.

    Raises:
        GranAlignError: they are not.
    """
    if other.dataset != dataset:
        raise GranAlignError(
            f"{other.name}: got results on {other.dataset}, expected {dataset}: name results of "
            f"the same dataset"
        )
    queries = {query.qid: (query.vid, query.rewrites.query) for query in scored}
    if different := [
        qid for qid in {**queries, **other.queries} if queries.get(qid) != other.queries.get(qid)
    ]:
        raise GranAlignError(
            f"{other.name}: got results on {len(other.queries)} queries, expected the "
            f"{len(queries)} of this evaluation; {len(different)} differ, such as qid "
            f"{listed(list(map(repr, different)))}: evaluate the same files, with the same videos "
            f"or with --missing zero"
        )
    if other.ground_truth_sha256 != ground_truth_sha256:
        raise GranAlignError(
            f"{other.name}: got results on other ground truth of the same queries, expected equal "
            f"windows, durations and saliency; evaluate the same annotation files"
        )
