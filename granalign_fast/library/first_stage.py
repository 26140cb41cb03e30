"""The first stage of a search: all clips of a library to the stretches that fit a query best.

Two kinds of evidence are added. Each text of a query, itself and its rewrites, has a similarity
with a stretch: the mean cosine of the clips that fit it best. Words are compared by BM25. Both are
absolute: a stretch gets the same score whatever else the library holds, but for how rare a word is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.kernels import corpus
from granalign_fast.kernels.corpus import MOST
from granalign_fast.kernels.corpus_host import row_scores

from .segment import Segment
from .words import Weights, query_words, word_scores

BEST_CLIPS = 5
"""Clips of a stretch whose cosines make its similarity: a moment of ten seconds has five."""

WORD_WEIGHT = 0.65
"""How much the share of words counts beside the cosine. On QVHighlights val the first video is the
right one for 30.1% of the queries; from 0.5 to 0.8 for 29.9 to 30.1%, with cosines alone for 26.8%,
with words alone for 19.7%."""

QUERY_WEIGHT = 3
"""How much the query itself counts beside each of its rewrites, in cosines and in words."""

_BY_WORDS = 200
"""Stretches that are candidates because of their words, whatever their cosines are."""

_GATHERED = 1 << 16
"""Rows that are copied at a time where the videos that count are scattered."""
_MOST_RANGES = 64
"""Ranges of rows up to which each is searched where it lies."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Hits(NamedTuple):
    """Stretches that fit a query, best first; arrays of one length."""

    segments: Ints
    """The number of each one's segment."""
    stretches: Ints
    """Its number in the segment."""
    scores: Floats
    similarity: Floats
    """The mean cosine of its best clips, less that of any query."""
    words: Floats
    """How much of the query's words it holds, 0 to 1."""
    best: Ints
    """The row of its best clip in the segment."""


class Part(NamedTuple):
    """A segment, and which of its videos are searched."""

    segment: Segment
    chosen: npt.NDArray[np.bool_]
    """`(videos,)`."""


class Texts(NamedTuple):
    """A query as the first stage compares it."""

    rows: Floats
    """`(texts, dim)`: embeddings of the query and its rewrites."""
    weights: Floats
    """`(texts,)`, with the sum 1."""
    words: Weights

    @classmethod
    def of(cls, texts: Sequence[str], rows: Floats) -> Texts:
        """Make it from the query and its rewrites, and their embeddings."""
        weights = np.array([QUERY_WEIGHT] + [1] * (len(texts) - 1), np.float32)
        words = query_words([texts[0]] * QUERY_WEIGHT + list(texts[1:]))
        return cls(rows, weights / weights.sum(), words)

    @property
    def vector(self) -> Floats:
        """The weighted mean `(dim,)`: its product with a caption is the mean of the cosines."""
        return np.asarray(self.weights @ self.rows)


def first_stage(parts: Sequence[Part], queries: Sequence[Texts], most: int) -> list[Hits]:
    """Return the stretches that fit each query best.

    Args:
        parts: the segments, whose captions have embeddings of `dim` numbers.
        queries: in any number; they share a pass over the clips.
        most: stretches of a query.
    """
    by_words = word_scores(
        [part.segment.postings for part in parts], [query.words for query in queries]
    )
    vectors = np.stack([query.vector for query in queries])
    found: list[list[Hits]] = [[] for _ in queries]
    for number, (part, shares) in enumerate(zip(parts, by_words, strict=True)):
        shares[:, ~part.chosen[part.segment.stretches.videos]] = 0
        rows = _nearest(vectors, part, MOST)
        for hits, query, near, share in zip(found, queries, rows, shares, strict=True):
            hits.append(_score(number, part.segment, query, near[near >= 0], share))
    return [_best(hits, most) for hits in found]


