"""Searches that look at frames: key frames, aware captions, recognition; tables are the models."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords
from helpers.tiny_vlm import frames_of, write_unchecked_vlm

from granalign_fast import CaptionedVideo, GranAlignError, MomentRetriever, Request, Rewrites
from granalign_fast.config import RetrieverConfig
from granalign_fast.index import FrameTable, VideoIndex
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.search.clock import Span
from granalign_fast.search.key_frames import key_frames, mean_of_greatest
from granalign_fast.types import FrameSet

CAPTIONS = ("a car", "a car", "a dog", "a dog", "a dog", "a road", "a road", "a road")
DETAILS = ("red car", "blue car", "small dog", "dog with ball", "dog asleep", "wet road", "", " ")
FINGERPRINT = "frames-by-words"


class FramesByWords:
    """A stand-in for CLIP: the embedding of a frame is that of its text in `DETAILS`."""

    fingerprint = FINGERPRINT

    def encode_texts(self, texts: Sequence[str]) -> Any:
        return BagOfWords().encode(texts)


class TableCaptioner:
    """Reads captions from a table; hashes of frames are their numbers. Records its calls."""

    def __init__(self, details: Sequence[str] = DETAILS) -> None:
        self.details = details
        self.asked: list[tuple[list[int], tuple[str, ...]]] = []
        self.queries: list[tuple[list[int], tuple[str, ...]]] = []

    def agnostic(self, frames: FrameSet) -> list[str]:
        return [CAPTIONS[int(name)] for name in frames.hashes]

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        self.asked.append(([int(name) for name in frames.hashes], tuple(focus)))
        return [self.details[int(name)] for name in frames.hashes]


class TableRecogniser(TableCaptioner):
    """The probability of a yes is the share of the query's words in the frame's detail."""

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> Any:
        self.queries.append(([int(name) for name in frames.hashes], tuple(queries)))

        def share(query: str, detail: str) -> float:
            words = query.split()
            return sum(word in detail.split() for word in words) / len(words)

        rows = [[share(q, self.details[int(n)]) for n in frames.hashes] for q in queries]
        return np.array(rows, np.float32)


def index_of(vid: str = "v") -> VideoIndex:
    encoder = BagOfWords()
    table = FrameTable(
        times=np.arange(8) * 2.0,
        hashes=tuple(str(i) for i in range(8)),
        embeddings=encoder.encode(DETAILS),
    )
    return VideoIndex(
        CaptionedVideo(vid, CAPTIONS), encoder.encode(CAPTIONS), table, {"clip": FINGERPRINT}
    )


def retriever_of(captioner: Any, config: Any = "tuned", **changes: Any) -> MomentRetriever:
    return MomentRetriever(
        BagOfWords(), config, captioner=captioner, **({"frame_encoder": FramesByWords()} | changes)
    )


ASLEEP = Rewrites("dog asleep", ("a dog",), ("a dog asleep",), ("dog",), ("sleeps",))


def test_detailed_rewrites_meet_what_the_captioner_sees_in_key_frames() -> None:
    captioner = TableCaptioner()
    result = retriever_of(captioner).search(index_of(), ASLEEP)
    assert captioner.asked == [([2, 4], ("dog", "sleeps"))]  # a quarter of eight, by time
    assert result.aware == {2: "small dog", 4: "dog asleep"}
    assert result.saliency.argmax() == 4
    blind = MomentRetriever(BagOfWords()).search(index_of(), ASLEEP)
    assert blind.aware == {} and np.ptp(blind.saliency[2:5]) == 0
    assert result.rewrites is ASLEEP and result.exists is None
    assert {"key_frames", "aware", "similarity", "nms"} <= set(result.seconds)


def test_without_entities_the_query_is_the_focus() -> None:
    captioner = TableCaptioner()
    retriever_of(captioner).search(index_of(), Rewrites("wet road", (), ("a wet road",)))
    assert captioner.asked[0][1] == ("wet road",)


def test_empty_captions_leave_the_agnostic_ones_in_place() -> None:
    config = RetrieverConfig(key_frames=1.0)
    result = retriever_of(TableCaptioner(), config).search(index_of(), ASLEEP)
    assert sorted(result.aware) == [0, 1, 2, 3, 4, 5]


def test_no_caption_is_written_that_would_not_be_used() -> None:
    captioner = TableCaptioner()
    retriever = retriever_of(captioner)
    retriever.search(index_of(), Rewrites("dog", ("a dog",)))  # nothing detailed
    retriever.search(retriever.index(CaptionedVideo("v", CAPTIONS)), ASLEEP)  # no frames
    retriever.search(index_of(), ASLEEP, aware={2: "dog asleep"})  # captions of the caller's own
    assert captioner.asked == []


def test_without_clip_the_agnostic_captions_choose() -> None:
    captioner = TableCaptioner()
    retriever_of(captioner, frame_encoder=None).search(index_of(), ASLEEP)
    assert captioner.asked[0][0] == [2, 3]  # all dogs are equally near: the earlier ones


def test_plain_queries_are_rewritten_once() -> None:
    class Detailed:
        asked: list[str]

        def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
            self.asked = list(queries)
            return [Rewrites(query, (), (f"a {query}",), ("dog",)) for query in queries]

    rewriter, captioner = Detailed(), TableCaptioner()
    retriever = retriever_of(captioner, rewriter=rewriter)
    requests = [Request(index_of(), query) for query in ("dog asleep", "wet road", "dog asleep")]
    first, second, third = retriever.search_many([*requests[:2], requests[2]])
    assert rewriter.asked == ["dog asleep", "wet road"]
    assert first.moments == third.moments and second.query == "wet road"
    assert "rewrite" in first.seconds


def test_key_frames_are_prefilled_while_the_query_is_rewritten() -> None:
    class Prefilling(TableCaptioner):
        frame_capacity = 5

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[list[int]] = []
            self.prefilled = threading.Event()

        def prefill(self, frames: FrameSet) -> None:
            self.seen.append([int(name) for name in frames.hashes])
            self.prefilled.set()

    class Waiting:
        def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
            assert captioner.prefilled.wait(30)
            return [Rewrites(query, (), (f"a {query}",), ("dog",)) for query in queries]

    captioner = Prefilling()
    retriever = retriever_of(captioner, rewriter=Waiting())
    requests = [Request(index_of(vid), "dog asleep") for vid in "abc"]
    spans: list[Span] = []
    results = retriever.search_many(requests, spans=spans)
    when = {span.stage: span for span in spans}
    assert when["prefill"].begin < when["rewrite"].end == when["wait"].begin
    assert when["prefill"].end <= when["wait"].end == when["aware"].begin
    # Two key frames a video: those of the third do not fit in the cache of five.
    assert captioner.seen == [captioner.asked[0][0]] * 2
    assert "prefill" in results[0].seconds
    retriever.search(index_of(), ASLEEP)  # nothing is rewritten, so nothing is prefilled meanwhile
    assert len(captioner.seen) == 2


def test_a_lost_video_is_noticed_while_the_query_is_rewritten() -> None:
    class Blind(TableCaptioner):
        frame_capacity = 5

        def prefill(self, frames: FrameSet) -> None:
            frames.load([0])

    with pytest.raises(GranAlignError, match=r"video 'v': its frames are needed, and its"):
        retriever_of(Blind()).search(index_of(), "dog asleep")


def test_many_queries_meet_the_captioner_in_one_call() -> None:
    class Batched(TableCaptioner):
        calls = 0

        def aware_many(self, targets: Sequence[tuple[FrameSet, Sequence[str]]]) -> list[list[str]]:
            self.calls += 1
            return [self.aware(frames, focus) for frames, focus in targets]

    requests = [
        Request(index_of(), ASLEEP),
        Request(index_of(), Rewrites("dog", ("a dog",))),  # nothing detailed
        Request(index_of(), ASLEEP, aware={2: "dog asleep"}),
        Request(index_of(), Rewrites("wet road", (), ("a wet road",))),
    ]
    captioner, single = Batched(), retriever_of(TableCaptioner())
    found = retriever_of(captioner).search_many(requests)
    assert captioner.calls == 1 and len(captioner.asked) == 2
    for result, request in zip(found, requests, strict=True):
        alone = single.search_many([request])[0]
        assert (result.moments, result.aware) == (alone.moments, alone.aware)


def test_recognition_cuts_moments_out_of_probabilities() -> None:
    recogniser = TableRecogniser()
    retriever = retriever_of(recogniser, "recognition")
    other = index_of("w")
    requests = [
        Request(index_of(), "dog asleep"),
        Request(other, "red car"),
        Request(other, Rewrites("a wet road")),
        Request(other, "a green bird"),
    ]
    dog, car, road, bird = retriever.search_many(requests)
    assert dog.saliency.tolist() == [0, 0, 0.5, 0.5, 1, 0, 0, 0]
    assert 4.0 <= dog.moments[0].start < 10.0 <= dog.moments[0].end
    assert car.moments[0].start == 0.0 and car.vid == "w"
    assert dog.exists == pytest.approx(2 / 3) and bird.exists == 0.0
    assert road.exists == pytest.approx(2 / 9)
    assert len(recogniser.queries) == 2, "queries about one video are one call"
    assert recogniser.asked == []
    assert set(dog.seconds) == {"recognise", "proposals", "nms", "results"}
    alone = retriever.search(index_of(), "dog asleep")
    assert alone.moments == dog.moments and alone.exists == dog.exists
    assert retriever.search_many([]) == []


def test_captions_come_with_existence_where_the_captioner_recognises() -> None:
    recogniser = TableRecogniser()
    retriever = retriever_of(recogniser, RetrieverConfig(key_frames=0.25, exists_frames=1))
    there = retriever.search(index_of(), ASLEEP)
    absent = retriever.search(index_of(), Rewrites("a green bird"))
    # The query and its detailed rewrite, whose article the frame's words lack.
    assert there.exists == pytest.approx((1 + 2 / 3) / 2) and absent.exists == 0.0
    assert recogniser.queries[0][1] == ("dog asleep", "a dog asleep")
    assert recogniser.queries[0][0] == [2, 4]


def test_recognition_needs_a_recogniser() -> None:
    with pytest.raises(GranAlignError, match="got no captioner that recognises"):
        retriever_of(TableCaptioner(), "recognition")


def test_an_index_of_another_clip_is_refused() -> None:
    index = index_of()
    other = VideoIndex(index.video, index.embeddings, index.frames, {"clip": "other"})
    with pytest.raises(GranAlignError, match="frames embedded by other, expected frames-by-words"):
        retriever_of(TableCaptioner()).search(other, ASLEEP)


@pytest.mark.parametrize("preset", ["tuned", "recognition"])
def test_frames_of_a_lost_video(preset: str) -> None:
    class Decoding(TableRecogniser):
        def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
            frames.load([0])
            return super().aware(frames, focus)

        def recognise(self, frames: FrameSet, queries: Sequence[str]) -> Any:
            frames.load([0])
            return super().recognise(frames, queries)

    with pytest.raises(GranAlignError, match="'v': its frames are needed, and its index names no"):
        retriever_of(Decoding(), preset).search(index_of(), ASLEEP)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.01, [1]), (0.25, [1]), (0.5, [0, 1]), (0.75, [0, 1, 3]), (1.0, None)]
)
def test_key_frames(share: float, expected: list[int] | None) -> None:
    """Similarities 1, 2, 0, 1: of equally near frames the earlier comes first."""
    frames = np.array([[1], [2], [0], [1]], np.float16)
    found = key_frames(index_of(), np.ones(1, np.float32), frames, share)
    assert found == (expected or [0, 1, 2, 3])


def test_key_frames_of_another_space() -> None:
    with pytest.raises(GranAlignError, match="got embeddings of 3 numbers, expected 2"):
        key_frames(index_of(), np.ones(2, np.float32), np.ones((8, 3), np.float32), 0.5)


@pytest.mark.parametrize(
    ("values", "count", "expected"), [([0.1, 0.9, 0.5], 2, 0.7), ([0.4], 3, 0.4), ([0, 1], 9, 0.5)]
)
def test_mean_of_greatest(values: list[float], count: int, expected: float) -> None:
    assert mean_of_greatest(np.array(values, np.float32), count) == pytest.approx(expected)


def test_an_unknown_scorer() -> None:
    with pytest.raises(GranAlignError, match="scorer: got 'magic'"):
        RetrieverConfig(scorer="magic")


def test_a_query_that_a_vision_language_model_cannot_read_is_named(tmp_path: Path) -> None:
    captioner = VlmCaptioner(VisionLanguageModel(write_unchecked_vlm(tmp_path)))
    captioner.__dict__["answer_tokens"] = ([7], [11])
    frames, long = FrameSet.of(frames_of(2)), "the sea and " * 330
    too_long = r"'the sea .*and '\]?: got \d+ \+ \d+ tokens and \d+ new ones, .*; shorten the query"
    with pytest.raises(GranAlignError, match=f"^query {too_long}"):
        captioner.recognise(frames, ["a dog", long])
    with pytest.raises(GranAlignError, match=rf"^focus \[{too_long}"):
        captioner.aware_many([(frames, ["a dog"]), (frames, [long])])
    with pytest.raises(GranAlignError, match=r"^query: got '\\udcff', expected valid Unicode"):
        captioner.recognise(frames, ["a dog", "\udcff"])
    with pytest.raises(GranAlignError, match="queries: got 'a dog', expected a list of texts"):
        captioner.recognise(frames, "a dog")
