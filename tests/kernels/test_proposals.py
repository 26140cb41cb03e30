from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from helpers import reference
from helpers.devices import DEVICES, call
from hypothesis import given, settings
from hypothesis import strategies as st

from granalign_fast.kernels import ProposalRules, Proposals, proposals

PLAIN = ProposalRules(stretch=False, gap=1, drop=0.3)
RICH = ProposalRules(
    sigma=1.0,
    variants=True,
    high_factor=0.5,
    low_factor=0.9,
    fine_sigma=0.5,
    fine_factor=0.8,
    own_share=0.5,
)
ODD = ProposalRules(
    sigma=3.1, variants=True, high_factor=0.25, gap=3, drop=0.6, own_share=0.2, length_weight=1.0
)
FINE = ProposalRules(fine_factor=0.3, low_factor=0.7, sigma=0.4, drop=0.2)
LONG = dataclasses.replace(RICH, shortest=7.0, shortest_power=0.4)
RULES = {"plain": PLAIN, "rich": RICH, "odd": ODD, "fine": FINE, "long": LONG}


def smooth_noise(rng, variants, clips):
    """Curves with runs in them, the size that similarity gives."""
    steps = rng.standard_normal((variants, clips + 8)).astype(np.float32)
    walk = np.stack([np.convolve(s, np.ones(5) / 5, "same")[4 : clips + 4] for s in steps])
    walk -= walk.min(axis=1, keepdims=True)
    return (walk / np.maximum(walk.max(axis=1, keepdims=True), 1e-6)).astype(np.float32)


def batch(seed, lengths, variants):
    rng = np.random.default_rng(seed)
    curves = [smooth_noise(rng, variants, n) if n else np.zeros((variants, 0)) for n in lengths]
    flat = np.ascontiguousarray(np.concatenate(curves, axis=1), dtype=np.float32)
    return flat, flat.mean(axis=0), np.cumsum([0, *lengths])


def lists(found: Proposals) -> list[list[tuple[int, int, float]]]:
    """Return the candidates of each pair, sorted; empty slots are left out."""
    pairs = []
    for begin, end in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        columns = (np.asarray(c)[begin:end].tolist() for c in found[:3])
        pairs.append(sorted(c for c in zip(*columns, strict=True) if c[2] > -np.inf))
    return pairs


def expected(curves, fused, offsets, rules):
    return [
        sorted(reference.proposals(curves[:, a:b].tolist(), fused[a:b].tolist(), rules))
        for a, b in pairwise(offsets)
    ]


# To the bit: every device and the reference agree on intervals and scores without a tolerance.
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize(
    ("lengths", "variants"),
    [
        ([1], 1),
        ([75], 6),
        ([19, 1, 0, 99, 2], 3),
        ([75] * 33, 1),
        ([989], 5),
    ],
    ids=str,
)
def test_equals_the_reference(device, rules, lengths, variants):
    curves, fused, offsets = batch(len(lengths), lengths, variants)
    got = lists(call(proposals, device, curves, fused, offsets, rules=rules))
    assert got == expected(curves, fused, offsets, rules)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_flat_curve_gives_the_whole_video(device, rules, level):
    curves = np.full((2, 24), level, np.float32)
    got = lists(call(proposals, device, curves, curves[0], [0, 1, 24], rules=rules))
    assert got == [[(0, 1, 0.0)], [(0, 23, 0.0)]]
    assert got == expected(curves, curves[0], [0, 1, 24], rules)


@pytest.mark.parametrize("device", DEVICES)
def test_many_pairs_and_levels_that_tie(device):
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, 40, 200).tolist()
    curves = (rng.integers(0, 4, (2, sum(lengths))) / 3).astype(np.float32)
    offsets = np.cumsum([0, *lengths])
    rules = dataclasses.replace(ODD, sigma=0.3, low_factor=0.5, gap=0)
    got = lists(call(proposals, device, curves, curves[1], offsets, rules=rules))
    assert got == expected(curves, curves[1], offsets, rules)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_a_pair_with_a_nan_gets_nothing_and_the_others_what_they_had(device, rules):
    curves, fused, offsets = batch(5, [40, 33, 1, 19], 2)
    straight = lists(call(proposals, device, curves, fused, offsets, rules=rules))
    curves[1, 45] = fused[45] = fused[73] = np.nan
    got = lists(call(proposals, device, curves, fused, offsets, rules=rules))
    assert got == [straight[0], [], [], straight[3]]


@pytest.mark.parametrize("device", DEVICES)
def test_curves_of_many_runs_with_few_clips_between(device):
    """Longer than a warp is wide, with runs that begin, end and join across its parts."""
    rng = np.random.default_rng(11)
    curves = (rng.random((3, 700)) < np.array([[0.5], [0.05], [0.95]])).astype(np.float32)
    curves[1, 31:33] = curves[2, 63:65] = 1
    offsets = [0, 300, 333, 700]
    for gap in (0, 1, 40, 1000):
        rules = ProposalRules(variants=True, gap=gap, drop=0.25, own_share=0.3)
        got = lists(call(proposals, device, curves, curves[0], offsets, rules=rules))
        assert got == expected(curves, curves[0], offsets, rules)


