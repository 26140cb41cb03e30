"""Bad predictions and ground truth: each a one-line error that names file and line."""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.records import prediction, truth

from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record
from granalign_fast.metrics import (
    MAX_OVERSHOOT_SECONDS,
    load_ground_truth,
    load_predictions,
    score_moments,
    score_qvhighlights,
)


def one_line(error: pytest.ExceptionInfo[GranAlignError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def load(tmp_path: Path) -> Callable[[list[Record], list[Record]], list[Record]]:
    """Write ground truth and predictions as files and load both."""

    def write_and_load(predictions: list[Record], ground_truth: list[Record]) -> list[Record]:
        write = json.dumps  # unlike write_jsonl it writes NaN, as careless tools do
        (tmp_path / "truth.jsonl").write_text("\n".join(map(write, ground_truth)))
        (tmp_path / "preds.jsonl").write_text("\n".join(map(write, predictions)))
        truths = load_ground_truth(tmp_path / "truth.jsonl")
        return load_predictions(tmp_path / "preds.jsonl", truths)

    return write_and_load


Load = Callable[[list[Record], list[Record]], list[Record]]
GOOD = prediction([[0, 8, 0.5]], qid=1)
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ({"pred_relevant_windows": []}, ["'qid' is missing"]),
        ({"qid": 2}, ["neither pred_relevant_windows nor pred_saliency_scores", "['qid']"]),
        (prediction([], qid=99), ["qid 99 is not in the ground truth", "2 qids, such as 1"]),
        (prediction([], qid="2"), ["qid '2' is not in the ground truth"]),  # type: ignore[arg-type]
        (prediction([], qid=[2]), ["qid is [2]", "an integer or a string"]),  # type: ignore[arg-type]
        (GOOD, ["qid 1 occurs a second time", "preds.jsonl:1", "remove one"]),
        ({"qid": 2, "pred_relevant_windows": 7}, ["pred_relevant_windows is 7", "a list"]),
        (prediction([[0, 8]], 2), ["pred_relevant_windows[0] is [0, 8]", "3 finite numbers"]),
        (prediction([[0, 8, 1, 1]], 2), ["is [0, 8, 1, 1]", "[start, end, score]"]),
        (prediction([7], 2), ["is 7", "3 finite numbers"]),  # type: ignore[list-item]
        (prediction([[0, 8, 1], [0, "8", 1]], 2), ["[1] is [0, '8', 1]"]),  # type: ignore[list-item]
        (prediction([[0, 8, None]], 2), ["is [0, 8, None]"]),  # type: ignore[list-item]
        (prediction([[0, 8, NAN]], 2), ["is [0, 8, nan]", "finite"]),
        (prediction([[0, INF, 1]], 2), ["is [0, inf, 1]", "finite"]),
        (prediction([[0, 10**400, 1]], 2), ["not JSON (got an integer of 401 digits"]),
        (prediction([[8, 2, 1]], 2), ["is [8, 2, 1] and starts after it ends"]),
        (prediction([[-1, 2, 1]], 2), ["starts before the video"]),
        (prediction([[0, 0, 1]], 2), ["starts before the video"]),
        (prediction([[20, 22, 1]], 2), ["starts after its 20 s video"]),
        (prediction([[10, 30.5, 1]], 2), ["ends 10.5 s after its 20 s video", "at most 10 s"]),
        ({"qid": 2, "pred_saliency_scores": [0.0] * 10}, ["'pred_relevant_windows' is missing"]),
        (
            prediction([[0, 8, 1]], 2, pred_saliency_scores=[0.0] * 10),
            ["'pred_saliency_scores' is present, unlike in the first record"],
        ),
        (prediction([], 2, pred_saliency_scores="abc"), ["is 'abc'", "a list"]),
        (prediction([], 2, pred_saliency_scores=[0.0, NAN]), ["pred_saliency_scores[1] is nan"]),
        (prediction([], 2, pred_saliency_scores=[0.0, None]), ["[1] is None", "finite number"]),
        (prediction([], 2, pred_saliency_scores=[0.0] * 8), ["has 8 numbers; expected 10"]),
        (prediction([], 2, pred_saliency_scores=[0.0] * 11), ["has 11 numbers; expected 10"]),
    ],
)
def test_bad_prediction_names_file_line_and_value(
    load: Load, line: Record, parts: list[str]
) -> None:
    ground_truth = [truth([[0, 8]], qid=1), truth([[0, 8]], qid=2)]
    with pytest.raises(GranAlignError) as error:
        load([GOOD, line], ground_truth)
    message = one_line(error)
    assert "preds.jsonl:2: " in message
    for part in parts:
        assert part in message
    # The same check guards records that never were in a file.
    with pytest.raises(GranAlignError, match=r"predictions\[1\]: "):
        score_qvhighlights([GOOD, line], ground_truth)


