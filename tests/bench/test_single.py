"""The measurement of one moment: its queries, its crops, and the ways to choose."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from granalign_fast import GranAlignError
from granalign_fast.bench.commands import single
from granalign_fast.bench.commands.tuning import Benchmark
from granalign_fast.config import preset

CLIPS = 40


@pytest.fixture
def benchmark() -> Benchmark:
    """Five videos with a query each; the scene that it asks for is at its windows."""
    rng = np.random.default_rng(3)
    windows = [[[20, 36]], [[4, 12], [40, 60]], [[0, 80]], [[62, 74]], [[30, 50]]]
    texts, rows = [], []
    for spans in windows:
        wanted, other = rng.standard_normal((2, 16))
        frames = np.tile(other, (CLIPS, 1))
        for start, end in spans:
            frames[start // 2 : end // 2] = wanted
        frames += 0.3 * rng.standard_normal(frames.shape)
        rows.append(frames / np.linalg.norm(frames, axis=1, keepdims=True))
        drawn = wanted + 0.3 * rng.standard_normal((3, 16))
        texts.append(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    return Benchmark(
        requests=[],
        truth=[{"qid": i, "duration": 80, "relevant_windows": w} for i, w in enumerate(windows)],
        texts=np.array(texts, np.float32),
        agnostic=np.concatenate(rows).astype(np.float32),
        offsets=np.arange(6) * CLIPS,
        videos=np.arange(5),
    )


def test_queries_with_one_window(benchmark: Benchmark) -> None:
    part = single.one_window(benchmark)
    assert [truth["qid"] for truth in part.benchmark.truth] == [0, 2, 3, 4]
    assert part.sources.tolist() == [0, 2, 3, 4]
    assert part.lengths.tolist() == [8, 40, 6, 10]
    assert np.array_equal(part.benchmark.texts[2], benchmark.texts[3])


def test_a_crop_holds_one_window_whole_and_alone(benchmark: Benchmark) -> None:
    part = single.crops(benchmark, 15, 10)
    assert part.sources.tolist() == [0, 1, 3, 4]
    for crop, (source, truth) in enumerate(zip(part.sources, part.benchmark.truth, strict=True)):
        ((start, end),) = truth["relevant_windows"]
        assert 0 <= start < end <= 30 == truth["duration"]
        rows = part.benchmark.agnostic[15 * crop : 15 * crop + 15]
        video = benchmark.agnostic[CLIPS * source : CLIPS * (source + 1)]
        (first,) = [i for i in range(CLIPS - 14) if np.array_equal(video[i : i + 15], rows)]
        windows = benchmark.truth[source]["relevant_windows"]
        inside = [w for w in windows if w[0] < 2 * first + 30 and w[1] > 2 * first]
        assert inside == [[start + 2 * first, end + 2 * first]]
    with pytest.raises(GranAlignError, match="crops of 15 clips: no video has one"):
        single.crops(benchmark, 15, 1)


def test_figures_by_hand(benchmark: Benchmark) -> None:
    part = single.one_window(benchmark)
    # IoU 1, 0.5 and 0; the last ends with its video, at 80 s, IoU 20 / 50.
    moments = np.array([[10, 18], [0, 20], [0, 5], [15, 41]], np.float64)
    expected = [[100, 100, 100], [100, 0, 50], [0, 0, 0], [0, 0, 40]]
    assert part.figures(moments).tolist() == pytest.approx(np.array(expected))


@pytest.mark.parametrize("name", single.CHOOSERS)
def test_every_way_finds_what_stands_out(benchmark: Benchmark, name: str) -> None:
    part = single.one_window(benchmark)
    moments = single.CHOOSERS[name](part.benchmark)
    assert ((moments[:, 0] >= 0) & (moments[:, 0] < moments[:, 1])).all()
    assert (moments[:, 1] <= CLIPS).all()
    # The second query's window is the whole video, in which nothing stands out.
    assert part.figures(moments)[[0, 2, 3], 0].tolist() == [100, 100, 100]


def test_kadanes_interval_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(-4, 5, 12).astype(np.float64)
        start, end = single._greatest_sum(values)
        every = itertools.combinations(range(13), 2)
        assert values[start:end].sum() == max(values[a:b].sum() for a, b in every)


def test_held_out_figures_use_constants_of_the_grid(benchmark: Benchmark) -> None:
    parts = [single.one_window(benchmark), single.crops(benchmark, 15, 10)]
    gains = single.crossvalidation(parts, folds=2)
    assert list(gains) == [part.name for part in parts]
    for part in parts:
        plain = part.figures(single.by_preset(preset("tuned"))(part.benchmark))
        choices = [
            part.figures(single.by_shortest(*constants)(part.benchmark)) - plain
            for constants in single.GRID
        ]
        for query, gain in enumerate(gains[part.name]):
            assert any(np.allclose(gain, choice[query]) for choice in choices)
