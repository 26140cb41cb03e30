"""A library: many videos, searched in two stages."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.index import VideoIndex
from granalign_fast.models.manifest import same_weights
from granalign_fast.search.clock import Clock
from granalign_fast.search.request import Request
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Rewrites, SearchResult

from .catalogue import Catalogue, Progress, open_catalogue, temporary_catalogue
from .filters import Filters
from .first_stage import Hits, Part, Texts, first_stage
from .ordering import ranked_moments
from .records import CataloguedVideo, rows_of
from .results import LibraryResult, VideoHit
from .tags import read_tags

_KEPT = 64
"""Indexes that stay in memory after a search, the last used ones."""
_CANDIDATES = 400
"""Stretches that the first stage ranks; their videos are the answer's, at least a hundred."""


class Library:
    """The videos whose indexes lie in one folder, searched together.

    A search has two stages. The first compares the query with all clips, by embeddings and words,
    and finds the best videos. The second searches these with the method.

    Example:
        >>> library = Library.open("library", MomentRetriever())  # doctest: +SKIP
        >>> library.search("a red car on the road").moments[0].vid  # doctest: +SKIP
        'street'
    """

    def __init__(
        self,
        catalogue: Catalogue,
        retriever: Retriever,
        *,
        indexes: Mapping[str, VideoIndex] | None = None,
    ) -> None:
        """Use an open catalogue; `open` and `of` are the usual ways.

        Args:
            catalogue: of the videos.
            retriever: as for `open`.
            indexes: of all videos by id, if they are in memory.
        """
        self.folder = catalogue.folder
        self.retriever = retriever
        self.catalogue = catalogue
        self._given = indexes
        self._indexes: OrderedDict[tuple[str, str], VideoIndex] = OrderedDict()

    @classmethod
    def open(
        cls, folder: str | Path, retriever: Retriever, *, progress: Progress | None = None
    ) -> Library:
        """Open a folder of indexes, and bring its catalogue up to date.

        Args:
            folder: what ``granalign index`` wrote.
            retriever: its encoder must be the one that embedded the captions. Its other models
                serve the second stage.
            progress: called with the number of indexes that were read into the catalogue, and of
                all that are to be.

        Raises:
            GranAlignError: the folder is missing or holds no index.
        """
        catalogue = open_catalogue(Path(folder), progress=progress)
        if not any(catalogue.live) and not catalogue.damaged:
            raise GranAlignError(
                f"{folder}: got no indexes, expected a folder of them; name a folder that "
                f"`granalign index` wrote"
            )
        return cls(catalogue, retriever)

    @classmethod
    def of(cls, indexes: Sequence[VideoIndex], retriever: Retriever) -> Library:
        """Make a library of indexes in memory. Nothing is kept on disk.

        Args:
            indexes: of videos with different ids.
            retriever: as for `open`.

        Raises:
            GranAlignError: there is no index, two have one id, or an embedding is not a number.
        """
        given = {index.video.vid: index for index in indexes}
        if not given or len(given) < len(indexes):
            raise GranAlignError(
                f"indexes: got {len(indexes)} of {len(given)} ids, expected at least one index, "
                f"and each of another id"
            )
        rows = (rows_of(index, vid) for vid, index in given.items())
        return cls(temporary_catalogue(Path(), rows), retriever, indexes=given)

    def videos(self) -> list[CataloguedVideo]:
        """Return all videos, sorted by id."""
        return self.catalogue.videos()

    def search(
        self,
        query: str | Rewrites,
        *,
        top: int = 10,
        refine: int = 20,
        budget: float | None = None,
        filters: Filters | None = None,
    ) -> LibraryResult:
        """Return the moments of all videos that fit a query.

        Args:
            query: a plain text, which is rewritten first, or `Rewrites`.
            top: most moments.
            refine: how many videos the second stage searches.
            budget: seconds after which the second stage ends; None for no limit. A search of one
                video that has begun is not broken off.
            filters: which videos are searched; None for all.

        Raises:
            GranAlignError: an argument is of the wrong type or out of range.
        """
        *_, last = self.stages(query, top=top, refine=refine, budget=budget, filters=filters)
        return last

    def search_many(
        self,
        queries: Sequence[str | Rewrites],
        *,
        top: int = 10,
        refine: int = 20,
        filters: Filters | None = None,
    ) -> list[LibraryResult]:
        """Return the moments for each query; the queries share a pass over the clips.

        Arguments and errors are those of `search`.
        """
        if isinstance(queries, str | Rewrites):
            raise GranAlignError("queries: got one query, expected a list; put it into a list")
        firsts = self._first_stage(queries, top, refine, filters)
        results = []
        for first in firsts:
            *_, last = self._refinements(first, top, refine, None)
            results.append(last)
        return results

    def stages(
        self,
        query: str | Rewrites,
        *,
        top: int = 10,
        refine: int = 20,
        budget: float | None = None,
        filters: Filters | None = None,
    ) -> Iterator[LibraryResult]:
        """Yield the answer of the first stage at once, then a better one after each refinement.

        Arguments and errors are those of `search`, whose answer is the last one.
        """
        if budget is not None and (isinstance(budget, bool) or not budget >= 0):
            raise GranAlignError(f"budget: got {short_repr(budget)}, expected seconds from 0")
        until = None if budget is None else time.monotonic() + budget
        (first,) = self._first_stage([query], top, refine, filters)
        yield from self._refinements(first, top, refine, until)

    def _first_stage(
        self,
        queries: Sequence[str | Rewrites],
        top: int,
        refine: int,
        filters: Filters | None,
    ) -> list[_First]:
        """Rewrite and embed the queries, and compare them with all clips."""
        for name, value, least in (("top", top, 1), ("refine", refine, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise GranAlignError(
                    f"{name}: got {short_repr(value)}, expected an integer from {least}"
                )
        seconds: dict[str, float] = {}
        clock = Clock(seconds, None)
        # 1. Rewrite the queries that come as plain texts, in one batch.
        plain = [query for query in queries if not isinstance(query, Rewrites)]
        written = iter(self.retriever.rewriter.rewrite(plain) if plain else ())
        rewrites = [one if isinstance(one, Rewrites) else next(written) for one in queries]
        clock.lap("rewrite")
        # 2. Embed every text once.
        texts = [(one.query, *one.simplified, *one.detailed) for one in rewrites]
        flat = list(dict.fromkeys(text for group in texts for text in group))
        embeddings = self.retriever.encoder.encode(flat)
        row = {text: number for number, text in enumerate(flat)}
        variants = [embeddings[[row[text] for text in group]] for group in texts]
        clock.lap("embed")
        # 3. Choose the videos, and find the best stretches of each query.
        parts, left_out = self._parts(embeddings.shape[1], filters or Filters())
        compared = [Texts.of(*pair) for pair in zip(texts, variants, strict=True)]
        hits = first_stage(parts, compared, _CANDIDATES)
        clock.lap("first_stage")
        searched = sum(int(part.chosen.sum()) for part in parts)
        return [
            _First(
                LibraryResult(
                    one, (), _video_hits(parts, found), searched, left_out, False, {}, seconds
                ),
                query.vector,
            )
            for one, found, query in zip(rewrites, hits, compared, strict=True)
        ]

    def _parts(self, dim: int, filters: Filters) -> tuple[list[Part], dict[str, int]]:
        """Return the segments and videos that are searched, and why others are not."""
        tags = read_tags(self.folder) if filters.tags and self._given is None else {}
        fingerprint = getattr(self.retriever.encoder, "fingerprint", None)
        left_out: Counter[str] = Counter()
        parts = []
        for segment, numbers in zip(self.catalogue.segments, self.catalogue.live, strict=True):
            chosen = np.zeros(len(segment.videos), bool)
            for number in numbers:
                video = segment.videos[number]
                made = video.encoder
                if not filters.passes(video, tags):
                    left_out["not chosen by the filters"] += 1
                elif segment.record.dim != dim or not (
                    made is None or fingerprint is None or same_weights(made, fingerprint)
                ):
                    left_out["embedded by another sentence encoder"] += 1
                else:
                    chosen[number] = True
            if chosen.any():
                parts.append(Part(segment, chosen))
        if self.catalogue.damaged:
            left_out["damaged index"] = len(self.catalogue.damaged)
        return parts, dict(left_out)

    def _refinements(
        self, first: _First, top: int, refine: int, until: float | None
    ) -> Iterator[LibraryResult]:
        """Yield the first stage's answer, then one after each batch of videos."""
        result, vector = first
        hits, errors = list(result.videos), dict(result.errors)
        seconds = dict(result.seconds)
        refine = min(refine, len(hits))
        begin = time.perf_counter()

        def answer(*, complete: bool) -> LibraryResult:
            moments = ranked_moments(hits, self._load, vector, top)
            seconds["refine"] = time.perf_counter() - begin
            return replace(
                result,
                moments=moments,
                videos=tuple(hits),
                complete=complete,
                errors=dict(errors),
                seconds=dict(seconds),
            )

        yield answer(complete=refine == 0)
        # Models that look at frames take seconds for a video; captions alone are one batch.
        slow = self.retriever.captioner is not None or self.retriever.recogniser is not None
        step = 1 if slow else _BATCH if until is not None else max(refine, 1)
        for start in range(0, refine, step):
            if until is not None and time.monotonic() >= until:
                return
            some = range(start, min(start + step, refine))
            for number, found in zip(some, self._refine(hits, some, result, errors), strict=True):
                hits[number] = replace(hits[number], result=found)
            yield answer(complete=some.stop == refine)

    def _refine(
        self,
        hits: Sequence[VideoHit],
        numbers: Sequence[int],
        result: LibraryResult,
        errors: dict[str, str],
    ) -> list[SearchResult | None]:
        """Search some videos with the method; a video that cannot be searched costs only itself."""
        requests: dict[int, Request] = {}
        for number in numbers:
            try:
                requests[number] = Request(self._load(hits[number].video), result.query)
            except GranAlignError as error:
                errors[hits[number].video.vid] = str(error)
        try:
            batch = self.retriever.search_many(list(requests.values()))
            found = dict(zip(requests, batch, strict=True))
        except GranAlignError:
            found = {}
            for number, request in requests.items():
                try:
                    found[number] = self.retriever.search_many([request])[0]
                except GranAlignError as error:
                    errors[hits[number].video.vid] = str(error)
        return [found.get(number) for number in numbers]

    def _load(self, video: CataloguedVideo) -> VideoIndex:
        """Return the index of a video, from memory if it was used lately.

        Raises:
            GranAlignError: it was removed or damaged since the catalogue was opened.
        """
        if self._given is not None:
            return self._given[video.vid]
        key = video.vid, video.stamp
        index = self._indexes.pop(key, None)
        if index is None:
            index = VideoIndex.load(self.folder / video.vid)
        self._indexes[key] = index
        while len(self._indexes) > _KEPT:
            self._indexes.popitem(last=False)
        return index


_BATCH = 5
"""Videos that are searched between two looks at the clock."""


class _First(NamedTuple):
    """The answer of the first stage, and what the captions were compared with."""

    result: LibraryResult
    vector: npt.NDArray[np.float32]


def _video_hits(parts: Sequence[Part], hits: Hits) -> tuple[VideoHit, ...]:
    """Return the videos of stretches, each by its best stretch, best first."""
    found: dict[tuple[int, int], VideoHit] = {}
    for segment_number, stretch, score, similarity, words, best in zip(
        *(column.tolist() for column in hits), strict=True
    ):
        segment = parts[segment_number].segment
        number = int(segment.stretches.videos[stretch])
        if (segment_number, number) in found:
            continue
        video, first = segment.videos[number], int(segment.offsets[number])
        begin, end = (int(edge) - first for edge in segment.stretches.edges[stretch : stretch + 2])
        found[segment_number, number] = VideoHit(
            video,
            score,
            similarity,
            words,
            video.second(begin),
            video.second(end),
            best - first,
        )
    return tuple(found.values())