def test_missing_predictions_are_counted(load: Load) -> None:
    with pytest.raises(GranAlignError) as error:
        load([GOOD], [truth([[0, 8]], qid=qid) for qid in (1, 5, 3)])
    message = one_line(error)
    assert "preds.jsonl: 2 of 3 queries have no prediction, the first is qid 5" in message


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"qid": None}, ["qid is None"]),
        ({"qid": 1}, ["qid 1 occurs a second time", "truth.jsonl:1"]),
        ({"duration": 0}, ["duration is 0", "above 0"]),
        ({"duration": "150"}, ["duration is '150'"]),
        ({"duration": NAN}, ["duration is nan"]),
        ({"relevant_windows": []}, ["relevant_windows is empty", "leave out"]),
        ({"relevant_windows": [0, 8]}, ["relevant_windows[0] is 0", "2 finite numbers"]),
        ({"relevant_windows": [[0, 8, 1]]}, ["is [0, 8, 1]", "[start, end]"]),
        ({"relevant_windows": [[0, 2], [8, 8]]}, ["relevant_windows[1] is [8, 8] and is empty"]),
        ({"relevant_windows": [[8, 2]]}, ["starts after it ends"]),
        ({"relevant_windows": [[21, 22]]}, ["starts after its 20 s video"]),
        ({"relevant_clip_ids": [0, 10]}, ["relevant_clip_ids is [0, 10]", "0 to 9"]),
        ({"relevant_clip_ids": [-1, 3]}, ["relevant_clip_ids is [-1, 3]", "0 to 9"]),
        ({"relevant_clip_ids": [0.5, 3]}, ["relevant_clip_ids is [0.5, 3]", "distinct integers"]),
        ({"relevant_clip_ids": ["0", 3]}, ["relevant_clip_ids is ['0', 3]"]),
        ({"relevant_clip_ids": [NAN, 10**39]}, ["relevant_clip_ids is [nan, 1000"]),
        ({"relevant_clip_ids": [3, 3]}, ["relevant_clip_ids is [3, 3]", "distinct"]),
        ({"relevant_clip_ids": [[0], 3]}, ["relevant_clip_ids is [[0], 3]"]),
        ({"saliency_scores": [[4, 3, 2]]}, ["saliency_scores is [[4, 3, 2]]", "2 lists"]),
        ({"saliency_scores": [[4, 3], [2, 1]]}, ["of 3 integers from 0 to 4"]),
        ({"saliency_scores": [[4, 3, 5], [2, 1, 0]]}, ["of 3 integers from 0 to 4"]),
        ({"saliency_scores": [[4, 3, 2], [[], 1, 0]]}, ["of 3 integers from 0 to 4"]),
        ({"saliency_scores": [4, 2]}, ["of 3 integers from 0 to 4"]),
    ],
)
def test_bad_ground_truth_names_file_line_and_value(
    load: Load, change: Record, parts: list[str]
) -> None:
    with pytest.raises(GranAlignError) as error:
        load([GOOD], [truth([[0, 8]]), truth([[0, 8]], qid=2) | change])
    message = one_line(error)
    assert "truth.jsonl:2: " in message
    for part in parts:
        assert part in message


def test_a_long_video_takes_no_memory(load: Load) -> None:
    tracemalloc.start()
    try:
        assert load([GOOD], [truth([[0, 8]], duration=2e6)]) == [GOOD]
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_duration_without_bounds_is_none(load: Load) -> None:
    ground_truth = {"qid": 1, "duration": 1e9, "relevant_windows": [[0, 8]]}
    with pytest.raises(GranAlignError, match=r"duration is 1000000000\.0; .* below 1e\+09"):
        load([GOOD], [ground_truth])


@pytest.mark.parametrize("key", ["qid", "duration", "relevant_windows", "saliency_scores"])
def test_ground_truth_keys_are_needed(load: Load, key: str) -> None:
    second = truth([[0, 8]], qid=2)
    del second[key]
    with pytest.raises(GranAlignError, match=rf"truth.jsonl:2: key '{key}' is missing"):
        load([GOOD], [truth([[0, 8]]), second])


def test_windows_that_overshoot_or_are_empty_are_scored_as_they_stand(load: Load) -> None:
    windows: list[list[float]] = [[10, 20 + MAX_OVERSHOOT_SECONDS, 0.9], [4, 4, 0.1]]
    predictions, ground_truth = [prediction(windows)], [truth([[10, 20]])]
    assert load(predictions, ground_truth) == predictions
    assert score_moments(predictions, ground_truth)["mIoU"] == 50.0


def test_predictions_come_in_the_ground_truths_order(tmp_path: Path) -> None:
    lines = "".join(json.dumps(prediction([], qid)) + "\n" for qid in (1, 2, 3))
    (tmp_path / "preds.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    ground_truth = [truth([[0, 8]], qid) for qid in (3, 1, 2)]
    loaded = load_predictions(tmp_path / "preds.jsonl.gz", ground_truth)
    assert [line["qid"] for line in loaded] == [3, 1, 2]


def test_scorers_say_what_they_lack() -> None:
    with pytest.raises(GranAlignError, match="'pred_relevant_windows' is missing"):
        score_moments([{"qid": 1, "pred_saliency_scores": [0.0] * 10}], [truth([[0, 8]])])
    with pytest.raises(GranAlignError, match="ground truth: no records"):
        score_qvhighlights([], [])
