"""Recall and mean IoU of Charades-STA and ActivityNet-Captions, by hand."""

from __future__ import annotations

import pytest
from helpers.records import prediction, truth

from granalign_fast.metrics import moments_of_each, score_moments


def test_moments_by_hand() -> None:
    ground_truth = [
        truth([[0, 10]], qid=1),
        truth([[0, 4], [10, 20]], qid=2),
        truth([[0, 10]], qid=3),
    ]
    predictions = [
        prediction([[10, 20, 0.1], [0, 5, 0.9]], qid=1),  # first by score: IoU 0.5
        prediction([[12, 20, 0.5], [0, 4, 0.5]], qid=2),  # tie: the file's first, IoU 0.8
        prediction([*[[12, 20, 0.9]] * 5, [0, 10, 0.1]], qid=3),  # right at rank 6 alone
    ]
    assert score_moments(predictions, ground_truth) == {
        "R1@0.3": 66.67,
        "R1@0.5": 66.67,
        "R1@0.7": 33.33,
        "R5@0.3": 66.67,
        "R5@0.5": 66.67,
        "R5@0.7": 33.33,
        "mIoU": 43.33,
    }
    predictions[2]["pred_relevant_windows"].pop(0)  # now at rank 5
    assert score_moments(predictions, ground_truth)["R5@0.7"] == 66.67


@pytest.mark.parametrize(("length", "recalls"), [(3, (1, 0, 0)), (5, (1, 1, 0)), (7, (1, 1, 1))])
def test_an_iou_at_the_threshold_counts(length: int, recalls: tuple[int, ...]) -> None:
    # A window of so many of ten seconds has an IoU of exactly 0.3, 0.5 or 0.7.
    figures = moments_of_each([prediction([[0, length, 1.0]])], [truth([[0, 10]])])
    assert [figures[f"R1@{iou}"].tolist() for iou in (0.3, 0.5, 0.7)] == [
        [100.0 * hit] for hit in recalls
    ]
    assert figures["mIoU"].tolist() == [10.0 * length]
    less = moments_of_each([prediction([[0, length - 1e-6, 1.0]])], [truth([[0, 10]])])
    assert sum(less[f"R1@{iou}"][0] for iou in (0.3, 0.5, 0.7)) == 100 * (sum(recalls) - 1)


def test_rounding_falls_as_in_the_evaluators_of_others() -> None:
    """IoU 0.3, which the sum of both lengths less the overlap makes 0.29999999999999993."""
    figures = moments_of_each([prediction([[0.1, 0.46, 1.0]])], [truth([[0.1, 1.3]])])
    assert figures["R1@0.3"].tolist() == [100]


def test_windows_are_scored_as_they_stand() -> None:
    # [12, 24] ends 4 s after the video: IoU 8 / 12 with [12, 20], and not 1.
    figures = score_moments([prediction([[12, 24, 1.0]])], [truth([[12, 20]])])
    assert figures["mIoU"] == 66.67
