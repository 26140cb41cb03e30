from __future__ import annotations

import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.metrics import score_corpus

TRUTH = [("a", [(0.0, 10.0), (30.0, 40.0)]), ("b", [(0.0, 20.0)]), ("c", [(4.0, 8.0)])]
VIDEOS = [["a", "b"], ["x", "y", "b"], [f"v{number}" for number in range(10)] + ["c"]]
MOMENTS = [
    [("a", 30.0, 40.0)],  # the second window
    [("x", 0.0, 20.0), ("b", 0.0, 12.0), ("b", 0.0, 20.0)],  # another video; 0.6; 1
    [("c", 8.0, 12.0), ("c", 4.0, 4.0)],  # they only touch the window
]


def test_counts_of_right_videos_and_moments() -> None:
    metrics = score_corpus(VIDEOS, MOMENTS, TRUTH)
    one, two, three = 33.33, 66.67, 100.0
    assert metrics == {
        "video-R@1": one,
        "video-R@5": two,
        "video-R@10": two,
        "video-R@100": three,
        "moment-R@1,IoU=0.5": one,
        "moment-R@5,IoU=0.5": two,
        "moment-R@10,IoU=0.5": two,
        "moment-R@20,IoU=0.5": two,
        "moment-R@1,IoU=0.7": one,
        "moment-R@5,IoU=0.7": two,
        "moment-R@10,IoU=0.7": two,
        "moment-R@20,IoU=0.7": two,
    }


def test_nothing_found_is_a_miss() -> None:
    assert set(score_corpus([[]], [[]], TRUTH[:1]).values()) == {0.0}


@pytest.mark.parametrize(
    ("videos", "truth", "message"),
    [
        ([], [], "at least one query"),
        ([[], []], TRUTH[:1], "got 2 lists of videos and 1 of moments for 1"),
        ([["a", "b", "a"]], TRUTH[:1], "got a video twice"),
        ([["a"]], [("a", [])], "video 'a' has no true window"),
    ],
)
def test_bad_arguments_are_named(videos: list, truth: list, message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        score_corpus(videos, [[]] * len(truth), truth)
