from __future__ import annotations

import numpy as np
import pytest
from helpers import reference
from helpers.devices import DEVICES, call
from hypothesis import given, settings
from hypothesis import strategies as st

from granalign_fast.kernels.nms import Ranked, nms


def batch(pairs: list[list[tuple[int, int, float]]]):
    flat = [c for pair in pairs for c in pair]
    offsets = np.cumsum([0, *(len(pair) for pair in pairs)])
    return (
        np.array([c[0] for c in flat], np.int32),
        np.array([c[1] for c in flat], np.int32),
        np.array([c[2] for c in flat], np.float64),
        offsets,
    )


def lists(ranked: Ranked) -> list[list[tuple[int, int, float]]]:
    return [
        list(zip(s[:n].tolist(), e[:n].tolist(), v[:n].tolist(), strict=True))
        for s, e, v, n in zip(*ranked, strict=True)
    ]


def random_pairs(seed: int, count: int, clips: int, most: int):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        n = int(rng.integers(0, most + 1))
        start = rng.integers(0, clips, n)
        end = np.minimum(start + rng.integers(1, clips + 1, n), clips)
        score = rng.integers(0, 8, n) / 8  # few levels: many ties
        pairs.append(list(zip(start.tolist(), end.tolist(), score.tolist(), strict=True)))
    return pairs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("count", "clips", "most"),
    # The last has more than fit into shared memory.
    [(1, 1, 1), (3, 19, 7), (33, 75, 40), (2, 989, 300), (2, 3000, 4000)],
)
@pytest.mark.parametrize("threshold", [0.3, 0.75, 1.0])
def test_equals_the_reference(device, count, clips, most, threshold):
    pairs = random_pairs(clips, count, clips, most)
    got = lists(call(nms, device, *batch(pairs), threshold=threshold, top=10))
    assert got == [reference.nms(pair, threshold, 10) for pair in pairs]


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_in_nothing_out(device):
    ranked = call(nms, device, *batch([[], []]), threshold=0.5, top=3)
    assert ranked.counts.tolist() == [0, 0]
    assert np.isneginf(ranked.scores).all()


@pytest.mark.parametrize("device", DEVICES)
def test_empty_slots_are_passed_over(device):
    pair = [(0, 5, -np.inf), (2, 4, 0.25), (0, 0, -np.inf)]
    assert lists(call(nms, device, *batch([pair]), threshold=0.5, top=3)) == [[(2, 4, 0.25)]]


@pytest.mark.parametrize("device", DEVICES)
def test_ties_go_to_the_earlier_start_then_the_earlier_end(device):
    pair = [(4, 9, 0.5), (1, 9, 0.5), (1, 3, 0.5), (1, 9, 0.5)]
    got = lists(call(nms, device, *batch([pair]), threshold=1.0, top=4))
    assert got == [[(1, 3, 0.5), (1, 9, 0.5), (4, 9, 0.5)]]


@pytest.mark.parametrize("device", DEVICES)
def test_an_overlap_of_exactly_the_threshold_goes(device):
    pair = [(0, 4, 1.0), (0, 3, 0.5), (1, 3, 0.25)]  # IoU 0.75 and 0.5 with the best
    assert len(lists(call(nms, device, *batch([pair]), threshold=0.75, top=9))[0]) == 2


candidate = st.tuples(st.integers(0, 20), st.integers(1, 12), st.integers(0, 5)).map(
    lambda t: (t[0], t[0] + t[1], t[2] / 4)
)
pair_lists = st.lists(st.lists(candidate, max_size=12), min_size=1, max_size=5)


@settings(deadline=None)
@given(pair_lists, st.sampled_from([0.3, 0.5, 0.75, 1.0]), st.integers(1, 12))
def test_is_idempotent(pairs, threshold, top):
    once = lists(nms(*batch(pairs), threshold=threshold, top=top))
    assert lists(nms(*batch(once), threshold=threshold, top=top)) == once


@settings(deadline=None)
@given(pair_lists, st.randoms(use_true_random=False))
def test_order_of_candidates_and_of_pairs_does_not_matter(pairs, random):
    expected = lists(nms(*batch(pairs), threshold=0.5, top=5))
    order = list(range(len(pairs)))
    random.shuffle(order)
    shuffled = [random.sample(pairs[i], len(pairs[i])) for i in order]
    got = lists(nms(*batch(shuffled), threshold=0.5, top=5))
    assert got == [expected[i] for i in order]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "threshold: got 0.0"),
        ({"threshold": float("nan")}, "threshold: got nan"),
        ({"top": 0}, "top: got 0"),
        ({"offsets": [0, 2]}, "offsets: got 1-d, from 0 to 2"),
        ({"offsets": [0, 2, 1]}, "goes backwards at 1"),
        ({"scores": np.zeros(1, np.float32)}, "scores: got dtype float32"),
        ({"ends": np.zeros(2, np.int32)}, "ends: got shape"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "starts": np.zeros(1, np.int32),
        "ends": np.ones(1, np.int32),
        "scores": np.zeros(1),
        "offsets": [0, 1],
        "threshold": 0.5,
        "top": 1,
    } | change
    with pytest.raises(ValueError, match=message):
        nms(**arguments)