@pytest.mark.parametrize("device", DEVICES)
def test_no_pairs(device):
    curves = np.zeros((2, 0), np.float32)
    found = call(proposals, device, curves, curves[0], [0], rules=RICH)
    assert found.offsets.tolist() == [0]
    assert len(found.starts) == 0


@pytest.mark.parametrize(
    ("gap", "intervals"), [(0, [(1, 3), (4, 5), (7, 9)]), (1, [(1, 5), (7, 9)]), (2, [(1, 9)])]
)
def test_runs_join_over_at_most_gap_low_clips(gap, intervals):
    curve = np.array([[0, 1, 1, 0, 1, 0, 0, 1, 1, 0]], np.float32)
    found = proposals(curve, curve[0], [0, 10], rules=ProposalRules(gap=gap))
    assert [c[:2] for c in lists(found)[0]] == intervals


def test_the_papers_score():
    """(1 - lambda) * mu + lambda * rho with lambda 0.3, by hand."""
    curve = np.array([[0, 0, 1, 0.75, 0, 0, 0, 0, 1, 0]], np.float32)
    got = lists(proposals(curve, curve[0], [0, 10], rules=ProposalRules(stretch=False)))[0]
    assert got == [
        (2, 4, pytest.approx(0.7 * 0.875 + 0.3 * 2 / 3)),
        (8, 9, pytest.approx(0.7 * 1 + 0.3 / 3)),
    ]


def test_levels_add_the_core_and_the_surroundings_below_the_run():
    curve = np.array([[0, 0, 0, 0.3, 0.8, 0.8, 1, 0.8, 0.3, 0, 0, 0]], np.float32)
    rules = ProposalRules(high_factor=0.5, low_factor=0.9)
    got = lists(proposals(curve, curve[0], [0, 12], rules=rules))[0]
    assert [c[:2] for c in got] == [(3, 9), (4, 8), (6, 7)]
    around, run, core = (score for _, _, score in got)
    assert run > around
    assert run > core


def test_runs_that_are_shorter_than_usual_lose():
    """Half the score is left of a run with a quarter of the shortest usual length, at power 0.5."""
    curve = np.zeros((1, 20), np.float32)
    curve[0, 2:3] = curve[0, 6:10] = curve[0, 12:18] = 1
    plain = ProposalRules(stretch=False)
    rules = dataclasses.replace(plain, shortest=4.0, shortest_power=0.5)
    before, after = (lists(proposals(curve, curve[0], [0, 20], rules=r))[0] for r in (plain, rules))
    assert [c[:2] for c in after] == [(2, 3), (6, 10), (12, 18)]
    assert after[0][2] == pytest.approx(before[0][2] / 2)
    assert after[1:] == before[1:]


length_lists = st.lists(st.integers(0, 30), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), length_lists, st.sampled_from(list(RULES)))
def test_proposals_lie_inside_the_video(seed, lengths, name):
    found = proposals(*batch(seed, lengths, 2), rules=RULES[name])
    for clips, pair in zip(lengths, lists(found), strict=True):
        assert bool(pair) == bool(clips)
        assert all(0 <= start < end <= clips for start, end, _ in pair)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), length_lists, st.sampled_from(list(RULES)), st.data())
def test_permuting_pairs_permutes_proposals(seed, lengths, name, data):
    curves, fused, offsets = batch(seed, lengths, 2)
    straight = lists(proposals(curves, fused, offsets, rules=RULES[name]))
    order = data.draw(st.permutations(range(len(lengths))))
    columns = np.concatenate([np.arange(offsets[p], offsets[p + 1]) for p in order]).astype(int)
    permuted = proposals(
        np.ascontiguousarray(curves[:, columns]),
        fused[columns],
        np.cumsum([0, *(lengths[p] for p in order)]),
        rules=RULES[name],
    )
    assert lists(permuted) == [straight[p] for p in order]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": -1.0}, "sigma: got -1.0"),
        ({"sigma": float("nan")}, "sigma: got nan"),
        ({"low_factor": 1.5}, "low_factor: got 1.5"),
        ({"fine_factor": -1.0}, "fine_factor: got -1.0"),
        ({"fine_sigma": 65.0}, "fine_sigma: got 65.0"),
        ({"own_share": -0.1}, "own_share: got -0.1"),
        ({"shortest": 0.0}, "shortest: got 0.0"),
        ({"shortest_power": 1.5}, "shortest_power: got 1.5"),
        ({"gap": -1}, "gap: got -1"),
        ({"drop": 1.0}, "drop: got 1.0"),
    ],
)
def test_bad_rules_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ProposalRules(**change)
