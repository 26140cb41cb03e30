"""Videos that are missing, do not fit or have no duration: what becomes of their queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import CaptionedVideo, GranAlignError, MomentRetriever, Rewrites, VideoIndex
from granalign_fast.datasets import AnnotatedQuery, Annotations, Highlights
from granalign_fast.evaluation import CaptionFile, Evaluation, IndexFolder, evaluate
from granalign_fast.jsonl import Record, write_jsonl
from granalign_fast.language.llm_rewriter import LlmRewriter

CAPTIONS = ["a red car", "a red car", "a dog runs", "a dog runs", "a wet road"]
SALIENCY = Highlights((2, 3), ((4, 4, 4), (4, 4, 4)))


def query(qid: int, vid: str, text: str = "a dog runs", **more: Any) -> AnnotatedQuery:
    """A query whose moment is from 4 to 8 s."""
    given = {"duration": 10, "windows": ((4.0, 8.0),), "saliency": SALIENCY} | more
    return AnnotatedQuery(qid, vid, Rewrites(text), **given)


QUERIES = (query(1, "a"), query(2, "b"), query(3, "gone"), query(4, "gone", "a red car"))


def captions(folder: Path, **videos: list[str]) -> CaptionFile:
    videos = videos or {"a": CAPTIONS, "b": CAPTIONS}
    lines: list[Record] = [{"vid": vid, "captions": texts} for vid, texts in videos.items()]
    write_jsonl(folder / "captions.jsonl", lines)
    return CaptionFile(folder / "captions.jsonl")


def evaluated(
    videos: Any,
    queries: tuple[AnnotatedQuery, ...] = QUERIES,
    dataset: str = "qvhighlights",
    **options: Any,
) -> Evaluation:
    annotations = Annotations(dataset, queries)
    return evaluate(MomentRetriever(BagOfWords()), annotations, videos, **options)


def test_missing_videos_are_left_out_or_counted_as_missed(tmp_path: Path) -> None:
    skipped = evaluated(captions(tmp_path), missing="skip")
    assert [line["qid"] for line in skipped.predictions] == [1, 2]
    assert skipped.counts == {"queries": 2, "videos": 2, "captions": 10}
    assert (skipped.missing.not_found, skipped.missing.queries) == (("gone",), 2)
    assert str(skipped.missing) == "1 missing video, 2 queries left out"
    assert skipped.brief["MR-full-R1@0.7"] == 100
    assert skipped.brief["HL-min-VeryGood-Hit1"] == 100
    # Half of the queries are misses in every metric.
    zero = evaluated(captions(tmp_path), missing="zero")
    assert zero.brief == {name: pytest.approx(v / 2) for name, v in skipped.brief.items()}
    assert {line["qid"]: len(line["pred_relevant_windows"]) > 0 for line in zero.predictions} == {
        1: True,
        2: True,
        3: False,
        4: False,
    }
    assert [zero.figures["MR-full-R1@0.7"].tolist(), len(zero.scored)] == [[100, 100, 0, 0], 4]
    assert str(zero.missing) == "1 missing video, 2 queries counted as missed"
    with pytest.raises(GranAlignError, match=r"no captions of 1 of the 3 videos .*: 'gone'; add"):
        evaluated(captions(tmp_path), missing="fail")
    with pytest.raises(GranAlignError, match="missing: got 'drop', expected one of: skip, fail"):
        evaluated(captions(tmp_path), missing="drop")


def test_no_video_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError) as error:
        evaluated(captions(tmp_path), tuple(query(n, f"v{n}") for n in range(9)))
    assert str(error.value).endswith(
        "got no captions of 9 of the 9 videos of the queries: 'v0', 'v1', 'v2', 'v3', 'v4' and 4 "
        "more; check that the annotations are of the same dataset and split"
    )


def test_a_caption_too_many_is_left_out_and_one_video_that_does_not_fit(tmp_path: Path) -> None:
    videos = captions(tmp_path, a=[*CAPTIONS, "black"], b=[*CAPTIONS, "black", "black"])
    result = evaluated(videos, QUERIES[:2])
    assert result.counts["captions"] == 5
    assert [line["qid"] for line in result.predictions] == [1]
    assert "the video ends at 10 s; drop the later captions" in result.missing.failed["b"]
    assert "one caption more than clips in 1 video;" in result.notes[-1]
    # Too few captions, where the ground truth has saliency.
    result = evaluated(captions(tmp_path, a=CAPTIONS[:3], b=CAPTIONS), QUERIES[:2])
    assert "'a' has 3 captions, expected 5, one for each 2 s clip" in result.missing.failed["a"]


def test_indexes_that_cannot_be_read_or_are_longer(tmp_path: Path) -> None:
    for vid, seconds in (("a", 10.0), ("b", 25.0)):
        texts = tuple(CAPTIONS if vid == "a" else [*CAPTIONS, *["a dog runs"] * 8])
        video = CaptionedVideo(vid, texts, 2.0, seconds)
        VideoIndex(video, BagOfWords().encode(texts)).save(tmp_path / vid)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "manifest.json").write_text("{")
    queries = tuple(query(n, vid, saliency=None) for n, vid in enumerate(("a", "b", "gone")))
    result = evaluated(IndexFolder(tmp_path), queries, "activitynet")
    assert set(result.missing.failed) == {"gone"}
    assert "'b' (25 s, annotated 10 s)" in result.warnings[0]
    # Windows end where the annotated video ends.
    windows = result.predictions[1]["pred_relevant_windows"]
    assert windows and all(start < end <= 10 for start, end, _ in windows)


def test_without_durations_those_of_the_videos_hold(tmp_path: Path) -> None:
    queries = (
        query(1, "a", duration=None, saliency=None),
        query(2, "gone", duration=None, saliency=None),
    )
    result = evaluated(captions(tmp_path), queries, "charades", missing="zero")
    assert [one.duration for one in result.scored] == [10, 8]
    assert result.metrics["R1@0.7"] == 50


def test_queries_without_ground_truth_are_searched_and_not_scored(tmp_path: Path) -> None:
    queries = (QUERIES[0], query(2, "b", windows=(), saliency=None))
    result = evaluated(captions(tmp_path), queries)
    assert [line["qid"] for line in result.predictions] == [1, 2]
    assert [one.qid for one in result.scored] == [1]
    alone = evaluated(captions(tmp_path), queries[1:])
    assert (alone.metrics, alone.figures, alone.ground_truth_sha256) == ({}, {}, None)
    assert alone.predictions == result.predictions[1:]


def test_queries_of_a_video_are_searched_together_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = tuple(
        query(n, "ab"[n % 2], text, saliency=None)
        for n, text in enumerate(["a dog runs", "a red car", "a wet road", "a dog", "a car"])
    )
    whole = evaluated(captions(tmp_path), queries, "activitynet").predictions
    parts: list[list[str]] = []
    search = MomentRetriever.search_many

    def recorded(self: MomentRetriever, requests: Any, **options: Any) -> Any:
        parts.append([request.index.video.vid for request in requests])
        return search(self, requests, **options)

    monkeypatch.setattr("granalign_fast.evaluation.run._MANY", 2)
    monkeypatch.setattr(MomentRetriever, "search_many", recorded)
    assert evaluated(captions(tmp_path), queries, "activitynet").predictions == whole
    assert parts == [["a", "a"], ["a", "b"], ["b"]]
    assert [line["query"] for line in whole] == [one.rewrites.query for one in queries]


def test_equal_queries_are_rewritten_once_in_the_rewriters_batches(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    class Recorder:
        queries_per_batch = 2

        def rewrite(self, queries: Any) -> list[Rewrites]:
            asked.append(list(queries))
            return [Rewrites(text, (f"{text} fast",)) for text in queries]

    texts = ["a dog", "a car", "a dog", "a road"]
    queries = tuple(query(n, "a", text, saliency=None) for n, text in enumerate(texts))
    shown: list[tuple[str, list[tuple[int, int]]]] = []

    class Bar:
        def __init__(self, what: str, unit: str) -> None:
            shown.append((f"{what} {unit}", []))

        def __enter__(self) -> Any:
            return lambda more, total: shown[-1][1].append((more, total))

        def __exit__(self, *_: object) -> None:
            pass

    evaluated(captions(tmp_path), queries, "charades", rewriter=Recorder(), bars=Bar)
    assert asked == [["a dog", "a car"], ["a road"]]
    assert shown == [
        ("embedding captions captions", [(5, 5)]),
        ("rewriting queries", [(2, 3), (1, 3)]),
        ("searching queries", [(4, 4)]),
    ]


def test_rewrites_of_no_use_are_counted_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent:
        """A language model of bytes that never answers."""

        def chat(self, messages: Any) -> list[int]:
            return list(str(messages[-1]["content"]).encode())

        def decode(self, ids: Any) -> str:
            return bytes(ids).decode()

        def prefill(self, token_ids: Any) -> None:
            return None

        def prefill_rows(self, prompts: Any, *, prefix: Any = None) -> None:
            return None

        def generate(self, prompts: Any, *, prefix: Any = None, max_new_tokens: int) -> Any:
            return [[] for _ in prompts]

    queries = tuple(query(n, "a", text, saliency=None) for n, text in enumerate(["a dog", "a car"]))
    rewriter = LlmRewriter(Silent())
    result = evaluated(captions(tmp_path), queries, "charades", rewriter=rewriter)
    assert result.warnings == (
        "2 of 2 queries have rewrites that are mostly the query itself, because the language "
        "model's answers held none: 'a dog', 'a car'",
    )
    assert not caplog.records
    rewriter.rewrite(["a dog"])
    assert len(caplog.records) == 1, "outside an evaluation the rewriter warns itself"


def test_intervals_are_over_videos(tmp_path: Path) -> None:
    texts = {f"v{n}": CAPTIONS if n % 3 else CAPTIONS[::-1] for n in range(12)}
    queries = tuple(query(n, vid, saliency=None) for n, vid in enumerate(texts))
    result = evaluated(captions(tmp_path, **texts), queries, "charades")
    low, high = result.intervals["R1@0.7"]
    assert low < result.metrics["R1@0.7"] < high
    assert np.mean(result.figures["R1@0.7"]) == pytest.approx(result.metrics["R1@0.7"], abs=0.0051)
