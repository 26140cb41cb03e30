"""A library: many videos, searched in two stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, overload

import numpy as np

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.index import VideoIndex
from granalign_fast.index.media import with_media, with_store
from granalign_fast.search.clock import Clock
from granalign_fast.search.isolation import search_each
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Rewrites

from .catalogue import Catalogue, Progress, temporary_catalogue
from .comparable import Comparable
from .filters import Filters
from .first_stage import Part, Ranked, Texts, first_stage
from .index_cache import IndexCache
from .opening import open_library_catalogue
from .records import CataloguedVideo, rows_of
from .refinement import Refinement, deadline, refine_in_steps, refine_together, step_of
from .results import LibraryResult, Stretch, VideoHit
from .spaces import Spaces
from .tags import read_tags

_CACHE_BYTES = 1 << 27
"""Bytes of indexes that stay in memory after a search, 128 MiB: a thousand videos of 150 seconds,
by MiniLM."""
_QUERIES = 256
"""Queries that are searched together, which bounds their results in memory."""
_STRETCHES = 400
"""Stretches of an answer of the first stage, of which a long video can have several."""
_VIDEOS = 100
"""Videos of an answer, or as many as the second stage is to search."""


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
        media: str | Path | None = None,
    ) -> None:
        """Use an open catalogue; `open` and `of` are the usual ways.

        Args:
            catalogue: of the videos.
            retriever: as for `open`.
            indexes: of all videos by id, if they are in memory.
            media: as for `open`.
        """
        self.folder = catalogue.folder
        self.retriever = retriever
        self.catalogue = catalogue
        self._given = indexes
        self._media = media
        self.cache = IndexCache(_CACHE_BYTES)
        """Indexes that stay in memory after a search; libraries may share one."""
        self._comparable: Comparable | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        retriever: Retriever,
        *,
        media: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Library:
        """Open a folder of indexes, and bring its catalogue up to date.

        Args:
            folder: what ``granalign index`` wrote; also the address of a prefix in an object store,
                such as ``s3://bucket/library``. Its catalogue is then copied to the user's cache,
                and each index when it is needed.
            retriever: its encoder must be the one that embedded the captions. Its other models
                serve the second stage.
            media: a folder of the video files, if they are not where the indexes say; or the
                address of videos in another bucket than the library. See `with_media`.
            progress: called with the number of indexes that were read into the catalogue, and of
                all that are to be.

        Raises:
            GranAlignError: the folder is missing or holds no index.
        """
        catalogue = open_library_catalogue(folder, progress=progress)
        if not any(catalogue.live) and not catalogue.damaged:
            raise GranAlignError(
                f"{folder}: got no indexes, expected a folder of them; name a folder that "
                f"`granalign index` wrote"
            )
        return cls(catalogue, retriever, media=media)

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
        overlapping: bool = False,
    ) -> LibraryResult:
        """Return the moments of all videos that fit a query.

        Args:
            query: a plain text, which is rewritten first, or `Rewrites`.
            top: most moments.
            refine: how many videos the second stage searches.
            budget: seconds after which the second stage ends; None for no limit. A search of one
                video that has begun is not broken off.
            filters: which videos are searched; None for all.
            overlapping: whether moments of one video may overlap, as in the lists that benchmarks
                score. Otherwise they hardly do, which people prefer to look at.

        Raises:
            GranAlignError: an argument is of the wrong type or out of range.
        """
        until = deadline(budget)
        (refinement,) = self._first_stage([query], top, refine, filters, overlapping)
        for _ in refine_in_steps(refinement, self.retriever, self._load, until):
            pass
        return refinement.answer(self._load)

    @overload
    def search_many(
        self,
        queries: Sequence[str | Rewrites],
        *,
        top: int = 10,
        refine: int = 20,
        filters: Filters | None = None,
        overlapping: bool = False,
        return_errors: Literal[False] = False,
    ) -> list[LibraryResult]: ...

    @overload
    def search_many(
        self,
        queries: Sequence[str | Rewrites],
        *,
        top: int = 10,
        refine: int = 20,
        filters: Filters | None = None,
        overlapping: bool = False,
        return_errors: Literal[True],
    ) -> list[LibraryResult | GranAlignError]: ...

    def search_many(
        self,
        queries: Sequence[str | Rewrites],
        *,
        top: int = 10,
        refine: int = 20,
        filters: Filters | None = None,
        overlapping: bool = False,
        return_errors: bool = False,
    ) -> list[LibraryResult] | list[LibraryResult | GranAlignError]:
        """Return the moments for each query; the queries share a pass over the clips.

        Arguments and errors are those of `search`. With `return_errors`, a query that fails, such
        as one that is too long for a model, has its error in the place of its result.
        """
        if isinstance(queries, str | Rewrites):
            raise GranAlignError("queries: got one query, expected a list; put it into a list")

        def search(some: Sequence[str | Rewrites]) -> list[LibraryResult]:
            found = self._first_stage(some, top, refine, filters, overlapping)
            refine_together(found, self.retriever, self._load)
            return [one.answer(self._load) for one in found]

        rounds = [queries[begin : begin + _QUERIES] for begin in range(0, len(queries), _QUERIES)]
        if return_errors:
            return [one for some in rounds for one in search_each(some, search)]
        return [one for some in rounds for one in search(some)]

    def stages(
        self,
        query: str | Rewrites,
        *,
        top: int = 10,
        refine: int = 20,
        budget: float | None = None,
        filters: Filters | None = None,
        overlapping: bool = False,
    ) -> Iterator[LibraryResult]:
        """Yield the answer of the first stage at once, then a better one after each refinement.

        Arguments and errors are those of `search`, whose answer is the last one.
        """
        until = deadline(budget)
        (refinement,) = self._first_stage([query], top, refine, filters, overlapping)
        yield refinement.answer(self._load)
        for _ in refine_in_steps(refinement, self.retriever, self._load, until):
            yield refinement.answer(self._load)

    def begin(
        self,
        queries: Sequence[str | Rewrites],
        *,
        top: int = 10,
        refine: int = 20,
        filters: Filters | None = None,
        overlapping: bool = False,
    ) -> list[Refinement]:
        """Return the first stage of each query, which `advance` goes on from.

        A service needs these steps: between them queries come and go. Arguments and errors are
        those of `search`.
        """
        return self._first_stage(queries, top, refine, filters, overlapping)

    def advance(self, refinements: Sequence[Refinement], *, limited: bool = False) -> None:
        """Search the next videos of several queries together, or all that are left.

        Args:
            refinements: what `begin` returned, also at different times.
            limited: search a few videos, because the time is limited. With models that look at
                frames it is one of each query in any case.
        """
        step = step_of(self.retriever, limited=limited)
        refine_together(refinements, self.retriever, self._load, step)

    def answer(self, refinement: Refinement) -> LibraryResult:
        """Return the answer to a query with the videos that have been searched so far."""
        return refinement.answer(self._load)

    def _first_stage(
        self,
        queries: Sequence[str | Rewrites],
        top: int,
        refine: int,
        filters: Filters | None,
        overlapping: bool,
    ) -> list[Refinement]:
        """Rewrite and embed the queries, and compare them with all clips."""
        for name, value, least in (("top", top, 1), ("refine", refine, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise GranAlignError(
                    f"{name}: got {short_repr(value)}, expected an integer from {least}"
                )
        seconds: dict[str, float] = {}
        clock = Clock(seconds, None)
        if not queries:
            return []
        # 1. Rewrite the queries that come as plain texts, in one batch.
        plain = [query for query in queries if not isinstance(query, Rewrites)]
        written = iter(self.retriever.rewriter.rewrite(plain) if plain else ())
        rewrites = [one if isinstance(one, Rewrites) else next(written) for one in queries]
        clock.lap("rewrite")
        # 2. Embed every text once.
        spaces = Spaces(self.retriever)
        texts = spaces.embed(rewrites)
        clock.lap("embed")
        # 3. Choose the videos, and find the best stretches of each query.
        known = self._known(spaces, texts[0])
        filters = filters or Filters()
        tags = read_tags(self.folder) if filters.tags and self._given is None else {}
        parts, left_out = known.parts(filters, tags)
        videos, device = max(_VIDEOS, refine), self.retriever.device
        most = max(_STRETCHES, refine) if any(part.is_long for part in parts) else videos
        share = self.retriever.config.approximate
        weight = spaces.frames_weight
        ranked = first_stage(parts, texts, most, weight, known.collection, device, share)
        clock.lap("first_stage")
        searched = sum(int(part.chosen.sum()) for part in parts)
        refinements = []
        for query, one, found in zip(rewrites, texts, ranked, strict=True):
            hits = _video_hits(parts, found, videos)
            result = LibraryResult(
                query, (), hits, searched, left_out, complete=False, seconds=seconds
            )
            refinements.append(Refinement(result, one, top, refine, overlapping=overlapping))
        return refinements

    def _known(self, spaces: Spaces, texts: Texts) -> Comparable:
        """Return which videos of the catalogue can be compared with queries such as one."""
        known = self._comparable
        if known is None or not known.suits(self.catalogue, texts):
            known = self._comparable = Comparable(self.catalogue, spaces, texts)
        return known

    def take_up(self, catalogue: Catalogue) -> None:
        """Search another catalogue of the same folder from now on; call it between two searches.

        Indexes of videos that it does not have, and those of earlier indexings, leave the cache.
        """
        self.catalogue, self._comparable = catalogue, None
        self.cache.keep(catalogue.videos())

    def _load(self, video: CataloguedVideo) -> VideoIndex:
        """Return the index of a video, from memory if it was used lately.

        Raises:
            GranAlignError: it was removed, damaged or made anew since the catalogue was opened.
        """
        if self._given is not None:
            return self._given[video.vid]
        return self.cache.get_or_load(video, lambda: self._read(video))

    def _read(self, video: CataloguedVideo) -> VideoIndex:
        """Read the index of a video; errors are those of `_load`."""
        index = VideoIndex.load(self.catalogue.index_folder(video))
        if not video.is_of(index):
            raise GranAlignError(
                f"video {video.vid!r}: was indexed again since the library was opened; open the "
                f"library again"
            )
        if self.catalogue.remote is not None:
            index = with_store(index, self.catalogue.remote.address)
        if self._media is not None:
            with suppress(GranAlignError):  # not there: the path of the index may do
                index = with_media(index, self._media)
        return index


def _video_hits(parts: Sequence[Part], ranked: Ranked, most: int) -> tuple[VideoHit, ...]:
    """Return the videos of stretches, each by its best stretch, best first."""
    hits = ranked.hits
    owners, begins, ends, scores = (
        column.tolist()
        for column in (
            np.stack([hits.parts, hits.videos], 1),
            hits.begins,
            hits.ends,
            ranked.scores,
        )
    )
    # 1. The places of each video's stretches, best first.
    places: dict[tuple[int, int], list[int]] = {}
    for place, (part, number) in enumerate(owners):
        places.setdefault((part, number), []).append(place)
    # 2. The first videos.
    found = []
    for (part, number), own in itertools.islice(places.items(), most):
        video, best = parts[part].segment.videos[number], own[0]
        found.append(
            VideoHit(
                video,
                scores[best],
                float(ranked.similarity[best]),
                float(hits.words[best]),
                video.second(begins[best]),
                video.second(ends[best]),
                int(hits.best[best]),
                tuple(Stretch(begins[place], ends[place], scores[place]) for place in own),
            )
        )
    return tuple(found)
