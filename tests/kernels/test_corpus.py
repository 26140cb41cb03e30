from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from helpers.corpora import check, check_exactly, unit, whole
from helpers.devices import DEVICES, call, cuda_missing
from hypothesis import given, settings
from hypothesis import strategies as st

from granalign_fast.kernels.corpus import FEW, Top, corpus

HALVES = [np.float32, np.float16]
EMULATED = [device for device in DEVICES if str(device).startswith("emulated")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("count", "clips", "dim", "k"),
    [(1, 300, 384, 10), (2, 130, 31, 129), (8, 300, 100, 1), (9, 100, 384, 5), (33, 193, 7, 193)],
)
def test_equals_the_reference(
    device: str, dtype: Any, count: int, clips: int, dim: int, k: int
) -> None:
    rng = np.random.default_rng(count)
    asked, rows = unit(rng, count, dim, dtype), unit(rng, clips, dim, dtype)
    check(call(corpus, device, asked, rows, k=k), asked, rows, k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("count", "clips", "dim", "k"),
    [
        *((count, clips, 3, 7) for count in (1, FEW, FEW + 1) for clips in (0, 1, 6, 7, 8)),
        (1, 5000, 8, 1),
        (2, 5000, 5, 100),  # two segments, of which the first fills the lists in order
        (1, 9500, 8, 1024),  # more blocks' worth than blocks; more equal scores than places
        (9, 4900, 17, 40),
        (130, 400, 64, 30),  # two tiles of queries, three of clips
        (129, 385, 1, 300),
    ],
)
def test_exact_numbers_give_exact_ties(
    device: str, dtype: Any, count: int, clips: int, dim: int, k: int
) -> None:
    rng = np.random.default_rng(clips)
    asked, rows = whole(rng, count, dim, dtype), whole(rng, clips, dim, dtype)
    check_exactly(call(corpus, device, asked, rows, k=k), asked, rows, k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 3, 10])
def test_worst_first_in_the_least_memory(device: str, count: int) -> None:
    """Every clip is better than all before it: each segment fills its list to the last place."""
    k, clips = 50, 9000
    ramp = np.stack([np.full(clips, 1.0), np.arange(clips) / 4096], axis=1).astype(np.float32)
    asked = np.tile(np.array([0.25, 1.0], np.float32), (count, 1))
    got = call(corpus, device, asked, ramp, k=k, workspace=8 * count * (k + 4096))
    assert (got.rows == np.arange(clips - 1, clips - 1 - k, -1)).all()
    check_exactly(got, asked[:1], ramp, k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("count", [1, 5, 11])
def test_equal_clips_rank_by_row(device: str, dtype: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    asked = unit(rng, count, 21, dtype)
    clips = np.repeat(unit(rng, 1, 21, dtype), 4300, axis=0)
    for rows in (clips, clips[:331]):
        top = call(corpus, device, asked, rows, k=300)
        assert (top.rows == np.arange(300)).all()
        assert (top.scores == top.scores[:, :1]).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 9])
