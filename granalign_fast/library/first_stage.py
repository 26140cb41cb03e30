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

from .segment import Segment
from .similarities import Compared, Floats, Ints, Similarities, similarities
from .words import Weights, query_words, word_scores

WORD_WEIGHT = 0.65
"""How much the share of words counts beside the cosine. On QVHighlights val the first video is the
right one for 30.1% of the queries; from 0.5 to 0.8 for 29.9 to 30.1%, with cosines alone for 26.8%,
with words alone for 19.7%."""

QUERY_WEIGHT = 3
"""How much the query itself counts beside each of its rewrites, in cosines and in words."""

_ALL_COMPARED = 1 << 17
"""Rows up to which all stretches are compared: to find those of the nearest clips first, and to
read their rows once more, takes longer."""
_BY_WORDS = 200
"""Stretches of more rows that are candidates because of their words, whatever their cosines are."""

_GATHERED = 1 << 16
"""Rows that are copied at a time where the videos that count are scattered."""
_MOST_RANGES = 64
"""Ranges of rows up to which each is searched where it lies."""


class Hits(NamedTuple):
    """Stretches that fit a query, best first; arrays of one length."""

    parts: Ints
    """The number of each one's part."""
    videos: Ints
    """The number of its video in the segment."""
    begins: Ints
    """Its first clip in the video."""
    ends: Ints
    """The clip behind its last one."""
    scores: Floats
    similarity: Floats
    """The mean cosine of its best clips."""
    words: Floats
    """How much of the query's words it holds, 0 to 1."""
    best: Ints
    """Its best clip in the video."""


class Part(NamedTuple):
    """A segment, and which of its videos are searched."""

    segment: Segment
    chosen: npt.NDArray[np.bool_]
    """`(videos,)`."""


class Texts(NamedTuple):
    """A query as the first stage compares it."""

    captions: Compared
    """With the embeddings of captions."""
    words: Weights

    @classmethod
    def of(cls, texts: Sequence[str], rows: Floats) -> Texts:
        """Make it from the query and its rewrites, and their embeddings."""
        weights = np.array([QUERY_WEIGHT] + [1] * (len(texts) - 1), np.float32)
        words = query_words([texts[0]] * QUERY_WEIGHT + list(texts[1:]))
        return cls(Compared(rows, weights / weights.sum()), words)


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
    compared = [query.captions for query in queries]
    found: list[list[Hits]] = [[] for _ in queries]
    for number, (part, shares) in enumerate(zip(parts, by_words, strict=True)):
        wanted = _candidates(part, compared, shares)
        edges, rows = part.segment.stretches.edges, np.asarray(part.segment.captions)
        similar = similarities(rows, edges, wanted, compared)
        for hits, *one in zip(found, wanted, similar, shares, strict=True):
            hits.append(_score(number, part.segment, *one))
    return [_best(hits, most) for hits in found]


def _candidates(part: Part, queries: Sequence[Compared], shares: Floats) -> list[Ints]:
    """Return the stretches of a segment that can be among the best of each query, ascending.

    Args:
        part: the segment, and which of its videos are searched.
        queries: the texts of each query.
        shares: of each query's words that each stretch holds, `(queries, stretches)`.
    """
    edges, videos = part.segment.stretches
    searched = part.chosen[videos]
    allowed = np.flatnonzero(searched)
    if int((edges[allowed + 1] - edges[allowed]).sum()) <= _ALL_COMPARED:
        return [allowed] * len(queries)
    # The stretches of the nearest clips, and those with the most words.
    rows = _nearest(np.stack([query.vector for query in queries]), part, MOST)
    candidates = []
    for near, share in zip(rows, np.where(searched, shares, 0), strict=True):
        holding = np.searchsorted(edges, near[near >= 0], side="right") - 1
        count = min(_BY_WORDS, len(share))
        wordy = np.argpartition(-share, count - 1)[:count]
        candidates.append(np.unique(np.concatenate([holding, wordy[share[wordy] > 0]])))
    return candidates


def _score(
    number: int, segment: Segment, stretches: Ints, similar: Similarities, shares: Floats
) -> Hits:
    """Add up the evidence of the stretches of a segment.

    Args:
        number: of the part.
        segment: of the part.
        stretches: the candidates.
        similar: what they have by their embeddings.
        shares: of the query's words that each stretch of the segment holds.
    """
    edges, videos = segment.stretches.edges, segment.stretches.videos[stretches]
    firsts, words = segment.offsets[videos], shares[stretches]
    return Hits(
        np.full(len(stretches), number),
        videos,
        edges[stretches] - firsts,
        edges[stretches + 1] - firsts,
        similar.means + np.float32(WORD_WEIGHT) * words,
        similar.means,
        words,
        similar.best - firsts,
    )


def _best(hits: Sequence[Hits], most: int) -> Hits:
    """Join the hits of all segments, and keep the best."""
    if not hits:
        none, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        return Hits(none, none, none, none, scores, scores, scores, none)
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
