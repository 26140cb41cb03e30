"""Time the kernels from embeddings to moments.

``python -m granalign_fast.bench.commands.kernels``

The embeddings are synthetic, in the shape of QVHighlights val: 1,550 queries, 75 clips, 6 variants,
384 numbers. They are drawn in scenes, so that the curves have runs as real ones do. The stages are
timed one by one; then one query, and all queries, as a `Ranking`. On CUDA the results are compared
with the NumPy twin's in the same run, and a difference is an error. Then whole libraries are
searched, and the times compared with the GPU's limits, which are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.bench.harness.corpus_search import measure_libraries
from granalign_fast.bench.harness.limits import host_seconds
from granalign_fast.bench.harness.timing import event_seconds
from granalign_fast.bench.harness.workloads import embeddings
from granalign_fast.config import PRESETS, RetrieverConfig
from granalign_fast.errors import MissingExtraError
from granalign_fast.kernels import (
    Ranked,
    Ranking,
    RankingRules,
    mixed_rows,
    nms,
    proposals,
    refined_curves,
    warm_up,
)

STAGES = ("context", "curves", "proposals", "nms")

LIMITS = ({"limit_us": 60}, {"limit_ms": 1})
"""GPU time that a `Ranking` may take: for one query, and for QVHighlights val."""


def run(
    variants: Any, rows: Any, offsets: Any, config: RetrieverConfig, now: Callable[[], float]
) -> tuple[Ranked, dict[str, float]]:
    """Rank once; return the moments, and the seconds of each stage by the clock `now`."""
    marks = [now()]
    first, second = mixed_rows(rows, offsets, context_rules=config.context, rules=config.feedback)
    marks.append(now())
    curves = refined_curves(
        variants, first, offsets, second=second, power=config.power, rules=config.feedback
    )
    marks.append(now())
    proposed = proposals(curves.variants, curves.fused, curves.offsets, rules=config.proposals)
    marks.append(now())
    ranked = nms(*proposed, threshold=config.nms_threshold, top=config.top)
    marks.append(now())
    return ranked, dict(zip(STAGES, np.diff(marks).tolist(), strict=True))


def main() -> None:
    """Print the median of every stage, and write it where ``--json`` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tuned")
    parser.add_argument("--queries", type=int, default=1550)
    parser.add_argument("--clips", type=int, default=75)
    parser.add_argument("--variants", type=int, default=6)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    for name in ("queries", "clips", "variants", "dim", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: got {getattr(options, name)}, expected at least 1")

    config = PRESETS[options.preset]
    batch_on_host = embeddings(
        np.random.default_rng(0), options.queries, options.clips, options.variants, options.dim
    )
    batch: tuple[Any, Any, Any] = (
        batch_on_host.variants.astype(options.dtype),
        batch_on_host.clips.astype(options.dtype),
        batch_on_host.offsets,
    )
    on_host = batch
    now: Callable[[], float] = time.perf_counter
    where: dict[str, Any] = {"machine": platform.machine(), "python": platform.python_version()}
    if options.device == "cuda":
        try:
            import cupy
        except ImportError:
            sys.exit(f"kernels: {MissingExtraError('the device cuda', 'cuda')}")

        def now() -> float:
            cupy.cuda.Device().synchronize()
            return time.perf_counter()

        expected, _ = run(*batch, config, time.perf_counter)
        start = now()
        warm_up(options.dtype)
        where["warm_up_seconds"] = now() - start
        batch = (cupy.asarray(batch[0]), cupy.asarray(batch[1]), batch[2])
        got, _ = run(*batch, config, now)
        check(Ranked(*(cupy.asnumpy(column) for column in got)), expected)
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        where |= {
            "gpu": properties["name"].decode(),
            "driver": cupy.cuda.runtime.driverGetVersion(),
            "cupy": cupy.__version__,
        }

    run(*batch, config, now)  # compilation, caches, page faults
    rounds = [run(*batch, config, now)[1] for _ in range(options.rounds)]
    medians = {stage: statistics.median(r[stage] for r in rounds) for stage in STAGES}
    shape = f"{options.queries} queries x {options.clips} clips x {options.variants} variants"
    print(
        f"{shape} x {options.dim} {options.dtype}, {options.preset}, {options.device}, "
        f"{options.rounds} rounds"
    )
    for stage, seconds in medians.items():
        print_line(stage, seconds, options.queries)
    # A search leaves out the context: it is computed once for a video, whatever the query.
    print_line("a search", sum(medians.values()) - medians["context"], options.queries)
    record = {
        "where": where,
        "options": vars(options) | {"json": None},
        "seconds": medians,
        "rankings": measure_rankings(on_host, config, options.device, options.rounds),
    }
    write(record, options.json)  # a later failure must not lose these figures
    if options.device == "cuda":
        libraries = measure_libraries(
            options.dim, options.rounds, lambda libraries: write(record | libraries, options.json)
        )
        if wrong := [case["wrong"] for case in libraries["libraries"] if "wrong" in case]:
            sys.exit("; ".join(wrong))


def write(record: dict[str, Any], path: Path | None) -> None:
    """Write a record as JSON, if there is a path."""
    if path is not None:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure_rankings(
    batch: tuple[Any, Any, Any], config: RetrieverConfig, device: str, rounds: int
) -> list[dict[str, Any]]:
    """Rank one query and all of them, and print the times and their limits.

    On CUDA, the moments are compared with the NumPy twin's. The first query's moments must be the
    same, bit for bit, whether it is ranked alone or among all.
    """
    variants, rows, offsets = batch
    rules = RankingRules(
        context=config.context,
        power=config.power,
        feedback=config.feedback,
        proposals=config.proposals,
        threshold=config.nms_threshold,
        top=config.top,
    )
    records: list[dict[str, Any]] = []
    firsts: list[Any] = []
    for queries, limit in zip((1, len(variants)), LIMITS, strict=True):
        inputs = variants[:queries], rows[: int(offsets[queries])]
        shape: Any = {
            "dim": rows.shape[1],
            "simplified": variants.shape[1],
            "dtype": rows.dtype.name,
        }
        shape |= {"offsets": offsets[: queries + 1], "rules": rules}
        record = {"queries": queries, "clips": len(inputs[1]), "dtype": rows.dtype.name}
        host = Ranking(**shape)
        if device == "cpu":
            seconds_each = host_seconds(partial(host, *inputs), rounds)
            records.append(record | {"seconds": statistics.median(seconds_each)})
            print_line("a ranking", records[-1]["seconds"], queries)
            continue
        ranked, seconds = measure_on_device(Ranking(**shape, device=device), inputs, rounds)
        if queries > 1:
            check(ranked, host(*inputs))
        firsts.append([column[0] for column in ranked])
        allowed = limit.get("limit_us", 0) / 1e6 + limit.get("limit_ms", 0) / 1e3
        within = seconds["seconds"] <= allowed
        records.append(record | seconds | limit | {"within": within})
        print(f"a ranking of {queries} queries, limit {1e6 * allowed:.0f} us in a graph:")
        for name, value in seconds.items():
            print(f"    {name:<16}{1e6 * value:10.1f} us")
        print(f"    {'within' if within else 'OVER'} the limit")
    if not all(np.array_equal(one, many) for one, many in zip(*firsts, strict=True)):
        sys.exit("the first query's moments differ between its own ranking and that of all queries")
    return records


def measure_on_device(
    ranking: Ranking, inputs: tuple[Any, Any], rounds: int
) -> tuple[Ranked, dict[str, float]]:
    """Return the moments, and the times of a ranking in several ways.

    - ``seconds``: time on the device, by events, of one CUDA graph over inputs in device memory,
      with a cold L2 cache; ``seconds_warm``: with the cache as the previous call left it.
    - ``launched``, ``launched_warm``: the same, launched kernel by kernel.
    - ``seconds_host``: time of the graph by the host's clock, from the call to the last moment.
    """
    import cupy

    call = partial(ranking, *map(cupy.asarray, inputs))
    seconds = {
        "launched": event_seconds(call, rounds),
        "launched_warm": event_seconds(call, rounds, warm=True),
    }
    launched = Ranked(*map(cupy.asnumpy, call()))
    buffers = ranking.capture()
    replayed = Ranked(*map(cupy.asnumpy, call()))
    if buffers is None or not all(map(np.array_equal, replayed, launched)):
        sys.exit("the graph's moments differ from those of the launches that it was recorded from")
    replay = partial(ranking, buffers.simplified, buffers.agnostic)

    def waited() -> None:
        replay()
        cupy.cuda.get_current_stream().synchronize()

    return replayed, seconds | {
        "seconds": event_seconds(replay, rounds),
        "seconds_warm": event_seconds(replay, rounds, warm=True),
        "seconds_host": statistics.median(host_seconds(waited, rounds)),
    }


def print_line(name: str, seconds: float, queries: int) -> None:
    """Print the time of all queries, and of each."""
    print(f"{name:<12}{1e3 * seconds:10.3f} ms {1e3 * seconds / queries:10.5f} ms/query")


def check(got: Ranked, expected: Ranked) -> None:
    """Exit if the device's moments differ from the NumPy twin's.

    The similarities differ in their last bits, so a clip on the edge of a bin may fall to either
    side. At most one query in a hundred may differ.
    """
    same = (got.starts == expected.starts).all(axis=1) & (got.ends == expected.ends).all(axis=1)
    if same.mean() < 0.99:
        sys.exit(f"only {same.mean():.1%} of the queries have the NumPy twin's moments")
    print(f"{same.mean():.2%} of the queries have the NumPy twin's moments to the clip")


if __name__ == "__main__":
    main()
