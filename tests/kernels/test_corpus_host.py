"""The host's own ways: filters by products, float16 as bits, threads, memory maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import check, check_exactly, unit, whole

from granalign_fast.kernels import corpus, corpus_host


def test_every_float16_is_read_right() -> None:
    """Subnormal numbers, infinite ones and NaN: the score of a query that is 1 is the number."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    for some in np.array_split(numbers, 70):
        top = corpus(np.ones((1, 1), np.float16), some, k=1024)
        got = np.full(len(some), np.float32(7))
        got[top.rows[0, : len(some)]] = top.scores[0, : len(some)]
        np.testing.assert_array_equal(got, some[:, 0].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_query_scores_as_many_do(dtype: Any) -> None:
    """Products only choose: scores are those of the sums, bit for bit, and so is the order."""
    rng = np.random.default_rng(0)
    asked, clips = unit(rng, 20, 100, dtype), unit(rng, 5000, 100, dtype)
    clips[1000:3000] = clips[17]  # BLAS sums rows of a block in more than one order
    together = corpus(asked, clips, k=64)
    check(together, asked, clips, 64)
    for number in range(20):
        alone = corpus(asked[number : number + 1], clips, k=64)
        assert alone.scores.tobytes() == together.scores[number].tobytes()
        (scores,) = corpus_host.row_scores(asked[number : number + 1], clips)
        assert scores[alone.rows[0]].tobytes() == alone.scores.tobytes()
        assert alone.rows.tobytes() == together.rows[number].tobytes()


def test_numbers_of_any_size_are_not_filtered_out() -> None:
    """The bound on rounding follows the sizes of clips and queries."""
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((6000, 8)).astype(np.float32)
    clips *= 10.0 ** rng.integers(-18, 19, (6000, 1)).astype(np.float32)
    asked = rng.standard_normal((5, 8)).astype(np.float32) * np.float32(1e18)
    exact = np.stack([np.vecdot(clips, query) for query in asked])
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :30]
    np.testing.assert_array_equal(corpus(asked, clips, k=30).rows, expected)


@pytest.mark.parametrize("count", [1, 5])
def test_threads_and_a_memory_map_change_nothing(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(count)
    asked, clips = whole(rng, count, 9, np.float16), whole(rng, 7000, 9, np.float16)
    np.save(tmp_path / "clips.npy", clips)
    monkeypatch.setattr(corpus_host, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(corpus_host, "_TAKEN", 900)
    monkeypatch.setattr(corpus_host, "cores", lambda: 3)
    mapped = np.load(tmp_path / "clips.npy", mmap_mode="r")
    check_exactly(corpus(asked, mapped, k=50), asked, clips, 50)
