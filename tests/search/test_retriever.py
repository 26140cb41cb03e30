from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import (
    CaptionedVideo,
    GranAlignError,
    MomentRetriever,
    Request,
    Rewrites,
    VideoIndex,
)
from granalign_fast.config import RetrieverConfig
from granalign_fast.search.clock import Span

STREET = CaptionedVideo(
    "street", ("a red car", "a red car", "a dog runs", "a dog runs fast", "a dog", "an empty road")
)
KITCHEN = CaptionedVideo("kitchen", ("a man cooks", "soup in a pot", "a man eats soup"), 4.0, 11.0)


@pytest.fixture(params=["paper", "tuned"])
def retriever(request):
    return MomentRetriever(BagOfWords(), request.param)


def same(a, b):
    return (
        a.vid == b.vid
        and a.query == b.query
        and a.moments == pytest.approx(b.moments)
        and np.array_equal(a.saliency, b.saliency)
    )


def test_finds_what_the_words_say(retriever):
    result = retriever.search(retriever.index(STREET), "the dog runs")
    best = result.moments[0]
    assert 4.0 <= best.start < best.end <= 10.0
    assert result.saliency.argmax() in (2, 3)
    assert list(result.moments) == sorted(result.moments, key=lambda m: -m.score)


def test_times_follow_the_clips_and_end_with_the_video(retriever):
    result = retriever.search(retriever.index(KITCHEN), "a man eats soup")
    assert result.moments[0].end == 11.0
    assert all(m.start in (0.0, 4.0, 8.0) for m in result.moments)


def test_many_searches_equal_single_ones(retriever):
    street, kitchen = retriever.index_many([STREET, KITCHEN])
    requests = [
        Request(street, Rewrites("a red car")),
        Request(kitchen, Rewrites("soup", ("a pot of soup",))),
        Request(street, Rewrites("dog", ("a dog", "one dog"), ("a dog that runs fast",))),
        Request(kitchen, Rewrites("soup", ("a pot of soup",)), {1: "hot soup boils in a pot"}),
        Request(kitchen, Rewrites("man", ("cook",))),
    ]
    together = retriever.search_many(requests)
    for request, result in zip(requests, together, strict=True):
        alone = retriever.search(request.index, request.query, aware=request.aware)
        assert same(alone, result)


def test_permuting_requests_permutes_results(retriever):
    street, kitchen = retriever.index_many([STREET, KITCHEN])
    requests = [
        Request(index, Rewrites(text))
        for index, text in [(street, "a dog"), (kitchen, "a man"), (street, "a car")]
    ]
    straight = retriever.search_many(requests)
    backwards = retriever.search_many(requests[::-1])
    assert all(same(a, b) for a, b in zip(straight, backwards[::-1], strict=True))


def test_no_requests(retriever):
    assert retriever.search_many([]) == []


def test_detailed_rewrites_meet_aware_captions(retriever):
    """Only the aware caption of clip 5 fits; simplified rewrites are not compared with it."""
    index = retriever.index(STREET)
    aware = {5: "a small white cat sits under a tree"}
    detailed = retriever.search(
        index, Rewrites("cat", (), ("a white cat under a tree",)), aware=aware
    )
    simplified = retriever.search(
        index, Rewrites("cat", ("a white cat under a tree",)), aware=aware
    )
    assert detailed.saliency.argmax() == 5
    assert simplified.saliency[5] < detailed.saliency[5]


def test_stages_are_timed(retriever):
    seconds: dict[str, float] = {}
    retriever.search_many([Request(retriever.index(STREET), Rewrites("a dog"))], seconds=seconds)
    assert list(seconds) == ["embed", "context", "similarity", "proposals", "nms", "results"]


def test_spans_of_stages(retriever):
    """Laps follow each other without a gap, and their sums are the seconds."""
    seconds: dict[str, float] = {}
    spans: list[Span] = []
    requests = [Request(retriever.index(STREET), text) for text in ("a dog", "a red car at dusk")]
    retriever.search_many(requests, seconds=seconds, spans=spans)
    assert {span.stage for span in spans} == set(seconds) > {"rewrite", "embed", "nms"}
    assert all(0 <= span.begin <= span.end for span in spans)
    for stage, taken in seconds.items():
        durations = [span.end - span.begin for span in spans if span.stage == stage]
        assert sum(durations) == pytest.approx(taken)
    laps = spans[1:]  # after the first, the search waits for the concurrent stages
    assert all(one.end == other.begin for one, other in pairwise(laps))


