"""Measure the choice of one moment: ``python -m granalign_fast.bench.commands.single``.

The queries are those of a split, such as QVHighlights val, that have one true window; and crops of
its videos that hold one true window, because other benchmarks have shorter videos. On the same
curves the preset ``single`` is compared with ``tuned`` and with other ways to choose one moment. A
cross-validation chooses the constants of ``single`` on some of the videos and scores them on the
others. The last tables have the recall of the distinct moments, which people are shown, beside that
of the ranked list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from granalign_fast import kernels
from granalign_fast.config import RetrieverConfig, preset
from granalign_fast.errors import GranAlignError
from granalign_fast.index import CLIP_SECONDS
from granalign_fast.kernels import Curves, Proposals
from granalign_fast.metrics import intervals, score_distinct
from granalign_fast.search.results import search_results

from .tuning import SEED, Benchmark, Floats, Ints, arguments, folds_of, open_benchmark

COLUMNS = ("R1@0.5", "R1@0.7", "mIoU")
CROPS = ((15, 5), (15, 10), (60, 30))
"""Clips of a crop, and of the longest window in one. The first are like Charades-STA, whose videos
have 31 s and moments 7 s (medians of its test split)."""
GRID = tuple(product((6.0, 8.0, 10.0, 12.0), (0.0, 0.05, 0.1, 0.15, 0.2)))
"""Values of `shortest` and `shortest_power` that the cross-validation chooses from."""

Chooser = Callable[[Benchmark], Floats]
"""From queries to one moment each, `(queries, 2)`: first clip, and one past the last."""


@dataclass(frozen=True, slots=True)
class Part:
    """Queries with one true window each."""

    name: str
    benchmark: Benchmark
    sources: Ints
    """The video that each query's clips were taken from, `(queries,)`."""

    @property
    def lengths(self) -> Floats:
        """The length of each window in clips, `(queries,)`."""
        windows = [record["relevant_windows"][0] for record in self.benchmark.truth]
        return np.diff(np.array(windows, dtype=np.float64))[:, 0] / CLIP_SECONDS

    def figures(self, moments: Floats) -> Floats:
        """Return `COLUMNS` in percent of one moment for each query, `(queries, 3)`."""
        truth = self.benchmark.truth
        true = np.array([record["relevant_windows"][0] for record in truth], dtype=np.float64)
        durations = np.array([record["duration"] for record in truth], dtype=np.float64)
        found = np.minimum(CLIP_SECONDS * moments, durations[:, None])
        shared = np.minimum(found[:, 1], true[:, 1]) - np.maximum(found[:, 0], true[:, 0])
        shared = np.maximum(shared, 0)
        iou = shared / (np.diff(found)[:, 0] + np.diff(true)[:, 0] - shared)
        return 100 * np.stack([iou >= 0.5, iou >= 0.7, iou], axis=1)


def one_window(benchmark: Benchmark) -> Part:
    """Return the queries that have one true window."""
    kept = [i for i, truth in enumerate(benchmark.truth) if len(truth["relevant_windows"]) == 1]
    part = replace(
        benchmark,
        requests=[],
        truth=[benchmark.truth[i] for i in kept],
        texts=np.ascontiguousarray(benchmark.texts[kept]),
        videos=benchmark.videos[kept],
    )
    return Part("one window", part, part.videos)


def crops(benchmark: Benchmark, clips: int, longest: int) -> Part:
    """Cut a crop out of each query's video that holds one of its windows, whole and alone.

    Args:
        benchmark: of the videos.
        clips: of a crop.
        longest: most clips of the window.

    Raises:
        GranAlignError: no query has such a crop.
    """
    rng = np.random.default_rng(SEED)
    kept, truths, rows = [], [], []
    for query, truth in enumerate(benchmark.truth):
        begin, end = benchmark.offsets[benchmark.videos[query] :][:2]
        places = list(_places(truth["relevant_windows"], int(end - begin), clips, longest))
        if not places:
            continue
        first, start, stop = places[rng.integers(len(places))]
        kept.append(query)
        rows.append(benchmark.agnostic[begin + first : begin + first + clips])
        window = [CLIP_SECONDS * (start - first), CLIP_SECONDS * (stop - first)]
        truths.append({"duration": CLIP_SECONDS * clips, "relevant_windows": [window]})
    if not kept:
        raise GranAlignError(f"crops of {clips} clips: no video has one with one window alone")
    part = replace(
        benchmark,
        requests=[],
        truth=truths,
        texts=np.ascontiguousarray(benchmark.texts[kept]),
        agnostic=np.concatenate(rows),
        offsets=np.arange(len(kept) + 1) * clips,
        videos=np.arange(len(kept)),
    )
    seconds = CLIP_SECONDS * clips, CLIP_SECONDS * longest
    name = "crops of {:.0f} s, windows up to {:.0f} s".format(*seconds)
    return Part(name, part, benchmark.videos[kept])


