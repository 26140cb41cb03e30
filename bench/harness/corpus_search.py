"""Measure how near a search of a whole library comes to the GPU's limit.

Part of the command `kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from granalign_fast.bench.harness.limits import Limits, Work, measure_limits
from granalign_fast.bench.harness.timing import event_seconds
from granalign_fast.kernels import corpus
from granalign_fast.kernels.corpus import FEW, WORKSPACE, Top, on_device
from granalign_fast.kernels.launch import CupyLauncher

LIBRARIES = ((1, 10_000_000), (8, 10_000_000), (64, 10_000_000), (1024, 1_000_000))
"""Numbers of queries and clips of each search on CUDA."""
BEST = 100  # clips of each query


class _WithoutMaps(CupyLauncher):
    """Launches as on a GPU older than Hopper, whose tensor cores each warp uses by itself."""

    def tensor_map(self, array: Any, rows: int) -> None:
        """Return None: no tensor maps."""


def measure_libraries(
    dim: int, rounds: int, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Search libraries of float16 embeddings, print how near each came to the GPU's limit.

    The limit is that of `limits`, for the bytes of clips and queries, each read once, or two
    operations for each number of each pair. Caches are cold. Results are compared with the NumPy
    twin's. If one variant's are wrong, this is recorded and the others are still measured.

    Args:
        dim: numbers of an embedding.
        rounds: runs of each measurement.
        save: called after each measurement with all results so far.

    Returns:
        ``limits``, and ``libraries``: a record of each search, with ``wrong`` if it was wrong.
    """
    limits = measure_limits("cuda")
    print(
        f"a copy: {limits.bandwidth / 1e12:.2f} TB/s; "
        f"float16 products: {limits.rates['fp16'] / 1e12:.0f} Tflop/s"
    )
    clips = random_units(max(clips for _, clips in LIBRARIES), dim)
    cases: list[dict[str, Any]] = []
    results = {"limits": asdict(limits), "libraries": cases}
    for variant, launcher, libraries in search_variants(clips):
        for count, total in libraries:
            queries, part = random_units(count, dim, seed=1), clips[:total]
            name = f"{count:5d} queries x {total:9,d} clips x {dim}, best {BEST}, {variant}"
            case: dict[str, Any] = {
                "queries": count,
                "clips": total,
                "dim": dim,
                "k": BEST,
                "way": variant,
            }
            if wrong := wrong_clips(launcher, queries, part):
                print(f"{name}: {wrong}")
                case["wrong"] = f"{name}: {wrong}"
            else:
                case |= _timed(launcher, queries, part, rounds, limits)
                least, seconds, in_graph = (
                    case[key] for key in ("limit_seconds", "seconds", "seconds_in_graph")
                )
                print(
                    f"{name}: {1e3 * seconds:8.3f} ms, in a graph {1e3 * in_graph:8.3f} ms; "
                    f"limit {1e3 * least:8.3f} ms by {case['bound']}: {seconds / least:.2f} and "
                    f"{in_graph / least:.2f} times the limit, {least / seconds:.0%} and "
                    f"{least / in_graph:.0%} of it"
                )
            cases.append(case)
            save(results)
    return results


def search_variants(clips: Any) -> Iterator[tuple[str, CupyLauncher, list[tuple[int, int]]]]:
    """Yield each kernel variant that this GPU can run, its launcher, and its `LIBRARIES`."""
    few = [library for library in LIBRARIES if library[0] <= FEW]
    many = [library for library in LIBRARIES if library[0] > FEW]
    yield "streamed", CupyLauncher(), few
    yield "products of warps", _WithoutMaps(), many
    if CupyLauncher().tensor_map(clips, 256) is not None:
        yield "products of warpgroups", CupyLauncher(), many


def _timed(
    launcher: CupyLauncher, queries: Any, clips: Any, rounds: int, limits: Limits
) -> dict[str, Any]:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    pool = cupy.cuda.MemoryPool()  # must live as long as the graph that uses its memory
    search = partial(_search, launcher, queries, clips)
    with cupy.cuda.using_allocator(pool.malloc), stream:
        seconds = event_seconds(search, rounds)
        stream.begin_capture()
        top = search()
        graph = stream.end_capture()
        in_graph = event_seconds(partial(graph.launch, stream), rounds)
        del top
    count, (total, dim) = len(queries), clips.shape
    work = Work(2.0 * (count + total) * dim, 2.0 * count * total * dim, "fp16")
    least, bound = limits.seconds(work)
    return {"seconds": seconds, "seconds_in_graph": in_graph} | {
        "limit_seconds": least,
        "bound": bound,
    }


def _search(launcher: CupyLauncher, queries: Any, clips: Any) -> Top:
    return on_device(launcher, queries, clips, BEST, WORKSPACE)


def random_units(rows: int, dim: int, seed: int = 0) -> Any:
    """Return `(rows, dim)` float16 on the device, random rows of unit length.

    They are drawn block by block: their float32 values need not fit in memory all at once.
    """
    import cupy

    rng = cupy.random.default_rng(seed)
    units = cupy.empty((rows, dim), cupy.float16)
    for first in range(0, rows, 1 << 18):
        part = units[first : first + (1 << 18)]
        values = rng.standard_normal(part.shape, dtype=cupy.float32)
        part[...] = values / cupy.linalg.norm(values, axis=1, keepdims=True)
    return units


def wrong_clips(
    launcher: CupyLauncher, queries: Any, clips: Any, sample: int = 100_000
) -> str | None:
    """Return how the device's best clips differ from the NumPy twin's; None if they agree.

    Compares the first 32 queries in the first `sample` clips.
    """
    import cupy

    queries, clips = queries[:32], clips[:sample]
    try:
        got = Top(*map(cupy.asnumpy, _search(launcher, queries, clips)))
    except Exception as error:  # a driver or a compiler may raise anything
        return f"{type(error).__name__}: {error}"
    expected = corpus(cupy.asnumpy(queries), cupy.asnumpy(clips), k=BEST)
    off = np.abs(got.scores - expected.scores).max()
    same = (got.rows == expected.rows).mean()
    # Clips whose scores differ by less than the rounding may swap ranks.
    if not off < 1e-5 or same < 0.99:
        return f"scores {off} off, {same:.1%} of the rows are the NumPy twin's"
    return None
