"""Time a search of a library: ``python -m granalign_fast.bench.commands.library_search LIB QUERY``.

Three ways take turns: each index is read and searched alone, as it is done without a library; the
library is searched with all models; and by captions alone. The first round begins with nothing in
memory but the models and the catalogue. On a CPU only the ratios carry over to another machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from granalign_fast.index import VideoIndex
from granalign_fast.library import Library
from granalign_fast.pipeline import open_models, open_retriever
from granalign_fast.search.retriever import Retriever


class Timing(NamedTuple):
    """How long one search took, in seconds."""

    total: float
    stages: Mapping[str, float]
    best: str
    """The id of the video that it ranks first; "" where videos are not compared."""


def time_alone(library: Library, retriever: Retriever, query: str) -> Timing:
    """Read every index and search it alone; the videos are not compared with each other."""
    seconds: dict[str, float] = {"read": 0.0}
    begin = time.perf_counter()
    for video in library.videos():
        start = time.perf_counter()
        index = VideoIndex.load(library.folder / video.vid)
        seconds["read"] += time.perf_counter() - start
        for stage, took in retriever.search(index, query).seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + took
    return Timing(time.perf_counter() - begin, seconds, "")


def time_together(library: Library, query: str, refine: int) -> Timing:
    """Search the library."""
    begin = time.perf_counter()
    result = library.search(query, refine=refine)
    best = result.moments[0].vid if result.moments else ""
    return Timing(time.perf_counter() - begin, result.seconds, best)


def main() -> None:
    """Parse the command line, time, and print."""
    parser = argparse.ArgumentParser(description="Time a search of a library.")
    parser.add_argument("library", type=Path)
    parser.add_argument("query")
    parser.add_argument("--models", default="miniatures")
    parser.add_argument("--refine", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    models = open_models(options.models, prefix_gib=0)
    every, bare = (
        open_retriever("tuned", models=models, captions_only=alone) for alone in (False, True)
    )
    library, captions = (Library.open(options.library, one) for one in (every, bare))
    ways: dict[str, Callable[[], Timing]] = {
        "each index alone": lambda: time_alone(library, every, options.query),
        "library, all models": lambda: time_together(library, options.query, options.refine),
        "library, captions alone": lambda: time_together(captions, options.query, options.refine),
    }
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, run in ways.items():
            timings[name].append(run())
    print(f"{len(library.videos())} videos, {options.rounds} rounds, milliseconds")
    for name, found in timings.items():
        print(f"{name:<26}{_summary(found)}")


def _summary(found: list[Timing]) -> str:
    """Return the first round, the median of the others, and their stages."""
    first, warm = found[0], found[1:] or found
    middle = statistics.median(one.total for one in warm)
    stages = {
        name: statistics.median(one.stages.get(name, 0.0) for one in warm)
        for name in found[0].stages
    }
    parts = ", ".join(f"{name} {1e3 * took:.1f}" for name, took in stages.items())
    return f"first {1e3 * first.total:>8.1f}  then {1e3 * middle:>8.1f}  ({parts})"


if __name__ == "__main__":
    main()
