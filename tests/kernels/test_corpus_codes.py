"""Codes of 8 bits change no result: rows and scores are those of the search without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import unit

from granalign_fast.kernels import corpus, corpus_codes
from granalign_fast.kernels.corpus_codes import coded_keys, make_codes
from granalign_fast.kernels.corpus_host import best_keys

Clips = Callable[[np.random.Generator], Any]


def _crowded(rng: np.random.Generator) -> Any:
    """Clips in heaps, whose scores differ by less than codes tell."""
    heaps = unit(rng, 20, 64, np.float32)[rng.integers(0, 20, 9000)]
    return (heaps + rng.standard_normal(heaps.shape).astype(np.float32) * 1e-4).astype(np.float16)


def _outlying(rng: np.random.Generator) -> Any:
    """One number is large in all clips, as image encoders have it; one is the same in all."""
    clips = unit(rng, 9000, 64, np.float32)
    clips[:, 7] += 8
    clips[:, 9] = 0.25
    return clips


def _repeated(rng: np.random.Generator) -> Any:
    """The lower row is better where scores are equal."""
    return unit(rng, 30, 64, np.float16)[rng.integers(0, 30, 9000)]


CASES: dict[str, Clips] = {
    "float16": lambda rng: unit(rng, 9000, 64, np.float16),
    "float32": lambda rng: unit(rng, 9000, 64, np.float32),
    "long rows": lambda rng: unit(rng, 600, 3000, np.float16),
    "odd rows": lambda rng: unit(rng, 9000, 3, np.float16),
    "few": lambda rng: unit(rng, 3, 64, np.float16),
    "crowded": _crowded,
    "outlying": _outlying,
    "repeated": _repeated,
}


@pytest.mark.parametrize("count", [1, 5, 33])
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_without_codes(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(count)
    clips = CASES[name](rng)
    # A query beside clips, and queries of other lengths.
    asked = unit(rng, count, clips.shape[1], clips.dtype)
    asked[0] = clips[-1]
    asked *= np.asarray(10.0 ** rng.integers(-2, 3, (count, 1)), clips.dtype)
    codes = make_codes(clips)
    for cores in (1, 3):
        monkeypatch.setattr(corpus_codes, "cores", lambda cores=cores: cores)
        for k in (1, 20, 300):
            keys = coded_keys(asked, clips, codes, k)
            assert keys is not None
            np.testing.assert_array_equal(keys, best_keys(asked, clips, k))


def test_most_clips_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    clips, asked = unit(rng, 20_000, 96, np.float16), unit(rng, 4, 96, np.float16)
    read: list[int] = []
    real = corpus_codes.some_keys

    def counted(asked: Any, number: int, clips: Any, rows: Any) -> Any:
        read.append(len(rows))
        return real(asked, number, clips, rows)

    monkeypatch.setattr(corpus_codes, "some_keys", counted)
    corpus(asked, clips, k=10, codes=make_codes(clips))
    assert 4 * 10 <= sum(read) < 4 * 200


def test_largest_products_do_not_overflow() -> None:
    """All codes are 0 or 255 and all digits the greatest: the sums of older CPUs have 16 bits."""
    signs = np.random.default_rng(0).choice([-1, 1], (3000, 1024)).astype(np.float16)
    signs[0], signs[1] = 1, -1
    asked = signs[:5]
    codes = make_codes(signs)
    assert set(np.unique(codes.rows)) == {0, 255}
    keys = coded_keys(asked, signs, codes, 7)
    assert keys is not None
    np.testing.assert_array_equal(keys, best_keys(asked, signs, 7))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_queries_that_have_no_digits_are_searched_without_codes(value: float) -> None:
    rng = np.random.default_rng(0)
    clips, asked = unit(rng, 500, 16, np.float16), unit(rng, 3, 16, np.float16)
    asked[1] = value
    codes = make_codes(clips)
    assert coded_keys(asked, clips, codes, 9) is None
    with_codes, without = corpus(asked, clips, k=9, codes=codes), corpus(asked, clips, k=9)
    np.testing.assert_array_equal(with_codes.rows, without.rows)


def test_without_onnx_runtime_clips_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    clips, asked = unit(rng, 500, 16, np.float16), unit(rng, 3, 16, np.float16)
    monkeypatch.setattr(corpus_codes, "_session", lambda: None)
    top = corpus(asked, clips, k=9, codes=make_codes(clips))
    np.testing.assert_array_equal(top.rows, corpus(asked, clips, k=9).rows)


def test_codes_can_be_memory_maps_and_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips, asked = unit(rng, 5000, 32, np.float16), unit(rng, 2, 32, np.float16)
    codes = make_codes(clips)
    np.save(tmp_path / "codes.npy", codes.rows)
    codes = codes._replace(rows=np.load(tmp_path / "codes.npy", mmap_mode="r"))
    rows = np.sort(rng.choice(5000, 900, replace=False))
    for some in (slice(100, 4000), rows):
        top = corpus(asked, clips[some], k=50, codes=codes.part(some))
        np.testing.assert_array_equal(top.rows, corpus(asked, clips[some], k=50).rows)


def test_codes_of_other_clips_are_refused() -> None:
    clips = unit(np.random.default_rng(0), 50, 8, np.float16)
    with pytest.raises(ValueError, match=r"codes: got shape \(40, 8\), expected \(50, 8\)"):
        corpus(clips[:1], clips, k=3, codes=make_codes(clips[:40]))
