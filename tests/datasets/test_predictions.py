"""Predictions in the forms that others write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.annotations import ACTIVITYNET, QVHIGHLIGHTS, write

from granalign_fast.errors import GranAlignError
from granalign_fast.metrics import load_ground_truth, load_predictions, score_moments

TALK, LIFT, RUN = [[1, 9.5]], [[30, 50, 0.9], [0, 10, 0.4]], [[1, 3], [2, 5]]
VIDEO, OTHER = "v_abcdefghijk", "v_ABCDEFGHIJK"
EXPECTED = {
    f"{VIDEO}_0": [[1, 9.5, 1.0]],
    f"{VIDEO}_1": LIFT,
    f"{OTHER}_0": [[1, 3, 1.0], [2, 5, 1.0]],
}
FORMS: dict[str, Any] = {
    "by qid": {f"{VIDEO}_1": LIFT, f"{VIDEO}_0": TALK[0], f"{OTHER}_0": {"timestamps": RUN}},
    "TimeChat": {
        "0": {"timestamp": TALK, "query": "A man talks.", "vid": VIDEO},
        "1": {"timestamp": LIFT, "query": "he lifts a weight", "vid": VIDEO},
        "2": {"timestamp": RUN, "query": "A dog runs.", "vid": OTHER},
    },
    "dense captioning": {
        "version": "1",
        "results": {
            VIDEO: [
                {"sentence": "A man talks.", "timestamp": TALK[0]},
                {"sentence": "He lifts a weight.", "timestamp": LIFT},
            ],
            OTHER: [{"sentence": "A dog runs.", "timestamp": window} for window in RUN],
        },
    },
    "as the annotations": {
        VIDEO: {"sentences": ACTIVITYNET[VIDEO]["sentences"], "timestamps": [TALK[0], LIFT]},
        OTHER: {"sentences": ["A dog runs."], "timestamps": [RUN]},
    },
    "records without qids": [
        {"vid": VIDEO, "query": "A man talks.", "pred_relevant_windows": TALK},
        {"vid": VIDEO, "query": "He lifts a weight.", "pred_relevant_windows": LIFT},
        {"vid": OTHER, "query": "A dog runs.", "pred_relevant_windows": RUN},
    ],
    "submission": [
        {"qid": qid, "pred_relevant_windows": windows} for qid, windows in EXPECTED.items()
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str) -> None:
    truth = load_ground_truth(write(tmp_path / "truth", ACTIVITYNET), "activitynet")
    predictions = load_predictions(write(tmp_path / "p", FORMS[form]), truth)
    found = {one["qid"]: one["pred_relevant_windows"] for one in predictions}
    assert found == EXPECTED
    assert list(found) == list(EXPECTED)
    scores = score_moments(predictions, truth)
    # By hand: the best windows have the IoUs 8.5 / 10.5, 19.8 / 30 and 2 / 3.
    assert scores["R1@0.7"] == pytest.approx(33.33)
    assert scores["mIoU"] == pytest.approx(100 * (8.5 / 10.5 + 19.8 / 30 + 2 / 3) / 3, abs=0.01)


def test_qids_that_are_numbers_are_texts_as_keys(tmp_path: Path) -> None:
    truth = load_ground_truth(write(tmp_path / "truth", QVHIGHLIGHTS))
    predictions = {"12": [[2, 8]], "11": [[2, 8], [20, 26]]}
    found = load_predictions(write(tmp_path / "p", predictions), truth)
    assert [one["qid"] for one in found] == [11, 12]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"x": [[1, 2]]}, ["'x': is neither a qid", "such as 'v_abcdefghijk_0'"]),
        ({f"{VIDEO}_0": "1-2"}, ["got '1-2', expected windows [start, end]"]),
        ({f"{VIDEO}_0": [[1, 2], 3]}, ["expected windows [start, end]"]),
        ({VIDEO: [{"sentence": "x", "timestamp": [1, 2]}]}, ["has no query 'x' in the ground"]),
        ({VIDEO: {"sentences": ["a"], "timestamps": []}}, ["expected a list of 1"]),
        ({str(i): [[1, 2]] for i in range(10_000)}, ["'0': is neither a qid"]),
        ({"results": {}}, ["holds no predictions"]),
        ({f"{VIDEO}_0": [[1, 2]]}, ["2 of 3 queries have no prediction"]),
        ({f"{VIDEO}_0": [[80, 90]]}, ["starts after its 60.0 s video"]),
        ([{"vid": VIDEO, "pred_relevant_windows": []}], ["nor does it name video and sentence"]),
        ("AB1CD 1 2##a man.", ["got annotations, expected JSON Lines of qid"]),
        (b"\x80\x04\x95 a pickle", ["not UTF-8 text"]),
        ("", ["is empty, expected JSON Lines of qid"]),
    ],
)
def test_wrong_predictions_give_one_line(tmp_path: Path, content: Any, parts: list[str]) -> None:
    truth = load_ground_truth(write(tmp_path / "truth", ACTIVITYNET))
    with pytest.raises(GranAlignError) as error:
        load_predictions(write(tmp_path / "p", content), truth)
    message = str(error.value).replace(str(tmp_path), "")
    assert "\n" not in message
    assert len(message) < 400
    for part in parts:
        assert part in message
