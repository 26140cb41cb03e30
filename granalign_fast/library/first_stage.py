"""The first stage of a search: all clips of a library to the stretches that fit a query best.

Evidence of several kinds is added. Each text of a query, itself and its rewrites, has a similarity
with a stretch: the mean cosine of the clips that fit it best, by their captions, by their frames,
or by both. Words of captions are compared by BM25. All are absolute: a stretch gets the same score
whatever else the library holds, but for how rare a word is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.kernels.corpus import MOST
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.search.known_texts import Known

from .codes import CodedRows
from .ordering import Probe
from .segment import Segment
from .similarities import Compared, Floats, Ints, rough_means, similarities
from .words import Collection, Weights, query_words, word_scores

WORD_WEIGHT = 0.65
"""How much the share of words counts beside the cosine. On QVHighlights val the first video is the
right one for 30.1% of the queries; from 0.5 to 0.8 for 29.9 to 30.1%, with cosines alone for 26.8%,
with words alone for 19.7%."""

QUERY_WEIGHT = 3
"""How much the query itself counts beside each of its rewrites, in cosines and in words."""

ALL_COMPARED = 1 << 17
"""Rows up to which all stretches are compared: to find those of the nearest clips first, and to
read their rows once more, takes longer."""
_BY_WORDS = 200
"""Stretches of more rows that are candidates because of their words, whatever their cosines are."""

_SPARE = 16
"""Candidates beyond the stretches of an answer: the order of the last ones depends on rounding."""
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
    best: Ints
    """Its best clip in the video."""
    words: Floats
    """How much of the query's words its captions hold, 0 to 1."""
    captions: Floats
    """The mean cosine of the clips whose captions fit best; 0 where captions are not compared."""
    frames: Floats
    """The same of frames; NaN where it has none that are compared."""


class Ranked(NamedTuple):
    """Stretches with their scores, best first."""

    hits: Hits
    scores: Floats
    similarity: Floats
    """The part of a score that the embeddings give."""


class Part(NamedTuple):
    """A segment, and which of its videos are searched."""

    segment: Segment
    chosen: npt.NDArray[np.bool_]
    """`(videos,)`."""
    framed: npt.NDArray[np.bool_]
    """`(videos,)`: which of these have frames that can be compared."""

    @property
    def is_long(self) -> bool:
        """Whether a video that is searched has several stretches."""
        _, videos = self.segment.stretches
        return int(self.chosen[videos].sum()) > int(self.chosen.sum())


class Texts(NamedTuple):
    """A query as the first stage compares it."""

    texts: Sequence[str]
    """The query and its rewrites."""
    captions: Compared | None
    """With the embeddings of captions; None where frames alone are compared."""
    words: Weights
    """With the words of captions; none where frames alone are compared."""
    frames: Compared | None
    """With the embeddings of frames; None where captions alone are compared."""

    @classmethod
    def of(cls, texts: Sequence[str], captions: Floats | None, frames: Floats | None) -> Texts:
        """Make it from the query and its rewrites, and their embeddings in each space."""
        weights = np.array([QUERY_WEIGHT] + [1] * (len(texts) - 1), np.float32)
        weights /= weights.sum()
        return cls(
            texts,
            None if captions is None else Compared(captions, weights),
            {} if captions is None else query_words([texts[0]] * QUERY_WEIGHT + list(texts[1:])),
            None if frames is None else Compared(frames, weights),
        )

    @property
    def known(self) -> Known:
        """The embeddings of the texts, in the space in which the second stage compares them."""
        compared = self.frames if self.captions is None else self.captions
        return {} if compared is None else dict(zip(self.texts, compared.rows, strict=True))

    @property
    def probe(self) -> Probe:
        """The query as a single vector: of its captions where they are compared."""
        if self.captions is not None:
            return Probe(self.captions.vector, by_frames=False)
        assert self.frames is not None  # a query is compared with something
        return Probe(self.frames.vector, by_frames=True)


def first_stage(
    parts: Sequence[Part],
    queries: Sequence[Texts],
    most: int,
    frames_weight: float,
    collection: Collection,
    device: ArrayDevice,
    share: float = 0.0,
) -> list[Ranked]:
    """Return the stretches that fit each query best.

    Args:
        parts: the segments, with embeddings in the spaces of the queries.
        queries: in any number, compared in the same spaces; they share a pass over the clips.
        most: stretches of a query.
        frames_weight: how much frames count beside captions; 1 where frames alone are compared.
        collection: all stretches of the library, by which words are rare or common.
        device: where the nearest clips are looked for.
        share: of an approximate index that is read where a segment has one; 0 for the exact result.
    """
    by_words = word_scores(
        [part.segment.postings for part in parts], [query.words for query in queries], collection
    )
    found: list[list[Hits]] = [[] for _ in queries]
    for number, (part, shares) in enumerate(zip(parts, by_words, strict=True)):
        wanted = _candidates(part, queries, shares, most, device, share)
        for hits, one in zip(found, _compare(number, part, queries, wanted, shares), strict=True):
            hits.append(one)
    return [_best(hits, most, frames_weight) for hits in found]