def _score(number: int, segment: Segment, query: Texts, near: Ints, shares: Floats) -> Hits:
    """Score the stretches of a segment that can be among the best.

    Args:
        number: of the segment.
        segment: its arrays.
        query: its texts and words.
        near: rows of the clips that are nearest to the query.
        shares: of the query's words that each stretch holds.
    """
    edges = segment.stretches.edges
    # 1. Candidates: the stretches of the nearest clips, and those with the most words.
    holding = np.searchsorted(edges, near, side="right") - 1
    count = min(_BY_WORDS, len(shares))
    wordy = np.argpartition(-shares, count - 1)[:count] if count else np.empty(0, np.int64)
    candidates = np.unique(np.concatenate([holding, wordy[shares[wordy] > 0]]))
    # 2. The cosines of all their clips with each text.
    lengths = edges[candidates + 1] - edges[candidates]
    starts = np.cumsum(lengths) - lengths
    rows = np.arange(lengths.sum()) + np.repeat(edges[candidates] - starts, lengths)
    cosines = row_scores(query.rows, segment.captions[rows])
    # 3. The mean of the best in each stretch, which the texts may see in different clips.
    similarity = query.weights @ best_means(cosines, starts, lengths)
    share = shares[candidates]
    scores = similarity + np.float32(WORD_WEIGHT) * share
    best = rows[_peaks(query.weights @ cosines, starts, lengths)]
    return Hits(np.full(len(candidates), number), candidates, scores, similarity, share, best)


def best_means(cosines: Floats, starts: Ints, lengths: Ints) -> Floats:
    """Return the mean of the `BEST_CLIPS` greatest cosines of each stretch, or of all it has.

    Args:
        cosines: `(texts, clips)`.
        starts: `(stretches,)`: the first clip of each stretch.
        lengths: `(stretches,)`: its clips.

    Returns:
        `(texts, stretches)`.
    """
    width = max(int(lengths.max(initial=0)), BEST_CLIPS)
    places = np.arange(width)
    inside = places < lengths[:, None]
    padded = np.where(inside, cosines[:, np.where(inside, starts[:, None] + places, 0)], -np.inf)
    best = np.partition(padded, width - BEST_CLIPS, axis=2)[:, :, width - BEST_CLIPS :]
    sums = np.where(np.isfinite(best), best, 0).sum(axis=2)
    return np.asarray(sums / np.minimum(lengths, BEST_CLIPS), np.float32)


def _peaks(cosines: Floats, starts: Ints, lengths: Ints) -> Ints:
    """Return the position of the greatest cosine of each stretch."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return np.lexsort((-cosines, owners))[starts]


def _best(hits: Sequence[Hits], most: int) -> Hits:
    """Join the hits of all segments, and keep the best."""
    if not hits:
        none, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        return Hits(none, none, scores, scores, scores, none)
    joined = Hits._make(np.concatenate(columns) for columns in zip(*hits, strict=True))
    order = np.argsort(-joined.scores, kind="stable")[:most]
    return Hits._make(column[order] for column in joined)


def _nearest(vectors: Floats, part: Part, k: int) -> Ints:
    """Return the rows of the clips that are nearest to each query, `(queries, k)`, or -1."""
    segment = part.segment
    asked = vectors.astype(np.float16)
    ranges = row_ranges(segment.offsets, part.chosen)
    if len(ranges) <= _MOST_RANGES:
        tops = [
            (begin, corpus(asked, segment.captions[begin:end], k=k, finite=True))
            for begin, end in ranges
        ]
        rows = [np.where(top.rows < 0, -1, top.rows + begin) for begin, top in tops]
        return _merged([top.scores for _, top in tops], rows, len(vectors), k)
    numbers = np.concatenate([np.arange(begin, end) for begin, end in ranges])
    scores, rows = [], []
    for first in range(0, len(numbers), _GATHERED):
        some = numbers[first : first + _GATHERED]
        top = corpus(asked, segment.captions[some], k=k, finite=True)
        scores.append(top.scores)
        rows.append(np.where(top.rows < 0, -1, some[top.rows]))
    return _merged(scores, rows, len(vectors), k)


def _merged(scores: Sequence[Floats], rows: Sequence[Ints], count: int, k: int) -> Ints:
    if not scores:
        return np.full((count, k), -1, np.int64)
    order = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(np.concatenate(rows, axis=1), order, axis=1)


def row_ranges(offsets: Ints, chosen: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the rows of the chosen videos as ranges, those of neighbours joined.

    Args:
        offsets: `(videos + 1,)`: the rows of each video.
        chosen: `(videos,)`.
    """
    steps = np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return list(zip(offsets[begins].tolist(), offsets[ends].tolist(), strict=True))
