"""Recall of distinct moments, by hand and against a naive loop."""

from __future__ import annotations

import random

import pytest
from helpers.records import truth

from granalign_fast.errors import GranAlignError
from granalign_fast.metrics import distinct_of_each, score_distinct
from granalign_fast.types import Moment


def moments(*windows: tuple[float, float]) -> list[Moment]:
    return [Moment(start, end, 1 - rank / 10) for rank, (start, end) in enumerate(windows)]


def test_by_hand() -> None:
    ground_truth = [truth([[0, 10]]), truth([[0, 4], [10, 20]]), truth([[0, 10]]), truth([[0, 8]])]
    lists = [
        moments((0, 5), (6, 10)),  # IoU 0.5 at rank 1, never 0.7
        moments((5, 9), (0, 3), (13, 20)),  # 0.75 of the first window at rank 2
        moments((12, 14), (14, 16), (16, 18), (18, 20), (10, 12), (0, 10)),  # right at rank 6 alone
        [],  # a miss
    ]
    assert score_distinct(lists, ground_truth) == {
        "distinct-R@1,IoU=0.5": 25.0,
        "distinct-R@1,IoU=0.7": 0.0,
        "distinct-R@3,IoU=0.5": 50.0,
        "distinct-R@3,IoU=0.7": 25.0,
        "distinct-R@5,IoU=0.5": 50.0,
        "distinct-R@5,IoU=0.7": 25.0,
    }
    del lists[2][0]  # the right one is now at rank 5
    assert distinct_of_each(lists, ground_truth)["distinct-R@5,IoU=0.7"].tolist() == [
        0,
        100,
        100,
        0,
    ]


def test_equals_a_naive_loop() -> None:
    rng = random.Random(0)

    def windows(most: int) -> list[tuple[float, float]]:
        drawn = [sorted(rng.sample(range(11), 2)) for _ in range(rng.randint(1, most))]
        return [(float(start), float(end)) for start, end in drawn]

    ground_truth = [truth([list(window) for window in windows(3)]) for _ in range(60)]
    lists = [moments(*windows(7)) for _ in ground_truth]

    def found(query: int, rank: int, threshold: float) -> bool:
        for moment in lists[query][:rank]:
            for start, end in ground_truth[query]["relevant_windows"]:
                shared = max(0.0, min(moment.end, end) - max(moment.start, start))
                either = moment.end - moment.start + end - start - shared
                if shared / either >= threshold:
                    return True
        return False

    expected = {
        f"distinct-R@{rank},IoU={iou}": [100.0 * found(q, rank, iou) for q in range(len(lists))]
        for rank in (1, 3, 5)
        for iou in (0.5, 0.7)
    }
    each = distinct_of_each(lists, ground_truth)
    assert {name: column.tolist() for name, column in each.items()} == expected


def test_a_list_for_each_query() -> None:
    with pytest.raises(GranAlignError, match="lists: got 1, expected 2, one for each query"):
        score_distinct([moments((0, 5))], [truth([[0, 10]]), truth([[0, 10]])])
