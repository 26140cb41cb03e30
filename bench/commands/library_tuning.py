"""Check a library's constants: ``python -m granalign_fast.bench.commands.library_tuning``.

The weight of words decides which video comes first, the cost of a rank which moments. Both are
tried over a grid on all queries, and once more without a part of the videos: what is best on the
others is scored on that part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from granalign_fast.datasets import AnnotatedQuery, fit_captions, read_annotations, read_captions
from granalign_fast.errors import GranAlignError
from granalign_fast.files import default_cache
from granalign_fast.library import Library, LibraryResult
from granalign_fast.library.first_stage import WORD_WEIGHT, Part, first_stage
from granalign_fast.library.ordering import RANK_COST
from granalign_fast.library.spaces import Spaces
from granalign_fast.library.words import Collection
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.search.retriever import Retriever

from .tuning import arguments, folds_of

WEIGHTS = (0.0, 0.3, 0.4, 0.5, 0.6, WORD_WEIGHT, 0.7, 0.8, 1.0)
COSTS = (0.01, 0.02, 0.03, 0.04, RANK_COST, 0.06, 0.08, 0.1, 1.0)
RANKS = (1, 10)
"""Ranks whose recalls are added to choose a value."""
_CHUNK = 256
_TOP = 20

Ranks = npt.NDArray[np.float64]
"""`(queries,)`: how many wrong answers come before the first right one; infinite without any."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence for the order of one query, before constants weigh it."""

    videos: npt.NDArray[np.int64]
    """`(stretches,)`: the number of each one's video."""
    captions: npt.NDArray[np.float32]
    words: npt.NDArray[np.float32]
    right: int
    """The number of the query's video."""
    moments: Sequence[tuple[float, Sequence[float]]]
    """The score of each searched video, best first, and the IoU of each of its moments."""

    def video_rank(self, weight: float) -> float:
        """Return how many videos come before the right one."""
        scores = self.captions + np.float32(weight) * self.words
        best = np.full(int(self.videos.max()) + 1, -np.inf, np.float32)
        np.maximum.at(best, self.videos, scores)
        return float((best > best[self.right]).sum())

    def moment_rank(self, cost: float) -> float:
        """Return how many moments come before the first with an IoU of 0.5."""
        scored = [
            (score - cost * place, iou)
            for score, ious in self.moments
            for place, iou in enumerate(ious[:_TOP])
        ]
        scored.sort(key=lambda one: -one[0])
        return next((float(n) for n, (_, iou) in enumerate(scored[:_TOP]) if iou >= 0.5), np.inf)


def collect(library: Library, queries: Sequence[AnnotatedQuery]) -> list[Evidence]:
    """Search a library for every query, and keep what decides the order."""
    number = {video.vid: n for n, video in enumerate(library.videos())}
    parts = [
        Part(segment, np.ones(len(segment.videos), bool), np.zeros(len(segment.videos), bool))
        for segment in library.catalogue.segments
    ]
    names = [np.array([number[video.vid] for video in part.segment.videos]) for part in parts]
    collection = Collection([(part.segment.postings, None) for part in parts])
    spaces, found = Spaces(library.retriever), []
    for first in range(0, len(queries), _CHUNK):
        some = queries[first : first + _CHUNK]
        rewrites = [query.rewrites for query in some]
        device = library.retriever.device
        texts = spaces.embed(rewrites)
        ranked = first_stage(parts, texts, sys.maxsize, 0.0, collection, device)
        results = library.search_many(rewrites, top=_TOP, refine=_TOP, overlapping=True)
        for query, result, one in zip(some, results, ranked, strict=True):
            hits = one.hits
            videos = np.array(
                [names[p][v] for p, v in zip(hits.parts, hits.videos, strict=True)], np.int64
            )
            moments = _ious(result, query)
            right = number[query.vid]
            found.append(Evidence(videos, hits.captions, hits.words, right, moments))
    return found


def _ious(result: LibraryResult, query: AnnotatedQuery) -> list[tuple[float, list[float]]]:
    """Return score and IoUs of the moments of each video; they are 0 in a wrong video."""
    found = []
    for hit in result.videos[:_TOP]:
        moments = () if hit.result is None else hit.result.moments
        ious = [
            max(_iou((one.start, one.end), window) for window in query.windows)
            if hit.video.vid == query.vid
            else 0.0
            for one in moments
        ]
        found.append((hit.score, ious))
    return found


def _iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    shared = min(one[1], other[1]) - max(one[0], other[0])
    union = max(one[1], other[1]) - min(one[0], other[0])
    return max(shared, 0.0) / union if union > 0 else 0.0


def recall(ranks: Ranks, rank: int) -> float:
    """Return the percentage of queries that are found among the first so many answers."""
    return 100 * float((ranks < rank).mean())


def crossvalidate(tried: dict[float, Ranks], folds: npt.NDArray[np.int64]) -> Ranks:
    """Return the rank of each query by the value that is best for the other folds."""
    held = np.empty(len(folds))
    for fold in range(int(folds.max()) + 1):
        inside = folds == fold
        best = max(tried, key=lambda value: sum(recall(tried[value][~inside], r) for r in RANKS))
        held[inside] = tried[best][inside]
    return held


def report(
    name: str,
    values: Sequence[float],
    chosen: float,
    rank: Callable[[Evidence, float], float],
    found: Sequence[Evidence],
    folds: npt.NDArray[np.int64],
) -> None:
    """Print the recalls of each value of a constant, and those of held-out videos."""
    tried = {value: np.array([rank(one, value) for one in found]) for value in values}
    rows = {f"{value:g}" + " *" * (value == chosen): ranks for value, ranks in tried.items()}
    rows["held out"] = crossvalidate(tried, folds)
    for label, ranks in rows.items():
        print(f"{name:<14}{label:>10}" + "".join(f"{recall(ranks, r):>8.2f}" for r in RANKS))


def main() -> None:
    """Print the recalls at ranks 1 and 10; a star marks the value in use."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    try:
        model = SentenceEncoder(options.encoder, precision=options.precision)
        retriever = Retriever(CachedEncoder(model, default_cache()))
        annotations = read_annotations([options.queries, options.ground_truth])
        queries = [query for query in annotations.queries if query.windows]
        durations = {query.vid: query.duration for query in queries if query.duration is not None}
        videos, _ = fit_captions(read_captions(options.captions), durations)
        library = Library.of(retriever.index_many(list(videos.values())), retriever)
        found = collect(library, queries)
        folds = folds_of(np.array([one.right for one in found]), options.folds)
    except GranAlignError as error:
        sys.exit(f"library_tuning: {error}")
    report("word weight", WEIGHTS, WORD_WEIGHT, Evidence.video_rank, found, folds)
    report("rank cost", COSTS, RANK_COST, Evidence.moment_rank, found, folds)


if __name__ == "__main__":
    main()
