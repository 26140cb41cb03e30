"""Distinct moments: they hardly overlap, none that could be shown is missing, none is made up."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import (
    CaptionedVideo,
    GranAlignError,
    Moment,
    MomentRetriever,
    Request,
    Rewrites,
    SearchResult,
    VideoIndex,
)
from granalign_fast.config import RetrieverConfig, preset
from granalign_fast.index.records import FrameTable
from granalign_fast.search.all_candidates import distinct_of_many
from granalign_fast.types import FrameSet, distinct_moments

QUERY = Rewrites("walk", ("walk on", "walk off"), ("walk up",))


class Recogniser:
    """Gives each frame of a video a probability that drifts from frame to frame."""

    def agnostic(self, frames: FrameSet) -> list[str]:
        return [""] * len(frames)

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        return [""] * len(frames)

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> np.ndarray:
        rng = np.random.default_rng(len(frames))
        drift = np.cumsum(rng.normal(size=(len(queries), len(frames))), axis=1)
        return (1 / (1 + np.exp(-drift))).astype(np.float32)


def walk(clips: int, seed: int, duration: float | None = None) -> VideoIndex:
    """Return an index whose captions drift, so that candidates of many lengths lie in each other.

    Args:
        clips: number of clips.
        seed: of the drift.
        duration: seconds, if the last clip is shorter.
    """
    rng = np.random.default_rng(seed)
    rows = np.cumsum(rng.normal(size=(clips, 64)) / 2, axis=0) + rng.normal(size=(clips, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    video = CaptionedVideo(f"walk-{seed}", ("a walk",) * clips, 2.0, duration)
    frames = FrameTable(2.0 * np.arange(clips), tuple(map(str, range(clips))))
    return VideoIndex(video, rows, frames)


def results(name: str, clips: int, **changes: float) -> list[SearchResult]:
    config = replace(preset(name), **changes)
    captioner = Recogniser() if name == "recognition" else None
    retriever = MomentRetriever(BagOfWords(), config, captioner=captioner)
    indexes = [walk(clips, seed, 2 * clips - 0.5) for seed in range(6)]
    return retriever.search_many([Request(index, QUERY) for index in indexes])


def shared(one: Moment, other: Moment) -> float:
    """The measure, in the words of the documentation."""
    seconds = min(one.end, other.end) - max(one.start, other.start)
    return max(0.0, seconds) / min(one.end - one.start, other.end - other.start)


@pytest.mark.parametrize("name", ["tuned", "single", "paper", "recognition"])
@pytest.mark.parametrize("clips", [1, 2, 9, 75, 400])
def test_the_best_that_hardly_overlap_are_chosen_from_all(name: str, clips: int) -> None:
    for result in results(name, clips):
        assert result.rank_all is not None
        ranked = result.rank_all(result)
        assert tuple(ranked[: len(result.moments)]) == result.moments
        for top in (1, 5, 50):
            chosen = result.distinct(top)
            assert len(chosen) <= top
            assert all(shared(a, b) <= 0.3 for a, b in itertools.combinations(chosen, 2))
            # Best first, and nothing was passed over without a reason.
            positions = [ranked.index(moment) for moment in chosen]
            assert positions == sorted(positions) and positions[0] == 0
            last = positions[-1] if len(chosen) == top else len(ranked)
            for position in set(range(last)) - set(positions):
                better = [ranked[p] for p in positions if p < position]
                assert any(shared(ranked[position], one) > 0.3 for one in better)


def test_five_are_distinct_although_the_scored_list_holds_fewer() -> None:
    more = 0
    for result in results("tuned", 400):
        in_the_list = distinct_moments(result.moments, 5)
        assert result.rank_all is not None
        assert len(result.moments) == min(len(result.rank_all(result)), 10)
        assert len(result.distinct(5)) >= len(in_the_list)
        more += len(result.distinct(5)) == 5 > len(in_the_list)
    assert more, "the choice is made before the list is cut to its first ten"


def test_the_scored_list_is_as_long_as_configured() -> None:
    for top in (1, 3, 30):
        for result, more in zip(results("tuned", 75, top=top), results("tuned", 75), strict=True):
            assert len(result.moments) <= top
            assert result.moments[:10] == more.moments[: len(result.moments)]
            assert result.distinct() == more.distinct()


def test_answers_that_all_begin_at_the_start_are_one() -> None:
    """Five answers to one query, as a person met them: each begins at 0:00."""
    ranked = [Moment(0.0, end, 0.9) for end in (4.0, 8.0, 12.0, 2.0, 22.0)]
    assert distinct_moments(ranked, 5) == (ranked[0],)
    behind = Moment(22.0, 30.0, 0.1)
    assert distinct_moments([*ranked, behind], 5) == (ranked[0], behind)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 4), (0, 22), 1.0),
        ((0, 10), (7, 17), 0.3),
        ((0, 10), (10, 20), 0.0),
        ((0, 10), (12, 20), 0.0),
        ((5, 5), (0, 10), 0.0),
    ],
)
def test_overlap(one: tuple[float, float], other: tuple[float, float], expected: float) -> None:
    first, second = Moment(*one, 1.0), Moment(*other, 0.5)
    assert first.overlap(second) == second.overlap(first) == pytest.approx(expected)


def test_a_result_is_what_it_was_after_a_trip_to_another_process() -> None:
    for result in results("tuned", 75):
        assert pickle.loads(pickle.dumps(result)).distinct(9) == result.distinct(9)


def test_a_result_made_by_hand_chooses_from_its_moments() -> None:
    curve = np.ones(5, np.float32)
    moments = (Moment(0, 4, 0.9), Moment(0, 6, 0.8), Moment(6, 8, 0.7))
    result = SearchResult("v", "q", moments, curve, curve[None])
    assert result.distinct() == (moments[0], moments[2])
    assert result._repr_html_().count("<td>") == 6


@pytest.mark.parametrize("top", [0, -1, 1.5, True, "5"])
def test_a_wrong_number_of_moments(top: object) -> None:
    (result, *_) = results("tuned", 9)
    with pytest.raises(GranAlignError, match=r"top: got .*, expected an integer from 1"):
        result.distinct(top)  # type: ignore[arg-type]


@pytest.mark.parametrize(("threshold", "absent"), [(0.0, False), (0.2, None), (1.0, True)])
def test_absence_is_a_matter_of_the_threshold(threshold: float, absent: bool | None) -> None:
    for result in results("recognition", 9, exists_threshold=threshold):
        assert result.exists is not None
        expected = result.exists < threshold if absent is None else absent
        assert result.probably_absent is expected
        assert ("probably not in this video" in result._repr_html_()) is expected


def test_without_a_judge_nothing_is_claimed() -> None:
    for result in results("tuned", 9, exists_threshold=1.0):
        assert result.exists is None and result.probably_absent is None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(value: float) -> None:
    with pytest.raises(GranAlignError, match=r"exists_threshold: got .*, expected a probability"):
        RetrieverConfig(exists_threshold=value)


@pytest.mark.parametrize("batch", [2, 256])
def test_many_results_have_the_lists_of_each(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Videos of different lengths, other numbers of curves, recognition, and a bare result."""
    monkeypatch.setattr("granalign_fast.search.all_candidates._BATCH", batch)
    retriever = MomentRetriever(BagOfWords(), replace(preset("tuned"), top=2))
    recognition = MomentRetriever(BagOfWords(), "recognition", captioner=Recogniser())
    videos = [walk(40 + 9 * seed, seed) for seed in range(6)]
    results = [retriever.search(video, QUERY) for video in videos]
    results += [retriever.search(video, "walk") for video in videos[:2]]
    results += [recognition.search(video, "walk") for video in videos[:2]]
    results.append(replace(results[0], rank_all=None))
    lists = distinct_of_many(results, 5)
    assert lists == [result.distinct(5) for result in results]
    assert any(len(moments) > 2 for moments in lists)
    assert distinct_of_many([], 5) == []


def test_more_moments_than_there_are_take_no_memory() -> None:
    """A million asked for: as many as there are, in arrays of as many."""
    retriever = MomentRetriever(BagOfWords(), config=replace(preset("tuned"), top=1_000_000))
    tracemalloc.start()
    result = retriever.search(walk(30, 1), QUERY)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1 < len(result.moments) < 1000
    assert most < 4_000_000


def test_a_number_of_moments_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(GranAlignError, match=r"^top: got 1000001, expected from 1 to 1,000,000$"):
        replace(preset("tuned"), top=1_000_001)
