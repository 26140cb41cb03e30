"""The search of a library, by an encoder that counts words."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords
from helpers.libraries import write_index

from granalign_fast.datasets import AnnotatedQuery
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.library import Filters, Library
from granalign_fast.library import first_stage as module
from granalign_fast.library.evaluation import evaluate_corpus
from granalign_fast.library.index_cache import IndexCache, index_bytes
from granalign_fast.library.similarities import best_means
from granalign_fast.library.upkeep import remove_videos, tag_videos
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Moment, Rewrites, distinct_moments

PLAIN = "a man sits"


def captions(clips: int, shown: str, begin: int, end: int) -> tuple[str, ...]:
    return tuple(shown if begin <= clip < end else PLAIN for clip in range(clips))


SCENES = {
    "street": captions(60, "a red car", 10, 16),
    "yard": captions(40, "two dogs run", 20, 26),
    "kitchen": captions(30, "a woman cuts a red onion", 3, 9),
    "day": captions(3000, "a white horse jumps", 2500, 2506),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for number, (name, texts) in enumerate(SCENES.items()):
        write_index(folder / name, len(texts), seed=number, captions=texts)
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library.open(folder, Retriever(BagOfWords()))


@pytest.mark.parametrize(
    ("query", "vid", "start", "end"),
    [
        ("a red car", "street", 20, 32),
        ("dogs", "yard", 40, 52),
        ("woman cuts onion", "kitchen", 6, 18),
        ("horse jumps", "day", 5000, 5012),
    ],
)
def test_finds_the_video_and_the_moment(
    library: Library, query: str, vid: str, start: float, end: float
) -> None:
    result = library.search(query)
    assert result.searched == 4
    assert result.complete
    assert not result.errors
    best = result.moments[0]
    assert (best.vid, best.refined) == (vid, True)
    assert abs(best.start - start) <= 4
    assert abs(best.end - end) <= 4
    assert best.caption == SCENES[vid][round(start / 2)]
    hit = result.videos[0]
    assert hit.video.vid == vid
    # Of a video of hours, it names the minutes.
    assert hit.start <= start < hit.end <= hit.start + 152
    assert [moment.score for moment in result.moments] == sorted(
        (moment.score for moment in result.moments), reverse=True
    )


def test_moments_of_a_video_hardly_overlap_unless_asked_for(library: Library) -> None:
    shown, scored = (
        [
            Moment(one.start, one.end, one.score)
            for one in library.search("a red car", top=10, overlapping=overlapping).moments
            if one.vid == "street"
        ]
        for overlapping in (False, True)
    )
    found = library.retriever.search(VideoIndex.load(library.folder / "street"), "a red car")
    assert tuple(shown) == distinct_moments(shown, 10)
    assert tuple(scored) != distinct_moments(scored, 10)
    assert shown[0] == scored[0]
    spans = [(one.start, one.end) for one in found.moments]
    assert [(one.start, one.end) for one in scored] == spans[: len(scored)]


def test_stages_come_one_after_another(library: Library) -> None:
    stages = list(library.stages("a red car", refine=4, budget=100.0))
    assert [stage.complete for stage in stages][-1]
    first, *_, last = stages
    assert not first.complete
    assert not any(moment.refined for moment in first.moments)
    # What stands in for the second stage is the run of clips around the best one.
    assert (first.moments[0].start, first.moments[0].end) == (20.0, 32.0)
    assert all(moment.refined for moment in last.moments)
    assert [hit.video.vid for hit in first.videos] == [hit.video.vid for hit in last.videos]


def test_what_is_not_reached_is_marked(library: Library) -> None:
    result = library.search("a red car", refine=1, top=20)
    assert {moment.vid for moment in result.moments if moment.refined} == {"street"}
    assert {moment.vid for moment in result.moments if not moment.refined} >= {"kitchen"}
    assert result.complete
    result = library.search("a red car", budget=0.0)
    assert not result.complete
    assert not any(moment.refined for moment in result.moments)


def test_many_queries_at_once_give_what_each_alone_gives(library: Library) -> None:
    queries: Sequence[Any] = ["a red car", Rewrites("a dog", ("dogs run",)), "horse"]
    for query, together in zip(queries, library.search_many(queries), strict=True):
        alone = library.search(query)
        assert together.moments == alone.moments
        assert together.query == alone.query


def test_many_queries_read_a_video_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library.open(folder, Retriever(BagOfWords()))
    read: list[str] = []
    load = VideoIndex.load

    def counting(path: Path) -> VideoIndex:
        read.append(path.name)
        return load(path)

    monkeypatch.setattr(VideoIndex, "load", staticmethod(counting))
    library.cache = IndexCache(1)
    queries = ["a red car", "two dogs run", "a white horse jumps"]
    results = library.search_many(queries, refine=4)
    assert sorted(read) == sorted(SCENES)
    assert [result.moments[0].vid for result in results] == ["street", "yard", "day"]


def test_each_text_is_embedded_once_for_both_stages(folder: Path) -> None:
    embedded: list[str] = []

    class Counting(BagOfWords):
        def encode(self, texts: Sequence[str], **options: Any) -> Any:
            embedded.extend(texts)
            return super().encode(texts, **options)

    library = Library.open(folder, Retriever(Counting()))
    library.search_many([Rewrites("a red car", ("car", "red")), Rewrites("two dogs", ("red",))])
    assert sorted(embedded) == ["a red car", "car", "red", "two dogs"]


def test_filters_choose_before_the_search(folder: Path, library: Library) -> None:
    tag_videos(folder, ["yard", "kitchen"], ["mine"])
    result = library.search("a red car", filters=Filters(tags=["mine"]))
    assert result.searched == 2
    assert result.left_out == {"not chosen by the filters": 2}
    assert {hit.video.vid for hit in result.videos} == {"yard", "kitchen"}
    result = library.search("a red car", filters=Filters(videos=["d*"], min_length=3600))
    assert {hit.video.vid for hit in result.videos} == {"day"}
    nothing = library.search("a red car", filters=Filters(videos=["none"]))
    assert (nothing.searched, nothing.moments, nothing.videos) == (0, (), ())


def test_scattered_videos_are_searched_as_joined_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        write_index(tmp_path / f"v{number}", 20, seed=number)
    library = Library.open(tmp_path, Retriever(BagOfWords()))
    filters = Filters(videos=["v[13579]"])
    joined = library.search("a red dog jumps", filters=filters)
    monkeypatch.setattr(module, "ALL_COMPARED", 0)
    assert library.search("a red dog jumps", filters=filters).moments == joined.moments
    monkeypatch.setattr(module, "_MOST_RANGES", 1)
    monkeypatch.setattr(module, "_GATHERED", 30)
    monkeypatch.setattr(module, "MOST", 7)
    scattered = library.search("a red dog jumps", filters=filters)
    assert scattered.moments == joined.moments


def test_the_best_stretches_are_chosen_among_many(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of fewer stretches than there are has the best of them, with the same scores."""
    every = library.search("a white horse jumps on two dogs", refine=0)
    monkeypatch.setattr("granalign_fast.library.library._STRETCHES", 3)
    few = library.search_many(["a white horse jumps on two dogs", "a car"], refine=0)[0]
    assert 1 < len(few.videos) < len(every.videos)
    # The other stretches of a video are among those that were left out.
    assert [replace(hit, stretches=()) for hit in few.videos] == [
        replace(hit, stretches=()) for hit in every.videos[: len(few.videos)]
    ]