def test_top_bounds_the_moments():
    retriever = MomentRetriever(BagOfWords(), RetrieverConfig(top=1))
    assert len(retriever.search(retriever.index(STREET), "a dog").moments) == 1


def test_submission_record():
    retriever = MomentRetriever(BagOfWords())
    record = retriever.search(retriever.index(STREET), "a dog").to_record()
    assert list(record) == ["query", "vid", "pred_relevant_windows", "pred_saliency_scores"]
    assert len(record["pred_saliency_scores"]) == len(STREET.captions)


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(retriever, query):
    with pytest.raises(GranAlignError, match=r"query: got .*expected a text that is not empty"):
        retriever.search(retriever.index(STREET), query)


def test_nan_is_an_error_that_names_video_and_clip(retriever):
    index = retriever.index(STREET)
    embeddings = index.embeddings.copy()
    embeddings[3, 0] = np.nan
    with pytest.raises(GranAlignError, match=r"video 'street', query 'dog': .*NaN"):
        retriever.search(VideoIndex(STREET, embeddings), "dog")


def test_an_index_of_another_encoder_is_refused(retriever):
    index = VideoIndex(STREET, np.eye(6, 5, dtype=np.float32))
    with pytest.raises(
        GranAlignError, match="'street': got caption embeddings of 5 numbers, expected 64"
    ):
        retriever.search(index, "dog")


def test_an_aware_caption_outside_the_video_is_refused(retriever):
    with pytest.raises(GranAlignError, match="aware caption of clip 6 in 'street'"):
        retriever.search(retriever.index(STREET), "dog", aware={6: "a dog"})


def test_unknown_preset():
    with pytest.raises(GranAlignError, match="preset: got 'best', expected one of: paper, tuned, "):
        MomentRetriever(BagOfWords(), "best")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vid": 3}, "vid: got 3"),
        ({"vid": " "}, "vid: got ' '"),
        ({"captions": ()}, "got none, expected a text for each clip"),
        ({"captions": ("a", 7)}, "caption 1 of 'v': got 7"),
        ({"captions": "abc"}, "captions of 'v': got 'abc', expected a list of texts"),
        ({"clip_seconds": 0}, "clip_seconds of 'v': got 0"),
        ({"clip_seconds": float("nan")}, "clip_seconds of 'v': got nan"),
        ({"duration": 2.0}, "2 clips of 2.0 s, but the video ends at 2.0 s"),
        ({"duration": "3"}, "duration of 'v': got '3'"),
    ],
)
def test_bad_videos_are_named(change, message):
    with pytest.raises(GranAlignError, match=message):
        CaptionedVideo(**({"vid": "v", "captions": ("a", "b")} | change))


def test_lists_of_texts_become_tuples():
    assert CaptionedVideo("v", ["a", "b"]) == CaptionedVideo("v", ("a", "b"))
    lists = Rewrites("a", ["b"], ["c"], ["d"], ["e"])
    assert lists == Rewrites("a", ("b",), ("c",), ("d",), ("e",))
    assert hash(lists)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"simplified": "a dog"}, "simplified: got 'a dog', expected a list of texts"),
        ({"detailed": "a dog"}, "detailed: got 'a dog'"),
        ({"entities": "a dog"}, "entities: got 'a dog'"),
        ({"actions": None}, "actions: got None"),
        ({"simplified": ("a", 7)}, "simplified rewrite: got 7"),
        ({"fallbacks": "1"}, "fallbacks: got '1', expected an integer from 0"),
        ({"fallbacks": -1}, "fallbacks: got -1"),
        ({"fallbacks": True}, "fallbacks: got True"),
    ],
)
def test_bad_rewrites_are_named(change, message):
    with pytest.raises(GranAlignError, match=message):
        Rewrites(**({"query": "a dog"} | change))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("power", 0.0),
        ("nms_threshold", 1.5),
        ("nms_threshold", 0.0),
        ("top", 0),
        ("key_frames", 0),
        ("key_frames", 1.1),
        ("exists_frames", 0),
    ],
)
def test_bad_configs_are_named(field, value):
    with pytest.raises(GranAlignError, match=f"{field}: got {value}"):
        RetrieverConfig(**{field: value})
