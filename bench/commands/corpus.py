"""Race the host's search of all clips: ``python -m granalign_fast.bench.commands.corpus``.

Beside it run NumPy's matrix product, which finds nothing yet, and Faiss's exact indexes, if Faiss
is installed. All runners take turns in one process, and the first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.kernels import corpus

BEST = 100  # clips of each query

Floats = npt.NDArray[np.float32]
Runner = Callable[[Floats], Any]


def unit_rows(rows: int, dim: int, seed: int) -> Floats:
    """Return `(rows, dim)` random rows of unit length."""
    rng = np.random.default_rng(seed)
    units = np.empty((rows, dim), np.float32)
    for first in range(0, rows, 1 << 16):
        part = rng.standard_normal((min(1 << 16, rows - first), dim), np.float32)
        units[first : first + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return units


def runners(clips: Floats) -> dict[str, Runner]:
    """Return the ways to search clips that can run here, by name."""
    halves = clips.astype(np.float16)
    found: dict[str, Runner] = {
        "numpy product": lambda queries: queries @ clips.T,
        "corpus float32": lambda queries: corpus(queries, clips, k=BEST).rows,
        "corpus float16": lambda queries: (
            corpus(queries.astype(np.float16), halves, k=BEST, finite=True).rows
        ),
    }
    if find_spec("faiss") is not None:
        import faiss

        dim, product = clips.shape[1], faiss.METRIC_INNER_PRODUCT
        flat = faiss.IndexFlatIP(dim)
        half = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, product)
        half.train(clips[:1000])
        for name, index in (("faiss flat", flat), ("faiss fp16", half)):
            index.add(clips)
            found[name] = partial(_search_faiss, index)
    return found


def _search_faiss(index: Any, queries: Floats) -> Any:
    return index.search(queries, BEST)[1]


def race(clips: Floats, counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Time each runner on batches of queries.

    Args:
        clips: `(clips, dim)`.
        counts: of the queries in each batch.
        rounds: of which the median is taken, after one that is not counted.

    Returns:
        For each batch the number of queries, ``ms`` by runner, and ``same``: the share of the
        clips that `corpus` finds which each runner with an answer finds, too.
    """
    found = runners(clips)
    results = []
    for count in counts:
        queries = unit_rows(count, clips.shape[1], seed=count + 1)
        times: dict[str, list[float]] = {name: [] for name in found}
        for number in range(rounds + 1):
            for name, run in found.items():
                begin = time.perf_counter()
                run(queries)
                if number:
                    times[name].append(time.perf_counter() - begin)
        rows = found["corpus float32"](queries).tolist()
        same = {}
        for name in found.keys() - {"numpy product"}:
            pairs = zip(rows, found[name](queries).tolist(), strict=True)
            same[name] = float(np.mean([len({*one} & {*other}) / len(one) for one, other in pairs]))
        milliseconds = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
        results.append({"queries": count, "ms": milliseconds, "same": same})
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, race, print a line of JSON for each batch."""
    parser = argparse.ArgumentParser(description="Race the host's search of all clips.")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    clips = unit_rows(options.clips, options.dim, seed=0)
    for result in race(clips, options.queries, options.rounds):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
