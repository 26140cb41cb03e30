"""How long the kernels take from embeddings to moments: ``python -m granalign_fast.bench.kernels``.

Made-up embeddings in the shape of QVHighlights val (1,550 queries, 75 clips, 6 variants, 384
numbers), drawn in scenes so that the curves have runs as real ones do. On CUDA the result is
compared with the NumPy twin's in the same run, and a difference is an error.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.config import PRESETS, RetrieverConfig
from granalign_fast.kernels import Ranked, context, nms, proposals, similarity

STAGES = ("context", "similarity", "proposals", "nms")


def workload(queries: int, clips: int, variants: int, dim: int) -> tuple[Any, Any, Any]:
    """Variants `(queries, variants, dim)`, clips `(queries * clips, dim)` and their offsets."""
    rng = np.random.default_rng(0)
    scenes = rng.standard_normal((queries, 8, dim), dtype=np.float32)
    cuts = np.sort(rng.integers(0, clips, (queries, 7)), axis=1)
    scene = (np.arange(clips) >= cuts[:, :, None]).sum(axis=1)
    rows = scenes[np.arange(queries)[:, None], scene]
    rows = rows + 0.7 * rng.standard_normal(rows.shape, dtype=np.float32)
    asked = scenes[np.arange(queries), rng.integers(0, 8, queries), None]
    asked = asked + rng.standard_normal((queries, variants, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    asked /= np.linalg.norm(asked, axis=-1, keepdims=True)
    offsets = np.arange(queries + 1, dtype=np.int64) * clips
    return asked, rows.reshape(-1, dim), offsets


def run(
    asked: Any, rows: Any, offsets: Any, config: RetrieverConfig, now: Callable[[], float]
) -> tuple[Ranked, dict[str, float]]:
    """One pass, and the seconds of each stage by the clock `now`."""
    marks = [now()]
    mixed = rows if config.context is None else context(rows, offsets, rules=config.context)
    marks.append(now())
    curves = similarity(asked, mixed, offsets, power=config.power)
    marks.append(now())
    found = proposals(curves.variants, curves.fused, curves.offsets, rules=config.proposals)
    marks.append(now())
    ranked = nms(*found, threshold=config.nms_threshold, top=config.top)
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
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    config = PRESETS[options.preset]
    batch = workload(options.queries, options.clips, options.variants, options.dim)
    now: Callable[[], float] = time.perf_counter
    where: dict[str, Any] = {"machine": platform.machine(), "python": platform.python_version()}
    if options.device == "cuda":
        import cupy

        def now() -> float:
            cupy.cuda.Device().synchronize()
            return time.perf_counter()

        expected, _ = run(*batch, config, time.perf_counter)
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
    print(f"{shape} x {options.dim}, {options.preset}, {options.device}, {options.rounds} rounds")
    for stage, seconds in medians.items():
        print_line(stage, seconds, options.queries)
    # The context is prepared once for a video, whatever is asked.
    print_line("a search", sum(medians.values()) - medians["context"], options.queries)
    if options.json:
        record = {"where": where, "options": vars(options) | {"json": None}, "seconds": medians}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def print_line(name: str, seconds: float, queries: int) -> None:
    """All queries, and each."""
    print(f"{name:<12}{1e3 * seconds:10.3f} ms {1e3 * seconds / queries:10.5f} ms/query")


def check(got: Ranked, expected: Ranked) -> None:
    """Stop if the device's moments are not the NumPy twin's.

    The similarities differ in the last bits, so a clip on the edge of a bin may fall to either
    side: at most one query in a hundred may differ.
    """
    same = (got.starts == expected.starts).all(axis=1) & (got.ends == expected.ends).all(axis=1)
    if same.mean() < 0.99:
        sys.exit(f"only {same.mean():.1%} of the queries have the NumPy twin's moments")
    print(f"{same.mean():.2%} of the queries have the NumPy twin's moments to the clip")


if __name__ == "__main__":
    main()
