"""Files of results, and comparisons of two evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast import GranAlignError, Rewrites
from granalign_fast.datasets import AnnotatedQuery
from granalign_fast.evaluation import Evaluation, compare, read_results, write_results
from granalign_fast.evaluation.results import truth_sha256

FIGURES = {"R1@0.5": [100.0, 0.0, 100.0, 100.0, 0.0, 100.0], "mIoU": [80.0, 10, 60, 90, 0, 70]}


def evaluation(figures: dict[str, Any] = FIGURES, **more: Any) -> Evaluation:
    """Six queries about three videos."""
    scored = tuple(
        AnnotatedQuery(n, f"v{n // 2}", Rewrites(f"query {n}"), 10.0, ((0.0, 4.0),))
        for n in range(6)
    )
    given = {
        "metrics": {name: round(float(np.mean(column)), 2) for name, column in figures.items()},
        "predictions": [],
        "seconds": {"read": 0.5},
        "counts": {"queries": 6, "videos": 3, "captions": 15},
        "dataset": "charades",
        "scored": scored,
        "figures": {name: np.array(column, float) for name, column in figures.items()},
        "ground_truth_sha256": "0" * 64,
    }
    return Evaluation(**given | more)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_results(tmp_path / "a.json", evaluation())
    results = read_results(tmp_path / "a.json")
    assert (results.dataset, results.ground_truth_sha256) == ("charades", "0" * 64)
    assert results.queries[3] == ("v1", "query 3")
    assert {name: column.tolist() for name, column in results.figures.items()} == FIGURES


def test_differences_are_paired(tmp_path: Path) -> None:
    """A gain that is the same for every query is certain, however much the queries differ."""
    worse = {"R1@0.5": FIGURES["R1@0.5"], "mIoU": [x - 2 for x in FIGURES["mIoU"]], "more": [0] * 6}
    other = evaluation(worse)
    # The order of the queries in the other file does not matter.
    back = {name: column[::-1] for name, column in other.figures.items()}
    write_results(tmp_path / "b.json", replace(other, scored=other.scored[::-1], figures=back))
    same, gain = compare(evaluation(), read_results(tmp_path / "b.json"))
    assert (same.metric, same.difference, same.interval, same.clear) == ("R1@0.5", 0, (0, 0), False)
    assert "-0" not in str(same), "no difference has no sign"
    assert (gain.metric, gain.this, gain.other) == ("mIoU", 51.67, 49.67)
    assert (gain.difference, gain.interval, gain.clear) == (2, (2, 2), True)


def test_the_interval_of_a_difference_is_over_videos(tmp_path: Path) -> None:
    moved = {
        "mIoU": [x + step for x, step in zip(FIGURES["mIoU"], (5, 5, -3, -3, 1, 1), strict=True)]
    }
    write_results(tmp_path / "b.json", evaluation())
    (one,) = compare(evaluation(moved), read_results(tmp_path / "b.json"))
    assert one.difference == 1
    assert one.interval == (-3, 5), "the mean of three draws of 5, -3 and 1 can be any of them"
    assert not one.clear


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "activitynet"}, "got results on activitynet, expected charades"),
        ({"ground_truth_sha256": "1" * 64}, "got results on other ground truth of the same quer"),
        (
            {"scored": evaluation().scored[:5], "figures": {"mIoU": np.zeros(5)}},
            "got results on 5 queries, expected the 6 of this evaluation; 1 differ, such as qid 5",
        ),
        (
            {
                "scored": tuple(
                    replace(query, rewrites=Rewrites("other")) for query in evaluation().scored
                )
            },
            "6 differ, such as qid 0, 1, 2, 3, 4 and 1 more: evaluate the same files",
        ),
    ],
)
def test_results_of_other_work_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_results(tmp_path / "b.json", replace(evaluation(), **change))
    with pytest.raises(GranAlignError, match=message) as error:
        compare(evaluation(), read_results(tmp_path / "b.json"))
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_results(path, evaluation())
    whole = path.read_text()
    record = json.loads(whole)
    del record["each"][2]["figures"]["mIoU"]
    for text, message in (
        (whole[: len(whole) // 2], "not JSON"),
        ("", "not JSON"),
        ('{"R1@0.5": 50}', "got another file, expected one that `granalign evaluate --results`"),
        ("[1]", "got another file"),
        (whole.replace('"format_version": 1', '"format_version": 9'), "got format version 9"),
        (whole.replace('"each"', '"every"'), "got an altered file"),
        (json.dumps(record), "got an altered file"),
    ):
        path.write_text(text)
        with pytest.raises(GranAlignError, match=message) as error:
            read_results(path)
        assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_without_ground_truth_there_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="got no ground truth"):
        write_results(tmp_path / "a.json", evaluation({}))
    assert not list(tmp_path.iterdir())


def test_the_name_of_ground_truth() -> None:
    one = {"qid": 1, "duration": 10, "relevant_windows": [[0, 4]]}
    two = {"qid": 2, "relevant_windows": [[2, 4]], "duration": 10}
    assert truth_sha256([one, two]) == truth_sha256([two, dict(reversed(one.items()))])
    assert truth_sha256([one]) != truth_sha256([one | {"relevant_windows": [[0, 5]]}])
