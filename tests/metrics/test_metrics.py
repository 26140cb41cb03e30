"""The metrics against the benchmark's published figures, hand computation, and naive loops."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
from helpers.records import prediction, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from granalign_fast.jsonl import Record
from granalign_fast.metrics import (
    DATASETS,
    OF_EACH,
    load_ground_truth,
    load_predictions,
    score_moments,
    score_qvhighlights,
)

AP_THRESHOLDS = [f"{percent / 100:g}" for percent in range(50, 100, 5)]


# --- the benchmark's published figures


@pytest.mark.parametrize("peer", ["vtg_gpt", "moment_detr"])
def test_equals_the_benchmarks_evaluator_in_every_key(shared_data: Path, peer: str) -> None:
    folder = shared_data / "qvhighlights"
    expected = json.loads((folder / f"peer_metrics_{peer}_val.json").read_text())
    ground_truth = load_ground_truth(folder / "val_ground_truth.jsonl.gz")
    predictions = load_predictions(folder / f"peer_predictions_{peer}_val.jsonl.gz", ground_truth)
    scores = score_qvhighlights(predictions, ground_truth)
    assert scores == expected
    assert json.dumps(scores) == json.dumps(expected), "keys stand in another order"


# --- by hand


def test_perfect_predictions_score_100() -> None:
    ground_truth = [truth([[0, 8], [12, 20]], qid=1), truth([[2, 14]], qid=2)]
    predictions = [
        # 4 s clips apart: clip 0 first, then clip 3, is perfect for all three annotators.
        prediction([[0, 8, 0.9], [12, 20, 0.8]], 1, pred_saliency_scores=[9, 1, 1, 8, *[0] * 6]),
        prediction([[2, 14, 0.5]], 2, pred_saliency_scores=[9, 1, 1, 8, *[0] * 6]),
    ]
    scores = score_qvhighlights(predictions, ground_truth)
    assert set(scores) == {
        "brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood", "full", "middle", "short",
    }  # fmt: skip
    for name in ("full", "middle", "short"):
        assert set(scores[name]["MR-mAP"]) == {*AP_THRESHOLDS, "average"}
        assert set(scores[name]["MR-R1"]) == set(AP_THRESHOLDS)
    # In the short range query 1 has both its windows; in the middle range query 2 has its one.
    for table in ("MR-mAP", "MR-R1"):
        for name in ("full", "middle", "short"):
            assert set(scores[name][table].values()) == {100.0}
    assert set(scores["HL-min-Fair"].values()) == {100.0}
    assert score_moments(predictions[1:], ground_truth[1:]) == dict.fromkeys(
        ["R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3", "R5@0.5", "R5@0.7", "mIoU"], 100.0
    )


def test_highlight_levels_by_hand() -> None:
    # Clip 0 is rated 4, 3, 2 and clip 3 is rated 2, 1, 0; clip 3 is ranked first, clip 0 second.
    scores = score_qvhighlights(
        [{"qid": 1, "pred_saliency_scores": [8, 0, 0, 9, *[0] * 6]}], [truth([[0, 8]])]
    )
    assert set(scores) == {"brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"}
    # Fair: annotator 1 has both clips, AP 1; 2 and 3 have clip 0 alone, at rank 2, AP 1/2.
    assert scores["HL-min-Fair"] == {"HL-mAP": 66.67, "HL-Hit1": 100.0}
    # Good: 1 and 2 have clip 0 alone, AP 1/2; 3 has none, AP 0.
    assert scores["HL-min-Good"] == {"HL-mAP": 33.33, "HL-Hit1": 0.0}
    assert scores["HL-min-VeryGood"] == {"HL-mAP": 16.67, "HL-Hit1": 0.0}
    assert scores["brief"]["HL-min-Good-mAP"] == 33.33
    assert scores["brief"]["HL-min-Fair-Hit1"] == 100.0


def test_clips_of_equal_score_are_one_step() -> None:
    # Ten clips tied: one point with precision 2/10 or 1/10, whatever the order.
    scores = score_qvhighlights([{"qid": 1, "pred_saliency_scores": [0.5] * 10}], [truth([[0, 8]])])
    assert scores["HL-min-Fair"]["HL-mAP"] == round(100 * (0.2 + 0.1 + 0.1) / 3, 2)


@pytest.mark.parametrize(
    ("duration", "with_scores", "same_as"),
    [
        # The clip that is missing at the end counts as 0, here above the others.
        (20, [-1.0] * 9, [*[-1.0] * 9, 0.0]),
        # A partial last clip is not rated: out of the AP, and a miss where it is the highest.
        (19, [0.3, *[0.0] * 8], [0.3, *[0.0] * 8]),
    ],
)
def test_saliency_length_may_be_rounded(
    duration: float, with_scores: list[float], same_as: list[float]
) -> None:
    def mean_ap(scores: list[float]) -> float:
        line = {"qid": 1, "pred_saliency_scores": scores}
        table = score_qvhighlights([line], [truth([[0, 8]], duration=duration)])
        return float(table["HL-min-Fair"]["HL-mAP"])

    assert mean_ap(with_scores) == mean_ap(same_as)


def test_a_partial_last_clip_is_no_highlight() -> None:
    line = {"qid": 1, "pred_saliency_scores": [0.3, *[0.0] * 8, 0.9]}
    scores = score_qvhighlights([line], [truth([[0, 8]], duration=19)])["HL-min-Fair"]
    assert scores["HL-Hit1"] == 0.0
    # Annotator 1 has clip 0 at rank 1, and clip 3 among eight ties: (1 + 2/9) / 2; 2 and 3: 1.
    assert scores["HL-mAP"] == round(100 * ((1 + 2 / 9) / 2 + 1 + 1) / 3, 2)


def test_no_overlap_scores_0() -> None:
    ground_truth = [truth([[0, 8]])]
    predictions = [prediction([[8, 20, 1.0]])]
    scores = score_qvhighlights(predictions, ground_truth)
    assert set(scores["brief"].values()) == {0.0}
    assert set(score_moments(predictions, ground_truth).values()) == {0.0}


def test_average_precision_of_two_windows_by_hand() -> None:
    # Ranked by score: [0, 8] hits at IoU 1, [8, 12] misses, [12, 18] hits at IoU 6/8 = 0.75.
    predictions = [prediction([[8, 12, 0.5], [0, 8, 0.9], [12, 18, 0.1]])]
    full = score_qvhighlights(predictions, [truth([[0, 8], [12, 20]])])["full"]
    both, one = round(100 * (1 / 2 + 1 / 2 * 2 / 3), 2), 50.0
    assert full["MR-mAP"] == {
        **dict.fromkeys(["0.5", "0.55", "0.6", "0.65", "0.7", "0.75"], both),
        **dict.fromkeys(["0.8", "0.85", "0.9", "0.95"], one),
        "average": round(100 * (6 * 5 / 6 + 4 * 1 / 2) / 10, 2),
    }
    # R1 takes the window that is listed first, not the one of highest score.
    assert set(full["MR-R1"].values()) == {0.0}


def test_a_true_window_is_found_once() -> None:
    # The second window falls to the other true window only if that reaches the threshold.
    predictions = [prediction([[0, 10, 0.9], [0, 10, 0.8], [10, 20, 0.7]])]
    full = score_qvhighlights(predictions, [truth([[0, 10], [10, 20]])])["full"]
    assert full["MR-mAP"]["0.5"] == round(100 * (1 / 2 + 1 / 2 * 2 / 3), 2)


def test_only_the_first_ten_windows_count() -> None:
    wrong = [[10.0, 20.0, 0.1]] * 10
    late = [prediction([*wrong, [0, 8, 0.9]])]
    assert score_qvhighlights(late, [truth([[0, 8]])])["full"]["MR-mAP"]["average"] == 0.0


def test_length_ranges_are_open_below_and_closed_above() -> None:
    ground_truth = [
        truth([[0, 10]], qid=1, duration=200),
        truth([[0, 30], [50, 52]], qid=2, duration=200),
        truth([[0, 150]], qid=3, duration=200),
        truth([[0, 151]], qid=4, duration=200),
    ]
    predictions = [
        prediction([[*window, 1.0]], qid)
        for qid, window in enumerate([[0, 10], [50, 52], [0, 150], [0, 10]], start=1)
    ]
    brief = score_qvhighlights(predictions, ground_truth)["brief"]
    assert brief["MR-short-mAP"] == 100.0  # queries 1 and 2
    assert brief["MR-middle-mAP"] == 0.0  # query 2
    assert brief["MR-long-mAP"] == 100.0  # query 3
    assert brief["MR-full-mAP"] == 62.5  # (1 + 1/2 + 1 + 0) / 4


def test_an_empty_list_of_saliency_is_a_miss() -> None:
    ground_truth = [truth([[0, 8]], qid=1), truth([[0, 8]], qid=2)]
    whole = [prediction([[0, 8, 1.0]], qid, pred_saliency_scores=[9, 1, 1, 8]) for qid in (1, 2)]
    whole = [line | {"pred_saliency_scores": [9, 1, 1, 8, *[0] * 6]} for line in whole]
    half = [whole[0], prediction([], 2, pred_saliency_scores=[])]
    full = score_qvhighlights(whole, ground_truth)["brief"]
    scores = score_qvhighlights(half, ground_truth)["brief"]
    assert scores == {name: pytest.approx(value / 2, abs=0.0051) for name, value in full.items()}


def test_no_windows_for_a_query_is_a_miss() -> None:
    ground_truth = [truth([[0, 10]], qid=1), truth([[0, 10]], qid=2)]
    predictions = [prediction([[0, 10, 1.0]], qid=2), prediction([], qid=1)]
    assert score_moments(predictions, ground_truth)["mIoU"] == 50.0
    assert score_qvhighlights(predictions, ground_truth)["brief"]["MR-full-mAP"] == 50.0
    assert score_qvhighlights(predictions, ground_truth)["brief"]["MR-full-R1@0.7"] == 50.0
    nothing = [prediction([], qid=1), prediction([], qid=2)]
    assert set(score_moments(nothing, ground_truth).values()) == {0.0}


def test_highlights_need_saliency_on_both_sides() -> None:
    bare = {"qid": 1, "duration": 20, "relevant_windows": [[0, 8]]}
    line = prediction([[0, 8, 1.0]], pred_saliency_scores=[0.0] * 3)
    for predictions, ground_truth in (
        ([line], [bare]),
        ([prediction([[0, 8, 1.0]])], [truth([[0, 8]])]),
    ):
        assert set(score_qvhighlights(predictions, ground_truth)) == {"brief", "full", "short"}


def test_every_dataset_has_a_scorer() -> None:
    assert set(DATASETS) == {"qvhighlights", "charades", "activitynet"}
    for scorer in DATASETS.values():
        assert scorer([prediction([[0, 8, 1.0]])], [truth([[0, 8]])])


# --- against naive loops


def naive_iou(first: list[float], second: list[float]) -> float:
    overlap = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - overlap
    return overlap / union if union else 0.0


def naive_window_ap(windows: list[list[float]], true: list[list[float]], level: float) -> float:
    matched: set[int] = set()
    curve = []  # (hit, precision)
    for rank, window in enumerate(sorted(windows[:10], key=lambda w: -w[2]), start=1):
        reach = [(naive_iou(window, t), i) for i, t in enumerate(true) if i not in matched]
        best = max((pair for pair in reach if pair[0] >= level), default=None)
        if best is not None:
            matched.add(best[1])
        curve.append((best is not None, len(matched) / rank))
    steps = [
        max(precision for _, precision in curve[i:]) for i, (hit, _) in enumerate(curve) if hit
    ]
    return sum(steps) / len(true)


def naive_clip_ap(scores: list[float], labels: list[bool]) -> float:
    curve = []  # (recall, precision) at each distinct score, highest first
    for least in sorted(set(scores), reverse=True):
        got = [label for score, label in zip(scores, labels, strict=True) if score >= least]
        curve.append((sum(got), sum(got) / len(got)))
    steps = []
    for i, (hits, _) in enumerate(curve):
        if hits > (curve[i - 1][0] if i else 0):
            steps.append(max(precision for _, precision in curve[i:]))
    return sum(steps) / len(steps) if steps else 0.0


def naive_brief(predictions: list[Record], ground_truth: list[Record]) -> dict[str, float]:
    lines = {line["qid"]: line for line in predictions}
    means: dict[str, list[float]] = {}

    def add(key: str, value: float) -> None:
        means.setdefault(key, []).append(100 * value)

    ranges = {"full": (0, math.inf), "short": (0, 10), "middle": (10, 30), "long": (30, 150)}
    for record in ground_truth:
        line = lines[record["qid"]]
        windows = line["pred_relevant_windows"]
        for name, (low, high) in ranges.items():
            true = [w for w in record["relevant_windows"] if low < w[1] - w[0] <= high]
            if not true:
                continue
            for level in map(float, AP_THRESHOLDS):
                precision = naive_window_ap(windows, true, level)
                add(f"MR-{name}-mAP", precision)
                if name == "full" and level in (0.5, 0.75):
                    add(f"MR-full-mAP@{level}", precision)
            if name == "full":
                best = max((naive_iou(windows[0], w) for w in true), default=0) if windows else 0
                add("MR-full-R1@0.5", best >= 0.5)
                add("MR-full-R1@0.7", best >= 0.7)
        clips = int(record["duration"] / 2)
        scores = line["pred_saliency_scores"]
        rated = dict(zip(record["relevant_clip_ids"], record["saliency_scores"], strict=True))
        ratings = [rated.get(clip, [0, 0, 0]) for clip in range(clips)]
        padded = [*scores, 0.0][:clips]
        for level_name, level in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
            for annotator in range(3):
                labels = [rating[annotator] >= level for rating in ratings]
                add(f"HL-min-{level_name}-mAP", naive_clip_ap(padded, labels))
            top = scores.index(max(scores))
            add(f"HL-min-{level_name}-Hit1", top < clips and max(ratings[top]) >= level)
    return {key: sum(values) / len(values) for key, values in means.items()}


def naive_moments(predictions: list[Record], ground_truth: list[Record]) -> dict[str, float]:
    lines = {line["qid"]: line for line in predictions}
    best = []
    for record in ground_truth:
        windows = sorted(lines[record["qid"]]["pred_relevant_windows"], key=lambda w: -w[2])
        best.append(
            [max(naive_iou(w, true) for true in record["relevant_windows"]) for w in windows]
        )
    table = {
        f"R{rank}@{iou}": 100 * sum(any(v >= iou for v in row[:rank]) for row in best) / len(best)
        for rank in (1, 5)
        for iou in (0.3, 0.5, 0.7)
    }
    return table | {"mIoU": 100 * sum(row[0] if row else 0 for row in best) / len(best)}


@st.composite
def queries(draw: st.DrawFn) -> tuple[list[Record], list[Record]]:
    """Small predictions and ground truth on a coarse grid, so that ties and exact IoUs abound."""
    predictions, ground_truth = [], []
    for qid in range(draw(st.integers(1, 4))):
        duration = draw(st.sampled_from([8, 9, 20, 60, 180]))
        unit = duration / 10 if duration >= 20 else 1
        edge = st.integers(0, min(duration, 10))
        pair = st.tuples(edge, edge).filter(lambda p: p[0] != p[1]).map(sorted)
        score = st.sampled_from([0.0, 0.25, 0.5, 1.0])
        true = draw(st.lists(pair, min_size=1, max_size=4))
        windows = draw(st.lists(st.tuples(pair, score), max_size=12))
        clips = int(duration / 2)
        ids = draw(st.lists(st.integers(0, clips - 1), unique=True, max_size=6))
        rating = st.lists(st.integers(0, 4), min_size=3, max_size=3)
        count = draw(st.integers(clips - 1, math.ceil(duration / 2)))
        ground_truth.append(
            {
                "qid": qid,
                "duration": duration,
                "relevant_windows": [[a * unit, b * unit] for a, b in true],
                "relevant_clip_ids": ids,
                "saliency_scores": [draw(rating) for _ in ids],
            }
        )
        predictions.append(
            {
                "qid": qid,
                "pred_relevant_windows": [[a * unit, b * unit, s] for (a, b), s in windows],
                "pred_saliency_scores": draw(
                    st.lists(st.sampled_from([-0.5, 0.0, 0.5]), min_size=count, max_size=count)
                ),
            }
        )
    return predictions[::-1], ground_truth


@settings(max_examples=40, deadline=None)
@given(queries())
def test_equals_naive_loops(both: tuple[list[Record], list[Record]]) -> None:
    predictions, ground_truth = both
    untouched = copy.deepcopy(both)
    rounding = 0.0051
    assert score_qvhighlights(predictions, ground_truth)["brief"] == pytest.approx(
        naive_brief(predictions, ground_truth), abs=rounding
    )
    moments = score_moments(predictions, ground_truth)
    assert moments == pytest.approx(naive_moments(predictions, ground_truth), abs=rounding)
    # The figures of each query have these means, in the order of the ground truth.
    for dataset, whole in (
        ("qvhighlights", score_qvhighlights(predictions, ground_truth)["brief"]),
        ("charades", moments),
    ):
        each = OF_EACH[dataset](predictions, ground_truth)
        assert {"qvhighlights": "MR-full-mAP", "charades": "mIoU"}[dataset] in each
        for name, column in each.items():
            assert column.mean() == pytest.approx(whole[name], abs=rounding)
        alone = OF_EACH[dataset](predictions[-1:], ground_truth[:1])
        assert {name: column[0] for name, column in each.items()} == pytest.approx(
            {name: column[0] for name, column in alone.items()}
        )
    assert (predictions, ground_truth) == untouched
