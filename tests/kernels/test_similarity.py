from __future__ import annotations

import numpy as np
import pytest
from helpers import reference
from helpers.devices import DEVICES, call
from hypothesis import given, settings
from hypothesis import strategies as st

from granalign_fast.kernels.similarity import similarity

# Sums of up to 768 products of unit vectors in float32, then divided by the curve's range, which
# is at least 0.05 here. Half precision is converted exactly and summed in float32 as well.
TOLERANCE = 1e-4


def unit(rng, *shape, dtype=np.float32):
    rows = rng.standard_normal(shape) + 0.2
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / norm).astype(dtype)


def make(seed, lengths, videos, dim, simplified, detailed, aware_share=0.3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    total = int(sum(lengths[v] for v in videos))
    rows = np.full(total, -1, np.int32)
    chosen = np.flatnonzero(rng.random(total) < aware_share)
    rows[chosen] = rng.permutation(len(chosen)).astype(np.int32)
    return {
        "simplified": unit(rng, len(videos), simplified, dim, dtype=dtype),
        "agnostic": unit(rng, int(offsets[-1]), dim, dtype=dtype),
        "offsets": offsets,
        "videos": np.array(videos, np.int64),
        "detailed": unit(rng, len(videos), detailed, dim, dtype=dtype),
        "aware": unit(rng, len(chosen), dim, dtype=dtype),
        "aware_rows": rows,
    }


def expected(batch, power=1.0):
    """Per pair: the normalised curves and their mean, by the naive loops."""
    begin = 0
    for pair, video in enumerate(batch["videos"]):
        clips = batch["agnostic"][batch["offsets"][video] : batch["offsets"][video + 1]]
        rows = batch["aware_rows"][begin : begin + len(clips)]
        begin += len(clips)
        aware = {f: batch["aware"][row] for f, row in enumerate(rows) if row >= 0}
        raw = reference.cosine_curves(
            batch["simplified"][pair], batch["detailed"][pair], clips, aware
        )
        curves = [[x**power for x in reference.normalised(curve)] for curve in raw]
        yield reference.as_array(curves, len(clips)), np.array(reference.fused(curves))


def check(curves, batch, power=1.0):
    for pair, (variants, fused) in enumerate(expected(batch, power)):
        part = slice(*curves.offsets[pair : pair + 2])
        np.testing.assert_allclose(curves.variants[:, part], variants, atol=TOLERANCE)
        np.testing.assert_allclose(curves.fused[part], fused, atol=TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("lengths", "videos", "dim", "m"),
    [
        ([1], [0], 1, 1),
        ([19, 1, 75], [0, 1, 2], 384, 3),
        ([99, 0, 19], [2, 1, 0, 0, 2], 33, 5),
        ([75], [0] * 33, 31, 1),
        ([7, 12], [0, 1], 768, 5),
        ([989], [0], 8, 3),
    ],
)
def test_equals_the_reference(device, dtype, lengths, videos, dim, m):
    batch = make(dim + m, lengths, videos, dim, m, m, dtype=dtype)
    check(call(similarity, device, **batch), batch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("moved", ["simplified", "detailed", "agnostic", "aware"])
def test_arrays_that_begin_anywhere(device, dtype, moved):
    """A row is a multiple of 16 bytes long, but does not lie on one."""
    batch = make(6, [19, 8], [1, 0], 24, 3, 2, dtype=dtype)
    flat = np.empty(batch[moved].size + 1, dtype)
    flat[1:] = batch[moved].ravel()
    moved_batch = batch | {moved: flat[1:].reshape(batch[moved].shape)}
    check(call(similarity, device, **moved_batch), batch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("simplified", "detailed"), [(6, 0), (0, 2), (9, 8)])
def test_any_number_of_either_granularity(device, simplified, detailed):
    batch = make(3, [19, 8], [1, 0], 20, simplified, detailed)
    check(call(similarity, device, **batch), batch)


@pytest.mark.parametrize("device", DEVICES)
def test_power(device):
    batch = make(4, [19, 8], [1, 0], 20, 9, 2)
    check(call(similarity, device, **batch, power=1.5), batch, power=1.5)


@pytest.mark.parametrize("device", DEVICES)
def test_without_aware_captions_detailed_variants_meet_the_agnostic_ones(device):
    batch = make(5, [12], [0], 16, 2, 2, aware_share=0)
    del batch["aware"], batch["aware_rows"]
    curves = call(similarity, device, **batch)
    both = np.concatenate([batch["simplified"], batch["detailed"]], axis=1)
    same = call(similarity, device, both, batch["agnostic"], batch["offsets"])
    np.testing.assert_array_equal(curves.variants, same.variants)


@pytest.mark.parametrize("device", DEVICES)
def test_a_constant_row_becomes_zero(device):
    rng = np.random.default_rng(0)
    clips = np.repeat(unit(rng, 1, 48), 41, axis=0)
    curves = call(similarity, device, unit(rng, 1, 3, 48), clips, [0, 41])
    assert not curves.variants.any()
    assert not curves.fused.any()


@pytest.mark.parametrize("device", DEVICES)
def test_no_clips_at_all(device):
    rng = np.random.default_rng(0)
    curves = call(similarity, device, unit(rng, 2, 3, 4), unit(rng, 0, 4), [0, 0, 0])
    assert curves.variants.shape == (3, 0)
    assert curves.offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_never_a_ranking(device):
    rng = np.random.default_rng(0)
    clips = unit(rng, 9, 4)
    clips[4, 2] = np.nan
    curves = call(similarity, device, unit(rng, 1, 2, 4), clips, [0, 9])
    assert np.isnan(curves.fused[4])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_adding_a_constant_to_a_row_changes_nothing(seed, constant):
    """An extra dimension that all clips share adds the same to every cosine of a variant."""
    rng = np.random.default_rng(seed)
    queries, clips = unit(rng, 1, 2, 8), unit(rng, 11, 8)
    shifted = np.concatenate([queries, np.full((1, 2, 1), constant, np.float32)], axis=2)
    widened = np.concatenate([clips, np.ones((11, 1), np.float32)], axis=1)
    np.testing.assert_allclose(
        similarity(shifted, widened, [0, 11]).variants,
        similarity(queries, clips, [0, 11]).variants,
        atol=1e-4,
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.permutations(range(5)))
def test_permuting_pairs_permutes_curves(seed, order):
    batch = make(seed, [4, 9, 1], [0, 1, 2, 1, 0], 6, 2, 0)
    del batch["aware"], batch["aware_rows"], batch["detailed"]
    straight = similarity(**batch)
    permuted = similarity(
        **batch | {"simplified": batch["simplified"][order], "videos": batch["videos"][list(order)]}
    )
    for position, pair in enumerate(order):
        np.testing.assert_array_equal(
            permuted.variants[:, slice(*permuted.offsets[position : position + 2])],
            straight.variants[:, slice(*straight.offsets[pair : pair + 2])],
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"simplified": np.zeros((1, 2, 3), np.float64)}, "simplified: got dtype float64"),
        ({"simplified": np.zeros((1, 3), np.float32)}, "simplified: got shape"),
        ({"simplified": np.zeros((1, 0, 4), np.float32)}, "at least one"),
        ({"simplified": np.zeros((2, 4, 4), np.float32)[:, ::2]}, "not C-contiguous"),
        ({"agnostic": np.zeros((5, 3), np.float32)}, "agnostic: got shape"),
        ({"agnostic": np.zeros((5, 4), np.float16)}, "agnostic: got dtype float16"),
        ({"offsets": [0, 4]}, "offsets: got 1-d, from 0 to 4"),
        ({"videos": [1]}, "videos: got 1 to 1"),
        ({"videos": [0, 0]}, "videos: got shape"),
        ({"power": 0.0}, "power: got 0.0"),
        ({"aware": np.zeros((1, 4), np.float32)}, "expected both or neither"),
        (
            {
                "aware": np.zeros((1, 4), np.float32),
                "aware_rows": np.array([0, 1, -1, -1, -1], np.int32),
            },
            "aware_rows: got -1 to 1",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "simplified": np.zeros((1, 2, 4), np.float32),
        "agnostic": np.zeros((5, 4), np.float32),
        "offsets": [0, 5],
    } | change
    with pytest.raises(ValueError, match=message):
        similarity(**arguments)


def test_mixed_arrays_are_refused():
    with pytest.raises(TypeError, match="simplified from builtins"):
        similarity([[[1.0]]], np.zeros((1, 1), np.float32), [0, 1])  # type: ignore[arg-type]