def _places(
    windows: Iterable[tuple[float, float]], video: int, clips: int, longest: int
) -> Iterable[tuple[int, int, int]]:
    """Yield the first clip of each possible crop, and its window's clips in the whole video."""
    spans = [(int(a // CLIP_SECONDS), int(-(-b // CLIP_SECONDS))) for a, b in windows]
    for index, (start, stop) in enumerate(spans):
        if stop - start > longest or stop > video:
            continue
        others = spans[:index] + spans[index + 1 :]
        for first in range(max(0, stop - clips), min(start, video - clips) + 1):
            if all(b <= first or a >= first + clips for a, b in others):
                yield first, start, stop


def by_preset(config: RetrieverConfig) -> Chooser:
    """Return the first moment by a configuration's own score."""

    def choose(benchmark: Benchmark) -> Floats:
        curves = benchmark.curves(config)
        return _first(kernels.proposals(*curves, rules=config.proposals))

    return choose


def by_shortest(shortest: float, power: float) -> Chooser:
    """Return the first moment of `tuned` with a shortest usual length."""
    tuned = preset("tuned")
    rules = replace(tuned.proposals, shortest=shortest, shortest_power=power)
    return by_preset(replace(tuned, proposals=rules))


def by_kadane(level: float | None) -> Chooser:
    """Return the interval of the greatest sum of the fused curve less a level (Kadane's algorithm).

    The curve is stretched to [0, 1]. With None the level is its mean, as in Li, Gou and Cai, arXiv
    2608.04480.
    """

    def choose(benchmark: Benchmark) -> Floats:
        return np.array(
            [
                _greatest_sum(curve - (curve.mean() if level is None else level))
                for curve in _stretched(benchmark.curves(preset("tuned")))
            ],
            dtype=np.float64,
        )

    return choose


def by_contrast(benchmark: Benchmark) -> Floats:
    """Return the candidate of `tuned` whose score plus contrast is greatest.

    The contrast is the fused curve's mean inside less its mean in the halves of the candidate's
    length before and after it; TFVTG (arXiv 2408.16219) scores by means inside and outside.
    """
    curves = benchmark.curves(preset("tuned"))
    found = kernels.proposals(*curves, rules=preset("tuned").proposals)
    scores = np.array(found.scores)
    for pair, curve in enumerate(_stretched(curves)):
        part = slice(found.offsets[pair], found.offsets[pair + 1])
        starts, ends = found.starts[part], found.ends[part]
        sums = np.concatenate([[0.0], curve.cumsum()])
        half = np.maximum((ends - starts) // 2, 1)
        left, right = np.maximum(starts - half, 0), np.minimum(ends + half, len(curve))
        around = sums[starts] - sums[left] + sums[right] - sums[ends]
        inside = (sums[ends] - sums[starts]) / (ends - starts)
        scores[part] += 0.2 * (inside - around / np.maximum(starts - left + right - ends, 1))
    return _first(found._replace(scores=scores))


def by_consensus(benchmark: Benchmark) -> Floats:
    """Return the candidate of `tuned` of greatest mean IoU with all, weighted by their scores."""
    found = kernels.proposals(*benchmark.curves(preset("tuned")), rules=preset("tuned").proposals)
    scores = np.array(found.scores)
    for begin, end in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        starts, ends = found.starts[begin:end], found.ends[begin:end]
        shared = np.minimum(ends[:, None], ends) - np.maximum(starts[:, None], starts)
        shared = np.maximum(shared, 0)
        lengths = ends - starts
        weights = np.exp((scores[begin:end] - scores[begin:end].max()) / 0.05)
        scores[begin:end] = (shared / (lengths[:, None] + lengths - shared)) @ weights
    return _first(found._replace(scores=scores))


CHOOSERS: Mapping[str, Chooser] = {
    "tuned": by_preset(preset("tuned")),
    "single": by_preset(preset("single")),
    "Kadane, mean": by_kadane(None),
    "Kadane, 0.5": by_kadane(0.5),
    "contrast": by_contrast,
    "consensus": by_consensus,
}
"""Ways to choose one moment, by name."""


def crossvalidation(parts: Sequence[Part], folds: int) -> dict[str, Floats]:
    """Choose the constants of `single` without each fold on the first part; score that fold of all.

    Returns:
        For each part the figures of each query, `(queries, 3)`, less those of `tuned`.
    """
    count = max(int(part.sources.max()) for part in parts) + 1
    fold_of = folds_of(np.arange(count), folds)
    every = {
        constants: [part.figures(by_shortest(*constants)(part.benchmark)) for part in parts]
        for constants in GRID
    }
    plain = every[GRID[0]]  # of power 0
    gains = {part.name: np.empty_like(figures) for part, figures in zip(parts, plain, strict=True)}
    for fold in range(folds):
        training = fold_of[parts[0].sources] != fold
        best = max(GRID, key=lambda one: float(every[one][0][training].mean()))
        print(f"without fold {fold + 1}: shortest {best[0]:g} clips, power {best[1]:g}")
        for part, figures, before in zip(parts, every[best], plain, strict=True):
            held_out = fold_of[part.sources] == fold
            gains[part.name][held_out] = (figures - before)[held_out]
    return gains


def distinct_recall(benchmark: Benchmark, config: RetrieverConfig) -> dict[str, dict[str, float]]:
    """Score the five distinct moments and the first five of the ranked list, for all queries."""
    curves = benchmark.curves(config)
    candidates = kernels.proposals(*curves, rules=config.proposals)
    ranked = kernels.nms(*candidates, threshold=config.nms_threshold, top=config.top)
    results = list(search_results(benchmark.requests, curves, ranked, config))
    lists = {
        "distinct": [result.distinct(5) for result in results],
        "ranked": [result.moments[:5] for result in results],
    }
    return {name: score_distinct(one, benchmark.truth) for name, one in lists.items()}


def _first(found: Proposals) -> Floats:
    """The best candidate of each pair, `(pairs, 2)`."""
    best = kernels.nms(*found, threshold=1.0, top=1)
    return np.concatenate([best.starts, best.ends], axis=1).astype(np.float64)


def _stretched(curves: Curves) -> Iterable[npt.NDArray[np.float64]]:
    """Yield each pair's fused curve, smoothed by a Gaussian of one clip, stretched to [0, 1]."""
    taps = np.exp(-0.5 * np.arange(-3, 4) ** 2.0)
    for begin, end in zip(curves.offsets[:-1], curves.offsets[1:], strict=True):
        padded = np.pad(curves.fused[begin:end].astype(np.float64), 3, mode="edge")
        smooth = np.convolve(padded, taps / taps.sum(), mode="valid")
        smooth -= smooth.min()
        yield smooth / max(float(smooth.max()), 1e-9)


def _greatest_sum(values: npt.NDArray[np.float64]) -> tuple[int, int]:
    """The interval of the greatest sum; the first of equals."""
    best, interval_of_best, total, start = -np.inf, (0, 1), 0.0, 0
    for clip, value in enumerate(values.tolist()):
        if total <= 0:
            total, start = 0.0, clip
        total += value
        if total > best:
            best, interval_of_best = total, (start, clip + 1)
    return interval_of_best


def report(benchmark: Benchmark, folds: int) -> None:
    """Print all tables."""
    parts = [one_window(benchmark), *(crops(benchmark, *sizes) for sizes in CROPS)]
    for part in parts:
        median = np.median(part.lengths)
        print(f"\n{part.name}: {len(part.sources):,} queries, median {median:g} clips")
        print(f"{'percent':<24}" + "".join(f"{name:>9}" for name in COLUMNS))
        for name, chooser in CHOOSERS.items():
            figures = part.figures(chooser(part.benchmark)).mean(axis=0)
            print(f"{name:<24}" + "".join(f"{value:9.2f}" for value in figures), flush=True)
    print("\ncross-validation: single less tuned, 95% over videos")
    gains = crossvalidation(parts, folds)
    for part in parts:
        gain = gains[part.name]
        columns = dict(zip(COLUMNS, gain.T, strict=True))
        bounds = intervals(columns, part.sources.tolist())
        text = ", ".join(
            f"{name} {columns[name].mean():+.2f} ({low:+.2f} to {high:+.2f})"
            for name, (low, high) in bounds.items()
        )
        print(f"{part.name}: {text}")
    for name in ("tuned", "single"):
        for kind, recalls in distinct_recall(benchmark, preset(name)).items():
            print(f"\n{name}, {kind} list")
            print("  ".join(f"{k.removeprefix('distinct-')} {v:.2f}" for k, v in recalls.items()))


def main() -> None:
    """Parse the command line, measure, print."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    try:
        report(open_benchmark(options), options.folds)
    except GranAlignError as error:
        sys.exit(f"single: {error}")


if __name__ == "__main__":
    main()
