from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import reference
from helpers.devices import DEVICES, call

from granalign_fast.kernels import FeedbackRules, feedback

# Float32 sums of up to 300 rows of unit length; half precision rounds the result once more.
TOLERANCE = {np.float32: 1e-5, np.float16: 2e-3}

RULES = FeedbackRules()

Batch = dict[str, Any]


def make(seed: int, lengths: Any, videos: Any, dim: int, counts: Any, dtype: Any) -> Batch:
    """Curves with equal values among them, and a quarter of the clips with an aware caption."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    total = int(sum(lengths[video] for video in videos))
    rows = np.full(total, -1, np.int32)
    chosen = np.flatnonzero(rng.random(total) < 0.25)
    rows[chosen] = rng.permutation(len(chosen))

    def unit(*shape: int) -> Any:
        drawn = rng.standard_normal((*shape, dim))
        return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(dtype)

    return {
        "curves": (rng.integers(0, 40, (sum(counts), total)) / 40).astype(np.float32),
        "simplified": unit(len(videos), counts[0]),
        "agnostic": unit(int(offsets[-1])),
        "offsets": offsets,
        "videos": np.array(videos, np.int64),
        "detailed": unit(len(videos), counts[1]),
        "aware": unit(len(chosen)),
        "aware_rows": rows,
    }


def judge(got: Any, batch: Batch, rules: FeedbackRules) -> None:
    dtype = batch["simplified"].dtype
    begin, turn = 0, batch["simplified"].shape[1]
    for pair, video in enumerate(batch["videos"]):
        own = batch["agnostic"][batch["offsets"][video] : batch["offsets"][video + 1]]
        end = begin + len(own)
        guides = batch["aware_rows"][begin:end] if "aware" in batch else np.full(len(own), -1)
        aware = {f: batch["aware"][row] for f, row in enumerate(guides) if row >= 0}
        for variant, curve in enumerate(batch["curves"][:, begin:end].tolist()):
            kind = "detailed" if variant >= turn else "simplified"
            before, after = batch[kind][pair], getattr(got, kind)[pair]
            number = variant - turn if variant >= turn else variant
            want = reference.moved(
                before[number], curve, own, aware if variant >= turn else {}, rules
            )
            np.testing.assert_allclose(after[number], want, atol=TOLERANCE[dtype.type])
            assert after.dtype == dtype
        begin = end


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("lengths", "videos", "dim", "counts"),
    [
        ([1], [0], 1, (1, 0)),
        ([19, 0, 75, 11, 12, 13], [2, 0, 1, 3, 2, 4, 5], 33, (3, 2)),
        ([75], [0], 384, (6, 0)),
        ([300, 31], [1, 0], 136, (5, 4)),
        ([40, 33], [0, 1], 264, (0, 9)),
    ],
    ids=str,
)
def test_equals_the_reference(
    device: str, dtype: Any, lengths: Any, videos: Any, dim: int, counts: Any
) -> None:
    batch = make(dim, lengths, videos, dim, counts, dtype)
    for given in (batch, {name: batch[name] for name in batch if not name.startswith("aware")}):
        judge(call(feedback, device, **given, rules=RULES), given, RULES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("clips", "sigma", "level"),
    [(1, 0, 0.5), (5, 2.5, 0), (64, 0.4, 0.9), (65, 1, 0), (1000, 9, 0.3), (9, 0, 1)],
)
def test_any_rules(device: str, clips: int, sigma: float, level: float) -> None:
    batch = make(clips, [64, 3], [0, 1], 20, (2, 2), np.float32)
    rules = FeedbackRules(clips=clips, sigma=sigma, level=level)
    judge(call(feedback, device, **batch, rules=rules), batch, rules)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("moved", ["simplified", "detailed", "agnostic", "aware"])
def test_arrays_that_begin_anywhere(device: str, moved: str) -> None:
    """A row is a multiple of 16 bytes long, but does not lie on one."""
    batch = make(3, [19, 8], [1, 0], 24, (3, 2), np.float32)
    flat = np.empty(batch[moved].size + 1, np.float32)
    flat[1:] = batch[moved].ravel()
    shifted = batch | {moved: flat[1:].reshape(batch[moved].shape)}
    judge(call(feedback, device, **shifted, rules=RULES), batch, RULES)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_values_are_taken_or_left_together(device: str) -> None:
    """So the result does not depend on the order in which a device looks at the clips."""
    batch = make(4, [40], [0], 8, (1, 0), np.float32)
    batch["curves"][:] = 0.5
    batch["curves"][0, :3] = 1
    rows, own = batch["agnostic"], batch["simplified"] - batch["agnostic"].mean(axis=0)
    got = call(feedback, device, **batch, rules=FeedbackRules(clips=3, sigma=0, level=0)).simplified
    np.testing.assert_allclose(got, own + rows[:3].mean(axis=0), atol=1e-6)
    got = call(feedback, device, **batch, rules=FeedbackRules(clips=4, sigma=0, level=0)).simplified
    np.testing.assert_allclose(got, own + rows.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_flat_curve_moves_nothing(device: str) -> None:
    batch = make(5, [20, 1], [0, 1], 8, (2, 1), np.float32)
    batch["curves"][:] = 0
    got = call(feedback, device, **batch, rules=RULES)
    np.testing.assert_allclose(got.simplified, batch["simplified"], atol=1e-6)
    np.testing.assert_allclose(got.detailed, batch["detailed"], atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spoilt", ["simplified", "agnostic"])
def test_a_nan_reaches_its_own_pair_alone(device: str, spoilt: str) -> None:
    batch = make(6, [20, 30], [0, 1, 0], 8, (1, 0), np.float32)
    straight = call(feedback, device, **batch, rules=RULES).simplified.copy()
    batch[spoilt][1 if spoilt == "simplified" else 25] = np.nan  # of pair 1, about video 1
    batch["curves"][0, 25:30] = np.nan
    got = call(feedback, device, **batch, rules=RULES).simplified
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[[0, 2]], straight[[0, 2]])


@pytest.mark.parametrize("device", DEVICES)
def test_no_pairs(device: str) -> None:
    batch = make(7, [5], [], 8, (2, 1), np.float32)
    assert call(feedback, device, **batch, rules=RULES).simplified.shape == (0, 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": np.zeros((2, 4), np.float32)}, "curves: got shape"),
        ({"curves": np.zeros((2, 5))}, "curves: got dtype float64"),
        ({"simplified": np.zeros((1, 0, 4), np.float32)}, "at least one"),
        ({"agnostic": np.zeros((5, 3), np.float32)}, "agnostic: got shape"),
        ({"videos": [1]}, "videos: got 1 to 1"),
        ({"aware": np.zeros((1, 4), np.float32)}, "expected both or neither"),
    ],
)
def test_bad_arguments_are_named(change: Batch, message: str) -> None:
    arguments: Batch = {
        "curves": np.zeros((2, 5), np.float32),
        "simplified": np.zeros((1, 2, 4), np.float32),
        "agnostic": np.zeros((5, 4), np.float32),
        "offsets": [0, 5],
    }
    feedback(**arguments, rules=RULES)
    with pytest.raises(ValueError, match=message):
        feedback(**arguments | change, rules=RULES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": 0}, "clips: got 0"),
        ({"sigma": -1.0}, "sigma: got -1.0"),
        ({"level": 2}, "level: got 2"),
    ],
)
def test_bad_rules_are_named(change: Batch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeedbackRules(**change)