def _candidates(
    part: Part,
    queries: Sequence[Texts],
    shares: Floats,
    most: int,
    device: ArrayDevice,
    share: float,
) -> list[Ints]:
    """Return the stretches of a segment that can be among the best of each query, ascending.

    Args:
        part: the segment, and which of its videos are searched.
        queries: the texts of each query.
        shares: of each query's words that each stretch holds, `(queries, stretches)`.
        most: stretches of an answer.
        device: where the nearest clips are looked for.
        share: as for `first_stage`.
    """
    edges, videos = part.segment.stretches
    searched = part.chosen[videos]
    allowed = np.flatnonzero(searched)
    if int((edges[allowed + 1] - edges[allowed]).sum()) <= ALL_COMPARED:
        captions = [query.captions for query in queries if query.captions]
        count = most + _SPARE
        if len(allowed) <= count or not captions or queries[0].frames:
            return [allowed] * len(queries)
        rough = rough_means(np.asarray(part.segment.captions), edges, allowed, captions)
        rough += np.float32(WORD_WEIGHT) * shares[:, allowed]
        best = np.argpartition(-rough, count - 1, axis=1)[:, :count]
        return list(allowed[np.sort(best, axis=1)])
    # The stretches of the nearest clips, and those with the most words.
    candidates = []
    captions = [query.captions for query in queries if query.captions]
    frames = [query.frames for query in queries if query.frames]
    near, segment = np.full((len(queries), 0), -1), part.segment
    for asked, coded, chosen in (
        (captions, segment.coded_captions, part.chosen),
        (frames, segment.coded_frames, part.framed),
    ):
        if asked and coded is not None:
            rows = _nearest(asked, coded, segment.offsets, chosen, device, share)
            near = np.concatenate([near, rows], axis=1)
    for rows, held in zip(near, np.where(searched, shares, 0), strict=True):
        holding = np.searchsorted(edges, rows[rows >= 0], side="right") - 1
        count = min(_BY_WORDS, len(held))
        wordy = np.argpartition(-held, count - 1)[:count]
        candidates.append(np.unique(np.concatenate([holding, wordy[held[wordy] > 0]])))
    return candidates


def _compare(
    number: int, part: Part, queries: Sequence[Texts], wanted: Sequence[Ints], shares: Floats
) -> Iterator[Hits]:
    """Yield the evidence of the candidates of each query, in any order.

    Args:
        number: of the part.
        part: the segment.
        queries: the texts of each.
        wanted: the candidates of each.
        shares: of each query's words that each stretch of the segment holds.
    """
    segment, (edges, videos) = part.segment, part.segment.stretches
    framed = part.framed[videos]
    captions = [query.captions for query in queries if query.captions]
    frames = [query.frames for query in queries if query.frames]
    by_captions = by_frames = None
    if captions:
        by_captions = similarities(np.asarray(segment.captions), edges, wanted, captions)
    if frames and segment.frames is not None:
        seen = [some[framed[some]] for some in wanted]
        by_frames = similarities(np.asarray(segment.frames), edges, seen, frames)
    for query, some in enumerate(wanted):
        owners = videos[some]
        means, best = np.zeros(len(some), np.float32), edges[some]
        added = np.full(len(some), np.nan, np.float32)
        if by_frames is not None:
            added[framed[some]], best[framed[some]] = by_frames[query]
        if by_captions is not None:
            means, best = by_captions[query]
        firsts = segment.offsets[owners]
        begins, ends, best = edges[some] - firsts, edges[some + 1] - firsts, best - firsts
        parts = np.full(len(some), number)
        yield Hits(parts, owners, begins, ends, best, shares[query, some], means, added)


def _best(hits: Sequence[Hits], most: int, frames_weight: float) -> Ranked:
    """Join the hits of all segments, add up their evidence, and keep the best.

    Where captions and frames are compared, a stretch without frames gets what the others have by
    theirs on average, so that it is neither better nor worse for it.
    """
    if not hits:  # no video is searched
        none, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        hits = [Hits(none, none, none, none, none, scores, scores, scores)]
    joined = Hits._make(np.concatenate(columns) for columns in zip(*hits, strict=True))
    known = joined.frames[~np.isnan(joined.frames)]
    frames = np.where(np.isnan(joined.frames), known.mean() if len(known) else 0, joined.frames)
    similarity = joined.captions + np.float32(frames_weight) * frames.astype(np.float32)
    scores = similarity + np.float32(WORD_WEIGHT) * joined.words
    order = np.argsort(-scores, kind="stable")[:most]
    return Ranked(Hits._make(each[order] for each in joined), scores[order], similarity[order])


def _nearest(
    queries: Sequence[Compared],
    coded: CodedRows,
    offsets: Ints,
    chosen: npt.NDArray[np.bool_],
    device: ArrayDevice,
    share: float,
) -> Ints:
    """Return the rows of the clips that are nearest to each query, `(queries, k)`, or -1.

    Args:
        queries: the texts of each.
        coded: the embeddings of a segment.
        offsets: `(videos + 1,)`: the rows of each video.
        chosen: `(videos,)`: which of them are searched.
        device: where the clips are compared.
        share: as for `first_stage`.
    """
    asked, k = np.stack([query.vector for query in queries]).astype(np.float16), MOST
    if share and (index := coded.approximate) is not None:
        some = None if chosen.all() else np.repeat(chosen, np.diff(offsets))
        return index.nearest(asked, k, share, some)
    ranges = row_ranges(offsets, chosen)
    if len(ranges) <= _MOST_RANGES:
        tops = [(begin, coded.top(asked, slice(begin, end), k, device)) for begin, end in ranges]
        rows = [np.where(top.rows < 0, -1, top.rows + begin) for begin, top in tops]
        return _merged([top.scores for _, top in tops], rows, len(asked), k)
    numbers = np.concatenate([np.arange(begin, end) for begin, end in ranges])
    scores, rows = [], []
    for first in range(0, len(numbers), _GATHERED):
        some = numbers[first : first + _GATHERED]
        top = coded.top(asked, some, k, device)
        scores.append(top.scores)
        rows.append(np.where(top.rows < 0, -1, some[top.rows]))
    return _merged(scores, rows, len(asked), k)


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
