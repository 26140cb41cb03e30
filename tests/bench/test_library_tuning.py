"""The constants of a library's search are judged by the recall that `evaluate corpus` reports."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fakes import BagOfWords
from helpers.libraries import WORDS, write_index

from granalign_fast.bench.commands.library_tuning import (
    Evidence,
    collect,
    crossvalidate,
    recall,
    report,
)
from granalign_fast.datasets import AnnotatedQuery
from granalign_fast.library import Library
from granalign_fast.library.evaluation import evaluate_corpus
from granalign_fast.library.first_stage import WORD_WEIGHT
from granalign_fast.library.ordering import RANK_COST
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Rewrites


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("library")
    for number in range(12):  # the last ones have several stretches
        write_index(folder / f"v{number}", 12 + 20 * number, seed=number)
    return Library.open(folder, Retriever(BagOfWords()))


def queries() -> list[AnnotatedQuery]:
    """Words at random, asked about a video at random: some are found, and some are not."""
    rng = np.random.default_rng(5)
    return [
        AnnotatedQuery(
            number,
            f"v{number % 12}",
            Rewrites(" ".join(rng.choice(WORDS, 4)), (" ".join(rng.choice(WORDS, 3)),)),
            windows=((2.0 * (number % 9), 24.0),),
        )
        for number in range(40)
    ]


def test_the_values_in_use_give_the_recall_of_the_evaluation(
    library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = queries()
    found, metrics = collect(library, asked), evaluate_corpus(library, asked).metrics
    videos = np.array([one.video_rank(WORD_WEIGHT) for one in found])
    moments = np.array([one.moment_rank(RANK_COST) for one in found])
    for rank in (1, 5, 10):
        assert recall(videos, rank) == pytest.approx(metrics[f"video-R@{rank}"], abs=0.01)
        assert recall(moments, rank) == pytest.approx(metrics[f"moment-R@{rank},IoU=0.5"], abs=0.01)
    assert 0 < metrics["video-R@1"] < 100
    report("weight", (0.0, WORD_WEIGHT), WORD_WEIGHT, Evidence.video_rank, found, np.arange(40) % 2)
    assert f"{WORD_WEIGHT:g} *" in capsys.readouterr().out


def test_a_fold_does_not_choose_for_itself() -> None:
    tried = {1.0: np.array([0.0, 0.0, 20.0, 20.0]), 2.0: np.array([20.0, 20.0, 0.0, 0.0])}
    held = crossvalidate(tried, np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(held, [20.0, 20.0, 20.0, 20.0])
