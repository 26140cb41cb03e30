"""Score moment retrieval and highlight detection as the three benchmarks define it.

`load_ground_truth` and `load_predictions` read and validate JSON Lines. A scorer of `DATASETS`
turns the two lists into percentages, computed for all queries at once; one of `OF_EACH` gives the
main figures of each query, and `intervals` how far their means would vary with other videos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from granalign_fast.datasets.records import MAX_OVERSHOOT_SECONDS
from granalign_fast.jsonl import Record

from .corpus import score_corpus
from .distinct import distinct_of_each, score_distinct
from .existence import auroc
from .intervals import intervals
from .records import load_ground_truth, load_predictions
from .scores import (
    FloatArray,
    moments_of_each,
    qvhighlights_of_each,
    retrieval_of_each,
    score_moments,
    score_qvhighlights,
)

__all__ = [
    "DATASETS",
    "MAX_OVERSHOOT_SECONDS",
    "OF_EACH",
    "auroc",
    "distinct_of_each",
    "intervals",
    "load_ground_truth",
    "load_predictions",
    "moments_of_each",
    "qvhighlights_of_each",
    "retrieval_of_each",
    "score_corpus",
    "score_distinct",
    "score_moments",
    "score_qvhighlights",
]

Scorer = Callable[[Sequence[Record], Sequence[Record]], dict[str, Any]]

DATASETS: Mapping[str, Scorer] = {
    "qvhighlights": score_qvhighlights,
    "charades": score_moments,
    "activitynet": score_moments,
}
"""The scorer of each dataset: ``scorer(predictions, ground_truth)``."""

ScorerOfEach = Callable[[Sequence[Record], Sequence[Record]], Mapping[str, FloatArray]]

OF_EACH: Mapping[str, ScorerOfEach] = {
    "qvhighlights": qvhighlights_of_each,
    "charades": moments_of_each,
    "activitynet": moments_of_each,
}
"""The scorer of each dataset's main metrics, query by query."""