def test_zero_has_no_sign(device: str, count: int) -> None:
    asked = np.full((count, 1), 1e-30, np.float32)
    clips = np.array([[-1e-30], [1e-30], [-1e-30], [-1.0]], np.float32)  # -0, 0, -0
    assert (call(corpus, device, asked, clips, k=4).rows == np.arange(4)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_nan_ranks_first_and_names_its_clip(device: str, dtype: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    asked, clips = unit(rng, count, 12, dtype), unit(rng, 4200, 12, dtype)
    clips[4150, 11] = np.nan
    top = call(corpus, device, asked, clips, k=5)
    assert (top.rows[:, 0] == 4150).all()
    assert np.isnan(top.scores[:, 0]).all()
    assert np.isfinite(top.scores[:, 1:]).all()
    asked[0, 3] = np.nan
    top = call(corpus, device, asked, clips, k=5)
    assert np.isnan(top.scores[0]).all()
    assert top.rows[0].tolist() == [0, 1, 2, 3, 4]
    assert np.isfinite(top.scores[1:, 1:]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_minus_infinity_is_still_a_clip(device: str) -> None:
    clips = np.array([[-np.inf], [1.0], [-np.inf]], np.float16)
    top = call(corpus, device, np.ones((1, 1), np.float16), clips, k=4)
    assert top.rows.tolist() == [[1, 0, 2, -1]]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("count", [1, 4, 12])
def test_the_order_of_threads_changes_no_bit(dtype: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    asked, clips = unit(rng, count, 30, dtype), unit(rng, 4500, 30, dtype)
    forwards, backwards = (call(corpus, device, asked, clips, k=70) for device in EMULATED)
    assert forwards.scores.tobytes() == backwards.scores.tobytes()
    assert forwards.rows.tobytes() == backwards.rows.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("count", [1, 4, 9])
def test_arrays_that_begin_anywhere(device: str, dtype: Any, count: int) -> None:
    """Rows are 16 bytes long each, but do not lie on a multiple of 16."""
    dim = 16 // np.dtype(dtype).itemsize
    rng = np.random.default_rng(count)
    asked = whole(rng, 1, count * dim + 1, dtype)[0, 1:].reshape(count, dim)
    clips = whole(rng, 1, 500 * dim + 1, dtype)[0, 1:].reshape(500, dim)
    check_exactly(call(corpus, device, asked, clips, k=20), asked, clips, 20)


@pytest.mark.parametrize("device", DEVICES)
def test_more_queries_than_a_device_takes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("granalign_fast.kernels.corpus"), "MOST", 12)
    rng = np.random.default_rng(0)
    for count in (0, 29):  # 12 and 12 on tensor cores, 5 streamed
        asked, clips = whole(rng, count, 9, np.float16), whole(rng, 40, 9, np.float16)
        check_exactly(call(corpus, device, asked, clips, k=12), asked, clips, 12)


@pytest.mark.parametrize("worth_waking", [0, 1 << 62])
@pytest.mark.parametrize("dtype", HALVES)
def test_one_large_product_or_many_small_ones(
    worth_waking: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("granalign_fast.kernels.corpus_host")
    monkeypatch.setattr(module, "_WORTH_WAKING", worth_waking)
    rng = np.random.default_rng(0)
    asked, clips = whole(rng, 17, 9, dtype), whole(rng, 1100, 9, dtype)
    check_exactly(corpus(asked, clips, k=20), asked, clips, 20)
    same = np.repeat(unit(rng, 1, 24, dtype), 4130, axis=0)
    assert (corpus(unit(rng, 17, 24, dtype), same, k=999).rows == np.arange(999)).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 8, 9, 33]),
    st.sampled_from([0, 1, 2, 63, 64, 65, 500]),
    st.integers(1, 9),
    st.integers(1, 70),
    st.sampled_from(HALVES),
)
def test_any_shape(seed: int, count: int, clips: int, dim: int, k: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    asked, rows = whole(rng, count, dim, dtype), whole(rng, clips, dim, dtype)
    check_exactly(corpus(asked, rows, k=k), asked, rows, k)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 8, 9, 33]),
    st.sampled_from([1, 2, 191, 192, 193, 500]),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from(HALVES),
    st.sampled_from(EMULATED),
)
def test_any_shape_emulated(
    seed: int, count: int, clips: int, dim: int, k: int, dtype: Any, device: str
) -> None:
    rng = np.random.default_rng(seed)
    asked, rows = whole(rng, count, dim, dtype), whole(rng, clips, dim, dtype)
    got, expected = call(corpus, device, asked, rows, k=k), corpus(asked, rows, k=k)
    np.testing.assert_array_equal(got.rows, expected.rows)
    np.testing.assert_array_equal(got.scores, expected.scores)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_a_library_in_two_parts_has_the_best_of_both(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    asked, clips = whole(rng, 3, 6, np.float32), whole(rng, 97, 6, np.float32)
    cut = int(rng.integers(0, 98))
    left, right = corpus(asked, clips[:cut], k=k), corpus(asked, clips[cut:], k=k)
    scores = np.concatenate([left.scores, right.scores], axis=1)
    rows = np.concatenate([left.rows, np.where(right.rows < 0, -1, right.rows + cut)], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    whole_library = corpus(asked, clips, k=k)
    np.testing.assert_array_equal(whole_library.rows, np.take_along_axis(rows, order, axis=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: got 0, expected 1 to 1024"),
        ({"k": 1025}, "k: got 1025"),
        ({"clips": np.zeros((5, 3), np.float32)}, r"clips: got shape \(5, 3\)"),
        ({"clips": np.zeros((5, 4), np.float16)}, "clips: got dtype float16"),
        ({"queries": np.zeros((2, 4))}, "queries: got dtype float64"),
        ({"queries": np.zeros(4, np.float32)}, "queries: got shape"),
        ({"clips": np.zeros((5, 8), np.float32)[:, ::2]}, "not C-contiguous"),
        (
            {"queries": np.zeros((2, 0), np.float32), "clips": np.zeros((5, 0), np.float32)},
            "no numbers in a row",
        ),
        ({"workspace": 65_000}, "workspace: got 65000 bytes, expected at least 65584"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {
        "queries": np.zeros((2, 4), np.float32),
        "clips": np.zeros((5, 4), np.float32),
        "k": 3,
    } | change
    with pytest.raises(ValueError, match=message):
        corpus(**arguments)


def test_more_clips_than_a_row_number_holds() -> None:
    clips = np.broadcast_to(np.float32(0), (1 << 31, 1))
    with pytest.raises(ValueError, match=r"clips"):
        corpus(np.zeros((1, 1), np.float32), clips, k=1)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("count", [1, 40])
def test_in_a_captured_graph(count: int) -> None:
    if missing := cuda_missing():
        pytest.skip(missing)
    import cupy

    rng = np.random.default_rng(0)
    asked, clips = whole(rng, count, 24, np.float16), whole(rng, 6000, 24, np.float16)
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(pool.malloc), stream:
        on_device = cupy.asarray(whole(rng, count, 24, np.float16)), cupy.asarray(clips)
        corpus(*on_device, k=9)  # compiles, and fills the pool
        stream.begin_capture()
        top = corpus(*on_device, k=9)
        graph = stream.end_capture()
        on_device[0].set(asked)  # what it is asked only now
        graph.launch(stream)
        stream.synchronize()
    check_exactly(Top(cupy.asnumpy(top.scores), cupy.asnumpy(top.rows)), asked, clips, 9)
