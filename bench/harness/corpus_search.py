"""How near the search of a whole library comes to what a GPU can do at most: part of `kernels`."""

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
"""Queries and clips of the searches of a library, on CUDA."""
BEST = 100  # clips of each query


class _WithoutMaps(CupyLauncher):
    """A GPU of before Hopper: tensor cores warp by warp."""

    def tensor_map(self, array: Any, rows: int) -> None:
        """It has none."""


def measure_libraries(
    dim: int, rounds: int, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Search libraries of float16 embeddings, print how near each came to the GPU's limit.

    The limit is that of `limits`: the bytes of clips and queries, each read once, or two operations
    for each number of each pair. Caches are cold. What is found is compared with the NumPy twin's,
    and a way that is wrong keeps no other from being measured.

    Args:
        dim: numbers of an embedding.
        rounds: of each measurement.
        save: called with all results so far, after each.
    """
    limits = measure_limits("cuda")
    print(
        f"a copy: {limits.bandwidth / 1e12:.2f} TB/s; "
        f"float16 products: {limits.rates['fp16'] / 1e12:.0f} Tflop/s"
    )
    clips = random_units(max(clips for _, clips in LIBRARIES), dim)
    found: list[dict[str, Any]] = []
    results = {"limits": asdict(limits), "libraries": found}
    for way, launcher, libraries in ways(clips):
        for count, total in libraries:
            queries, part = random_units(count, dim, seed=1), clips[:total]
            name = f"{count:5d} queries x {total:9,d} clips x {dim}, best {BEST}, {way}"
            case: dict[str, Any] = {
                "queries": count,
                "clips": total,
                "dim": dim,
                "k": BEST,
                "way": way,
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
            found.append(case)
            save(results)
    return results


def ways(clips: Any) -> Iterator[tuple[str, CupyLauncher, list[tuple[int, int]]]]:
    """The ways to search clips on this GPU, and which of `LIBRARIES` each is for."""
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
    pool = cupy.cuda.MemoryPool()  # lives as long as the graph
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
    """`(rows, dim)` float16 rows of unit length on the device, made a piece at a time."""
    import cupy

    rng = cupy.random.default_rng(seed)
    units = cupy.empty((rows, dim), cupy.float16)
    for first in range(0, rows, 1 << 18):
        part = units[first : first + (1 << 18)]
        drawn = rng.standard_normal(part.shape, dtype=cupy.float32)
        part[...] = drawn / cupy.linalg.norm(drawn, axis=1, keepdims=True)
    return units


def wrong_clips(
    launcher: CupyLauncher, queries: Any, clips: Any, sample: int = 100_000
) -> str | None:
    """How the device's clips differ from the NumPy twin's, in a part of the library."""
    import cupy

    queries, clips = queries[:32], clips[:sample]
    try:
        got = Top(*map(cupy.asnumpy, _search(launcher, queries, clips)))
    except Exception as error:  # whatever a driver or a compiler makes of it
        return f"{type(error).__name__}: {error}"
    expected = corpus(cupy.asnumpy(queries), cupy.asnumpy(clips), k=BEST)
    off = np.abs(got.scores - expected.scores).max()
    same = (got.rows == expected.rows).mean()
    # Scores that differ by less than the rounding may change places.
    if not off < 1e-5 or same < 0.99:
        return f"scores {off} off, {same:.1%} of the rows are the NumPy twin's"
    return None