def test_the_first_stage_is_that_of_plain_loops(library: Library) -> None:
    """The weighted mean of each text's five best cosines in each stretch of each video."""
    query = Rewrites("a red car", ("red", "car on a street"))
    result = library.search(query, refine=0)
    texts = BagOfWords().encode([query.query, *query.simplified])
    assert len(result.videos) == 4
    for hit in result.videos:
        index = VideoIndex.load(library.folder / hit.video.vid)
        rows = index.embeddings[round(hit.start / 2) : round(hit.end / 2)]
        best = [np.sort(rows.astype(np.float16) @ text)[-5:].mean() for text in texts]
        wanted = (3 * best[0] + best[1] + best[2]) / 5
        assert abs(hit.similarity - wanted) < 1e-3
        assert abs(hit.score - hit.similarity - 0.65 * hit.words) < 1e-6


def test_short_stretches_have_the_mean_of_what_they_have() -> None:
    cosines = np.array([[[0.2, 0.3, 0.4, 0.5, 0.6, 0.7]]], np.float32)
    np.testing.assert_allclose(best_means(cosines[..., :2]), [[0.25]], rtol=1e-6)
    np.testing.assert_allclose(best_means(cosines), [[0.5]], rtol=1e-6)


def test_a_video_of_another_encoder_is_left_out(tmp_path: Path) -> None:
    write_index(tmp_path / "one", 5, seed=1)
    write_index(tmp_path / "two", 5, seed=2, dim=8)
    library = Library.open(tmp_path, Retriever(BagOfWords()))
    assert library.search("a dog").left_out == {"embedded by another sentence encoder": 1}

    class Other(BagOfWords):
        fingerprint = "another"

    result = Library.open(tmp_path, Retriever(Other())).search("a dog")
    assert (result.searched, result.left_out) == (0, {"embedded by another sentence encoder": 2})


def test_a_video_that_goes_meanwhile_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "library"
    shutil.copytree(folder, copy)
    library = Library.open(copy, Retriever(BagOfWords()))
    remove_videos(copy, ["street"])
    result = library.search("a red car")
    assert "no such folder" in result.errors["street"]
    assert {moment.vid for moment in result.moments} == {"yard", "kitchen", "day"}
    again = Library.open(copy, Retriever(BagOfWords()))
    assert "street" not in {hit.video.vid for hit in again.search("a red car").videos}


