"""Suite ``throughput``: queries a second and each query's latency, with 1 to 64 clients at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from granalign_fast.bench.harness.judges import judge_result
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, Samples, require
from granalign_fast.bench.harness.workloads import CLIPS, captioned, rewritten
from granalign_fast.search.request import Request
from granalign_fast.types import Rewrites

from .search import captions_retriever

CLIENTS = (1, 4, 16, 64)
_VIDEOS = 64
_LEAST_QUERIES, _OF_EACH = 32, 4
"""Least number of queries of a round, and queries of each client: enough that most run while all
clients are busy."""


def run(bench: Bench) -> None:
    """Measure clients that search one video after another, all in one warm process."""
    retriever = captions_retriever(bench)
    rng = np.random.default_rng(bench.settings.seed)
    indices = retriever.index_many(
        [captioned(rng, f"video {i}") for i in range(bench.settings.scaled(_VIDEOS, 4))]
    )

    def draw(rng: np.random.Generator, count: int) -> list[Request]:
        chosen = rng.integers(0, len(indices), count).tolist()
        return [Request(indices[i], rewritten(rng)) for i in chosen]

    def judge(requests: list[Request], outputs: Mapping[str, Any]) -> None:
        for results in outputs.values():
            require(len(results) == len(requests), "throughput: an answer is missing")
            for index in (0, len(requests) - 1):
                request = requests[index]
                require(
                    isinstance(request.query, Rewrites)
                    and results[index].query == request.query.query,
                    "throughput: a client got another's answer",
                )
                judge_result(results[index], request.index, retriever.encoder, retriever.config)

    largest = max(2, round(CLIENTS[-1] * min(bench.settings.size, 1.0)))
    for clients in [count for count in CLIENTS if count <= largest]:
        waited: list[float] = []
        passes: list[tuple[float, ...]] = []

        def done(
            requests: list[Request],
            outputs: Mapping[str, Any],
            waited: Any = waited,
            passes: Any = passes,
        ) -> None:
            """Judge, and collect the latencies of the warm-up or of a pass."""
            judge(requests, outputs)
            passes.append(tuple(waited))
            waited.clear()

        def one(request: Request, waited: list[float] = waited) -> Any:
            start = time.perf_counter()
            results = retriever.search(request.index, request.query)
            waited.append(time.perf_counter() - start)
            return results

        queries = max(_LEAST_QUERIES, _OF_EACH * clients)
        with ThreadPoolExecutor(clients) as pool:
            bench.race(
                "answer queries",
                [
                    Runner(run=lambda requests, one=one, pool=pool: list(pool.map(one, requests))),  # type: ignore[misc]
                    Runner(name=f"{OURS}, one batch", run=retriever.search_many),
                ],
                lambda rng, queries=queries: draw(rng, queries),  # type: ignore[misc]
                done,
                unit="query",
                items=queries,
                clock=HostClock(),
                parameters={"clients": clients, "clips": CLIPS},
                rounds=5,
                seconds=bench.settings.seconds / 2,
            )
        bench.record(
            Samples(tuple(passes[1:])),  # without the warm-up
            "wait for an answer",
            unit="query",
            parameters={"clients": clients, "clips": CLIPS},
        )
