"""Intervals over videos: against naive loops, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.metrics import intervals
from granalign_fast.metrics.intervals import RESAMPLES, SEED


def test_equals_a_naive_bootstrap() -> None:
    rng = np.random.default_rng(3)
    videos = [f"v{number}" for number in rng.integers(0, 9, 30)]
    column = rng.uniform(0, 100, 30)
    names = list(dict.fromkeys(videos))
    draws = np.random.default_rng(SEED).multinomial(
        len(names), np.full(len(names), 1 / len(names)), RESAMPLES
    )
    means = []
    for times in draws:
        drawn = [
            figure
            for name, count in zip(names, times, strict=True)
            for figure, video in zip(column, videos, strict=True)
            if video == name
            for _ in range(count)
        ]
        means.append(sum(drawn) / len(drawn))
    low, high = np.percentile(means, [2.5, 97.5])
    assert intervals({"x": column}, videos)["x"] == pytest.approx((low, high), abs=0.0051)


def test_covers_the_mean_as_often_as_it_says() -> None:
    """About 95 of 100 samples, whose videos differ more than their queries, cover the true mean."""
    rng = np.random.default_rng(1)
    videos = np.repeat(np.arange(60), 4)
    columns = {
        str(sample): 50 + rng.normal(0, 10, 60)[videos] + rng.normal(0, 3, 240)
        for sample in range(100)
    }

    def covered(of_query: list[int]) -> int:
        return sum(low <= 50 <= high for low, high in intervals(columns, of_query).values())

    assert 90 <= covered(videos.tolist()) <= 99
    assert covered(list(range(240))) < 80, "an interval over queries would be far too narrow"


def test_copies_of_queries_add_no_certainty() -> None:
    column, videos = np.array([0.0, 100.0, 50.0, 20.0]), ["a", "b", "c", "d"]
    once = intervals({"x": column}, videos)
    assert once["x"][1] - once["x"][0] > 20
    assert intervals({"x": np.tile(column, 7)}, videos * 7) == once


def test_no_interval_of_one_video() -> None:
    assert intervals({"x": np.array([1.0, 2.0])}, ["a", "a"]) == {}
    assert intervals({}, ["a", "b"]) == {}


def test_a_metric_has_a_figure_for_each_query() -> None:
    with pytest.raises(GranAlignError, match=r"figures of 'x': got shape \(1,\), expected \(2,\)"):
        intervals({"x": np.array([1.0])}, ["a", "b"])