@pytest.mark.parametrize("refine", [0, 4])
@pytest.mark.parametrize("dim", [None, 8])
def test_a_video_that_is_made_anew_meanwhile_costs_only_itself(
    folder: Path, tmp_path: Path, refine: int, dim: int | None
) -> None:
    """Its new index has fewer clips, or embeddings of another model."""
    copy = tmp_path / "library"
    shutil.copytree(folder, copy)
    library = Library.open(copy, Retriever(BagOfWords()))
    for vid in ("street", "day"):
        shutil.rmtree(copy / vid)
        write_index(copy / vid, 2 if dim is None else len(SCENES[vid]), seed=5, dim=dim)
    result = library.search("a red car", refine=refine)
    assert {moment.vid for moment in result.moments} == {"yard", "kitchen"}
    assert set(result.errors) == {"street", "day"}
    assert "was indexed again since the library was opened" in result.errors["street"]
    again = Library.open(copy, Retriever(BagOfWords())).search("a red car", refine=refine)
    assert not again.errors


def test_the_next_video_takes_the_place_of_one_that_cannot_be_read(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "library")
    library = Library.open(tmp_path / "library", Retriever(BagOfWords()))
    first, second, *_ = library.search("a red car", refine=0).moments
    shutil.rmtree(tmp_path / "library" / first.vid)
    library.cache.keep([])
    result = library.search("a red car", top=1, refine=0)
    assert result.moments == (second,) and set(result.errors) == {first.vid}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top": 0}, "top: got 0, expected an integer from 1"),
        ({"refine": -1}, "refine: got -1, expected an integer from 0"),
        ({"budget": -1.0}, "budget: got -1.0, expected seconds from 0"),
        ({"budget": "5"}, "budget: got '5', expected seconds from 0"),
        ({"query": " "}, "query: got ' '"),
    ],
)
def test_bad_arguments_are_named(library: Library, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        library.search(**{"query": "a dog", **arguments})


def test_an_empty_folder_is_no_library(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="got no indexes, expected a folder of them"):
        Library.open(tmp_path, Retriever(BagOfWords()))


def test_a_library_in_memory_is_searched_as_one_on_disk(library: Library, folder: Path) -> None:
    indexes = [VideoIndex.load(folder / vid) for vid in SCENES]
    assert Library.of(indexes, Retriever(BagOfWords())).search("a red car").moments == (
        library.search("a red car").moments
    )
    with pytest.raises(GranAlignError, match="got 5 of 4 ids, expected at least one index"):
        Library.of([*indexes, indexes[0]], library.retriever)


def test_evaluation_counts_what_the_search_finds(library: Library) -> None:
    queries = [
        AnnotatedQuery(1, "street", Rewrites("a red car"), windows=((20.0, 32.0),)),
        AnnotatedQuery(2, "yard", Rewrites("two dogs run"), windows=((40.0, 52.0),)),
        # The video does not show this one.
        AnnotatedQuery(3, "yard", Rewrites("a white horse jumps"), windows=((0.0, 4.0),)),
    ]
    done = []
    found = evaluate_corpus(library, queries, progress=lambda more, total: done.append(more))
    assert found.metrics["video-R@1"] == 66.67
    assert found.metrics["moment-R@1,IoU=0.5"] == 66.67
    assert found.counts == {"queries": 3, "videos": 4, "clips": 3130}
    assert set(found.seconds) == {"rewrite", "embed", "first_stage", "refine"}
    assert sum(done) == 3


def test_a_cache_of_indexes_keeps_the_last_used_ones(library: Library) -> None:
    first, second, third = library.videos()[:3]
    indexes = {video.vid: library._load(video) for video in (first, second, third)}
    sizes = {vid: index_bytes(index) for vid, index in indexes.items()}
    cache = IndexCache(sizes[first.vid] + sizes[third.vid])
    for video in (first, second, first, third):
        assert cache.get_or_load(video, lambda vid=video.vid: indexes[vid]) is indexes[video.vid]
    assert len(cache) == 2 and cache.nbytes == sizes[first.vid] + sizes[third.vid]
    assert cache.get_or_load(first, lambda: pytest.fail("read again")) is indexes[first.vid]
    anew = replace(first, stamp="another")
    assert cache.get_or_load(anew, lambda: indexes[second.vid]) is indexes[second.vid]


def test_short_videos_are_cut_to_those_of_an_answer(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each video is one stretch, no more stretches than videos of an answer are compared."""
    short = Filters(videos=["street", "yard", "kitchen"])
    whole = library.search("a red car", refine=2, filters=short)
    asked: list[int] = []
    search = module.first_stage

    def counting(parts: Any, texts: Any, most: int, *rest: Any) -> Any:
        asked.append(most)
        return search(parts, texts, most, *rest)

    monkeypatch.setattr("granalign_fast.library.library.first_stage", counting)
    monkeypatch.setattr("granalign_fast.library.library._VIDEOS", 2)
    few = library.search("a red car", refine=2, filters=short)
    library.search("a red car", refine=2)  # among others the video of 100 minutes
    assert asked == [2, 400]
    assert [hit.video for hit in few.videos] == [hit.video for hit in whole.videos[:2]]
    assert few.moments[0] == whole.moments[0]
