"""Evaluations: wrong input is refused before any text is embedded or searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import CaptionedVideo, GranAlignError, MomentRetriever, Rewrites, VideoIndex
from granalign_fast.config import PRESETS, RetrieverConfig
from granalign_fast.evaluation import evaluate_qvhighlights
from granalign_fast.index import FrameTable
from granalign_fast.jsonl import Record, write_jsonl
from granalign_fast.types import FrameSet

CAPTIONS = ("a red car", "a red car", "a dog runs", "a dog runs", "a wet road")
TWO_SECONDS = replace(PRESETS["tuned"], clip_seconds=2.0)
SALIENCY: Record = {"relevant_clip_ids": [2], "saliency_scores": [[4, 4, 4]]}


class Watcher:
    """Recognises every query in every frame whose number is even."""

    def agnostic(self, frames: FrameSet) -> list[str]:
        return [CAPTIONS[int(name)] for name in frames.hashes]

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        return self.agnostic(frames)

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> Any:
        return np.array([[1 - int(n) % 2] * len(queries) for n in frames.hashes], np.float32)


class Lazy(MomentRetriever):
    """Does no work."""

    def index_many(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("embedded")

    def search_many(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("searched")


def files(folder: Path, *, saliency: bool = True, **video: Any) -> dict[str, Path]:
    """Queries, ground truth and absent queries of one video; its captions, and two indexes."""
    shown = CaptionedVideo(**{"vid": "v", "captions": CAPTIONS} | video)
    clips = len(shown.captions)
    truth: Record = {"qid": 1, "duration": 10, "relevant_windows": [[4, 8]]}
    records = {
        "queries": {"qid": 1, "query": "a dog", "vid": "v"},
        "ground_truth": truth | (SALIENCY if saliency else {}),
        "absent": {"query": "a cat", "vid": "v"},
        "captions": {"vid": "v", "captions": shown.captions, "clip_seconds": shown.clip_seconds},
    }
    for name, record in records.items():
        write_jsonl(folder / f"{name}.jsonl", [record])
    embeddings = BagOfWords().encode(shown.captions)
    table = FrameTable(np.arange(clips) * shown.clip_seconds, tuple(map(str, range(clips))))
    for name, frames in (("blind", None), ("watched", table)):
        (folder / name).mkdir()
        VideoIndex(shown, embeddings, frames).save(folder / name / "v")
    return {name: folder / f"{name}.jsonl" for name in records}


@pytest.mark.parametrize(
    ("video", "source", "captioner", "config", "asking", "message"),
    [
        ({}, "captions", Watcher(), "tuned", True, "absent queries: got captions alone"),
        ({}, "blind", Watcher(), "tuned", True, "absent queries: got captions alone"),
        ({}, "watched", None, "tuned", True, "absent queries: got a retriever that does not say"),
        ({}, "captions", Watcher(), "recognition", False, "'recognition': got captions alone"),
        ({}, "blind", Watcher(), "recognition", False, "'recognition': got captions alone"),
        ({"clip_seconds": 1.5}, "captions", None, "tuned", False, "'v' has clips of 1.5 s"),
        ({"clip_seconds": 1.0}, "watched", None, "tuned", False, "'v' has clips of 1 s, expected"),
        ({"captions": CAPTIONS[:3]}, "captions", None, "tuned", False, "has 3 captions, expected"),
        ({"captions": CAPTIONS[:3]}, "watched", None, "tuned", False, "3 captions, expected 5, "),
        (
            {"captions": CAPTIONS[:3]},
            "watched",
            None,
            TWO_SECONDS,
            False,
            "3 captions, expected 5, ",
        ),
        (
            {"captions": CAPTIONS[:1], "clip_seconds": 3.0},
            *("watched", Watcher(), "reze", False, "1 caption, expected 3, one for each 3 s clip"),
        ),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    tmp_path: Path,
    video: Any,
    source: str,
    captioner: Any,
    config: str | RetrieverConfig,
    asking: bool,
    message: str,
) -> None:
    given = files(tmp_path, **video)
    captions, absent = given.pop("captions"), given.pop("absent")
    with pytest.raises(GranAlignError, match=message) as error:
        evaluate_qvhighlights(
            Lazy(BagOfWords(), config, captioner=captioner),
            captions=captions if source == "captions" else None,
            indexes=None if source == "captions" else tmp_path / source,
            absent=absent if asking else None,
            **given,
        )
    assert "\n" not in str(error.value)


def test_without_saliency_clips_may_be_of_any_length(tmp_path: Path) -> None:
    given = files(tmp_path, saliency=False, clip_seconds=1.0)
    del given["absent"]
    assert evaluate_qvhighlights(MomentRetriever(BagOfWords()), **given).counts["captions"] == 5


def test_saliency_is_read_off_clips_for_which_the_preset_is_made(tmp_path: Path) -> None:
    """Clips of 3 s against a saliency of 2 s: the score at the middle of each clip of 2 s."""
    given = files(tmp_path, clip_seconds=3.0)
    del given["captions"], given["absent"]
    scores = np.linspace(0.1, 0.9, len(CAPTIONS))
    watcher = Watcher()
    watcher.recognise = lambda frames, queries: np.tile(  # type: ignore[method-assign]
        scores.astype(np.float32), (len(queries), 1)
    )
    retriever = MomentRetriever(BagOfWords(), "reze", captioner=watcher)
    evaluation = evaluate_qvhighlights(retriever, indexes=tmp_path / "watched", **given)
    (line,) = evaluation.predictions
    # The middles 1, 3, 5, 7, ... lie in the clips 0, 1, 1, 2, ...
    duration = 2 * len(line["pred_saliency_scores"])
    clips = [min(int((2 * k + 1) // 3), len(scores) - 1) for k in range(duration // 2)]
    expected = [round(float(np.float32(scores[clip])), 4) for clip in clips]
    assert line["pred_saliency_scores"] == pytest.approx(expected, abs=1e-4)
    assert any("clips of 3 s with 6 frames" in text for text in evaluation.warnings)


def test_absent_queries_are_told_from_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = files(tmp_path)
    del given["captions"]
    watcher = Watcher()

    def recognise(frames: FrameSet, queries: Sequence[str]) -> Any:
        return np.full((len(frames.hashes), len(queries)), "dog" in queries[0], np.float32)

    monkeypatch.setattr(watcher, "recognise", recognise)
    retriever = MomentRetriever(BagOfWords(), captioner=watcher)
    index = VideoIndex.load(tmp_path / "watched" / "v")
    assert retriever.search(index, Rewrites("a dog")).exists == 1
    evaluation = evaluate_qvhighlights(retriever, indexes=tmp_path / "watched", **given)
    assert evaluation.metrics["brief"]["exists-AUROC"] == 100
