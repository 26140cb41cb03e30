"""One bad request among others: it fails alone, and no other error names it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import CaptionedVideo, GranAlignError, MomentRetriever, Request, VideoIndex
from granalign_fast.language.rewriters import RuleRewriter
from granalign_fast.library import Library, LibraryResult
from granalign_fast.types import Rewrites, SearchResult

WORDS = ("a red car", "a dog runs", "a man cooks", "soup in a pot", "an empty road")


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("preset", ["paper", "tuned"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_request_fails_alone(preset: str, value: float) -> None:
    retriever = MomentRetriever(BagOfWords(), preset)
    indexes = [
        retriever.index(CaptionedVideo(f"video{number}", WORDS[: 2 + number % 4]))
        for number in range(9)
    ]
    requests = [Request(index, query) for index in indexes for query in ("a dog", "red soup")]
    expected = retriever.search_many(requests)
    # 1. Two indexes that are no numbers, one of another encoder, and a caption of no clip.
    for number in (3, 4):
        rows = indexes[number].caption_embeddings.copy()
        rows[1, 2] = value
        indexes[number] = VideoIndex(indexes[number].video, rows)
    indexes[7] = VideoIndex(
        indexes[7].video, np.eye(len(indexes[7].video.captions or ()), 5, dtype="f4")
    )
    spoilt = [Request(index, query) for index in indexes for query in ("a dog", "red soup")]
    spoilt[0] = Request(indexes[0], "a dog", {99: "a cat"})
    bad = {0, 6, 7, 8, 9, 14, 15}
    # 2. All of them together, as a service would send them.
    found = retriever.search_many(spoilt, return_errors=True)
    for number, (one, right) in enumerate(zip(found, expected, strict=True)):
        if number in bad:
            assert isinstance(one, GranAlignError)
            names = [f"video{other}" for other in range(9) if f"video{other}" in str(one)]
            assert names == [f"video{number // 2}"]
        else:
            assert isinstance(one, SearchResult)
            assert one.moments == right.moments
            np.testing.assert_array_equal(one.saliency, right.saliency)
    # 3. Without the switch, the first error is raised.
    with pytest.raises(GranAlignError):
        retriever.search_many(spoilt)
    assert retriever.search_many([], return_errors=True) == []


def test_one_bad_query_of_a_library_fails_alone() -> None:
    class Rewriter(RuleRewriter):
        def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
            if any("too long" in query for query in queries):
                raise GranAlignError("query 'too long': got 9,999 tokens")
            return super().rewrite(queries)

    retriever = MomentRetriever(BagOfWords(), rewriter=Rewriter())
    videos = [CaptionedVideo(f"video{number}", WORDS[: 2 + number % 4]) for number in range(5)]
    library = Library.of(retriever.index_many(videos), retriever)
    queries = ["a dog", "soup", "too long", "a car", "an empty road"]
    found = library.search_many(queries, return_errors=True)
    assert isinstance(found[2], GranAlignError) and "too long" in str(found[2])
    for number in (0, 1, 3, 4):
        one, right = found[number], library.search(queries[number])
        assert isinstance(one, LibraryResult) and one.moments == right.moments
    with pytest.raises(GranAlignError, match="too long"):
        library.search_many(queries)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_one_bad_video_of_a_library_costs_itself() -> None:
    retriever = MomentRetriever(BagOfWords())
    videos = [CaptionedVideo(f"video{number}", WORDS) for number in range(5)]
    indexes = {one.video.vid: one for one in retriever.index_many(videos)}
    library = Library.of(list(indexes.values()), retriever)
    spoilt = library._given["video3"]  # type: ignore[index]
    spoilt.caption_embeddings.setflags(write=True)
    spoilt.caption_embeddings[1, 2] = np.nan
    for result in library.search_many(["a dog", "soup", "a red car"]):
        assert set(result.errors) == {"video3"}
        assert {moment.vid for moment in result.moments} <= indexes.keys()
        assert all("video3" in text for text in result.errors.values())
