"""The inverted index of words: which stretches hold a word, how often, and their BM25 scores.

BM25 is that of Robertson and Zaragoza ("The Probabilistic Relevance Framework", 2009, section 3.3)
with the IDF that never falls below 0. It is our own few lines on arrays, because a library grows:
packages such as bm25s store finished scores, and all of them change with every document.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

_WORD = re.compile(r"\w+")

SATURATION = 4.0
"""BM25's k1. A stretch is some seventy captions of frames that hardly differ, so a word counts
until it stands in many of them. On QVHighlights val 3 to 8 find more than the customary 1.2."""

LENGTH_SHARE = 0.75
"""BM25's b, with its customary value: how much a long stretch must have more of a word."""

Weights = Mapping[str, float]
"""The words of a query, and how often they stand in it and its rewrites."""


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> split_words("A red car, two dogs.")
    ['a', 'red', 'car', 'two', 'dogs']
    """
    return _WORD.findall(text.lower())


def query_words(texts: Iterable[str]) -> Weights:
    """Return the words of a query and its rewrites, each with the number of its occurrences."""
    return Counter(word for text in texts for word in split_words(text))


@dataclass(frozen=True, slots=True)
class Postings:
    """The inverted index of a list of documents."""

    words: Sequence[str]
    """Sorted."""
    offsets: npt.NDArray[np.int64]
    """`(words + 1,)`: the postings of word *i* are those from `offsets[i]` to `offsets[i + 1]`."""
    documents: npt.NDArray[Any]
    """`(postings,)` int32, ascending within a word."""
    counts: npt.NDArray[Any]
    """`(postings,)` uint16: how often the document holds the word."""
    lengths: npt.NDArray[Any]
    """`(documents,)` int32: words of each document."""
    remedy: str = "make the inverted index again"
    """The end of the message where it is damaged."""

    def is_whole(self, documents: int) -> bool:
        """Return whether the lengths of the arrays fit together.

        The postings themselves are not read: they may be large, and a query needs few of them.

        Args:
            documents: how many there are.
        """
        postings = len(self.documents)
        return (
            len(self.lengths) == documents
            and bool(np.all(self.lengths >= 0))
            and bool(np.all(np.diff(self.offsets) >= 0))
            and self.offsets[-1] == postings == len(self.counts)
        )

    def of_word(self, begin: int, end: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the documents that hold a word, and how often each does.

        Args:
            begin: the first of the word's postings.
            end: the one behind the last.

        Raises:
            GranAlignError: there are no such documents.
        """
        documents = self.documents[begin:end]
        if len(documents) and not 0 <= documents.min() <= documents.max() < len(self.lengths):
            raise GranAlignError(
                f"catalogue: damaged, got the stretches {documents.min()} to {documents.max()}, "
                f"expected 0 to {len(self.lengths) - 1}; {self.remedy}"
            )
        return documents, self.counts[begin:end].astype(np.float32)


class PostingsBuilder:
    """Collects documents one after another."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words: list[npt.NDArray[np.int32]] = []
        self._counts: list[npt.NDArray[np.uint16]] = []
        self._lengths: list[int] = []

    def add(self, captions: Iterable[str]) -> None:
        """Add a document: the captions of one stretch."""
        counter = Counter(word for caption in captions for word in split_words(caption))
        numbers = self._numbers
        found = [numbers.setdefault(word, len(numbers)) for word in counter]
        self._words.append(np.array(found, np.int32))
        counts = np.fromiter(counter.values(), np.int64, len(counter))
        self._counts.append(np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16))
        self._lengths.append(counter.total())

    def build(self) -> Postings:
        """Return the inverted index of all documents so far."""
        vocabulary = sorted(self._numbers)
        ranks = np.empty(len(vocabulary), np.int32)
        ranks[[self._numbers[word] for word in vocabulary]] = np.arange(len(vocabulary))
        words = ranks[np.concatenate([np.empty(0, np.int32), *self._words])]
        counts = np.concatenate([np.empty(0, np.uint16), *self._counts])
        sizes = [len(part) for part in self._words]
        documents = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        order = np.argsort(words, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(words, minlength=len(vocabulary)))])
        return Postings(
            vocabulary,
            offsets.astype(np.int64),
            documents[order],
            counts[order],
            np.array(self._lengths, np.int32),
        )


class Collection:
    """The documents by which a word is rare or common, and a document long or short.

    Args:
        parts: inverted indexes, each with which of its documents count, `(documents,)`; None if all
            of them do.
    """

    def __init__(self, parts: Sequence[tuple[Postings, npt.NDArray[np.bool_] | None]]) -> None:
        self._parts = parts
        counting = [
            part.lengths if counts is None else part.lengths[counts] for part, counts in parts
        ]
        self.documents = sum(map(len, counting))
        """How many documents count."""
        words = sum(int(lengths.sum()) for lengths in counting)
        self.mean = words / max(self.documents, 1)
        """The mean of their words."""

    def holding(self, queries: Sequence[Weights]) -> Counter[str]:
        """Return how many documents hold each word of some queries.

        Raises:
            GranAlignError: a part names documents that it does not have.
        """
        found: Counter[str] = Counter()
        for part, counts in self._parts:
            for word, (begin, end) in _lookup(part, queries).items():
                if counts is None:
                    found[word] += end - begin
                else:
                    found[word] += int(counts[part.of_word(begin, end)[0]].sum())
        return found


def word_scores(
    parts: Sequence[Postings], queries: Sequence[Weights], collection: Collection
) -> list[npt.NDArray[Any]]:
    """Return how well each document fits each query by its words, 0 to 1.

    The score is BM25 divided by what a document would get that has every word of the query without
    end. So it can be compared between queries, and is 0 for a query of unknown words.

    Args:
        parts: inverted indexes of the documents.
        queries: the words of each query.
        collection: the documents by which words are rare or common; others may be in the parts too.

    Returns:
        For each part an array `(queries, documents)`, float32.

    Raises:
        GranAlignError: a part names documents that it does not have.
    """
    total = collection.documents
    idf = {word: _idf(total, count) for word, count in collection.holding(queries).items()}
    # A word that no document holds would be a rare one, which counts in full.
    unknown = _idf(total, 0)
    scores = []
    for part in parts:
        lookup = _lookup(part, queries)
        rows = np.zeros((len(queries), len(part.lengths)), np.float32)
        share = part.lengths.astype(np.float32) / max(collection.mean, 1)
        norms = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * share)
        for row, query in zip(rows, queries, strict=True):
            most = sum(count * idf.get(word, unknown) for word, count in query.items())
            for word, count in query.items():
                if word in lookup:
                    documents, counts = part.of_word(*lookup[word])
                    gain = counts / (counts + norms[documents])
                    row[documents] += np.float32(count * idf[word] / most) * gain
        scores.append(rows)
    return scores


def _idf(total: int, holding: int) -> float:
    """Return the IDF of a word that some of all documents hold."""
    return float(np.log1p((total - holding + 0.5) / (holding + 0.5)))


def _lookup(part: Postings, queries: Sequence[Weights]) -> dict[str, tuple[int, int]]:
    """Return where the postings of the queries' words begin and end, of those that there are."""
    found = {}
    for word in {word for query in queries for word in query}:
        number = bisect_left(part.words, word)
        if number < len(part.words) and part.words[number] == word:
            found[word] = int(part.offsets[number]), int(part.offsets[number + 1])
    return found
