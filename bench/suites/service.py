"""Suite ``service``: the HTTP service under load, by 1 to 64 clients and at random times.

The service and the load each have a process of their own. No two requests have the same query, so
that no embedding that is kept answers for a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from granalign_fast.bench.harness.load import Plan, Sent, arrivals, put_load
from granalign_fast.bench.harness.load_figures import LoadFigures, figures, quantiles
from granalign_fast.bench.harness.runner import Bench
from granalign_fast.bench.harness.served import Served, serving
from granalign_fast.bench.harness.timing import require
from granalign_fast.bench.harness.workloads import captioned, sentences
from granalign_fast.errors import GranAlignError, MissingExtraError, short_repr
from granalign_fast.jsonl import iter_jsonl
from granalign_fast.library import Library

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
OVERLOAD = 10.0
"""The share of the capacity at which the service must refuse most requests."""

_VIDEOS, _CUTS = 100, 4
_QUERIES = 512
"""Queries of a library that was made for the suite."""
_FASTEST = 2000
"""Answers a second for which a closed loop has queries."""
_FIRST_STAGES = 40
"""Searches of the first stage alone that are timed in turn, over HTTP and in this process."""
_WARM_VIDEOS, _WARM_READS, _WARM_SECONDS = 100, 8, 120.0
"""Before the measurements: videos of a query, how often each video is searched on average, and the
seconds that this may take."""
_LEAST_SECONDS = 0.3
_FULL = "10 times the capacity"


@dataclass
class _Measured:
    """A service, and the queries that it has not been asked yet.

    Attributes:
        bench: receives the figures.
        served: the service.
        queries: from which requests are made.
        refine: videos that the second stage searches; None for the service's own number.
        number: of the next query.
    """

    bench: Bench
    served: Served
    queries: Queries
    refine: int | None = None
    number: int = 0

    def closed(self, clients: int, seconds: float) -> LoadFigures:
        """Let clients search one query after another."""
        queries = self.queries.take(self.number, int(seconds * _FASTEST))
        plan = self._plan(queries, clients=clients, seconds=seconds)
        return self._put(plan, clients=clients)

    def open(self, share: float, capacity: float, seconds: float) -> LoadFigures:
        """Let queries come at random times, at a share of the capacity."""
        rate = share * capacity
        times = arrivals(rate, seconds, self.bench.settings.seed + round(100 * share))
        plan = self._plan(self.queries.exactly(self.number, len(times)), times=times)
        return self._put(plan, share=share, offered=rate, length=seconds)

    def send(self, plan: Plan) -> list[Sent]:
        """Send requests, and note how many queries that took."""
        sent = put_load(plan)
        self.number += len(sent)
        return sent

    def body(self, query: str, refine: int | None = None) -> str:
        """Return the body of a request."""
        record: dict[str, object] = {"query": query}
        refine = self.refine if refine is None else refine
        return json.dumps(record if refine is None else record | {"refine": refine})

    def plan(self, bodies: Sequence[str], **fields: object) -> Plan:
        """Return a plan for this service."""
        served = self.served
        given = {"host": served.host, "port": served.port, "token": served.token} | fields
        return Plan(bodies=bodies, **given)  # type: ignore[arg-type]

    def _plan(self, queries: Sequence[str], **fields: object) -> Plan:
        return self.plan([self.body(query) for query in queries], **fields)

    def _put(
        self,
        plan: Plan,
        *,
        clients: int | None = None,
        share: float | None = None,
        offered: float | None = None,
        length: float = 0.0,
    ) -> LoadFigures:
        before = self.served.metrics()
        sent = self.send(plan)
        after = self.served.metrics()
        found = figures(
            sent, before, after, clients=clients, share=share, offered=offered, length=length
        )
        require(found.answered > 0, f"service, {found.name}: no request was answered")
        self.bench.say(f"service: {', '.join(found.cells())}")
        self.bench.report.loads.append(found)
        self.bench.breakdown(found.name, found.stages)
        return found


def run(bench: Bench) -> None:
    """Measure a service that runs, or one that is started for a library.

    Raises:
        GranAlignError: the library, the queries or the service cannot be used.
    """
    settings = bench.settings
    queries = Queries(_made(bench) if settings.queries is None else _read_queries(settings.queries))
    if settings.url is not None:
        _measure(_Measured(bench, Served.at(settings.url), queries), None)
        return
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise MissingExtraError("the suite service", "serve") from None
    library = settings.library or make_library(bench)
    options = [] if settings.models is None else ["--models", str(settings.models)]
    options += ["--device", settings.device, "--preset", settings.preset, "--read-only"]
    with serving(library, options, bench.folder / "service.log") as served:
        _measure(_Measured(bench, served, queries), library)


def make_library(bench: Bench) -> Path:
    """Make a library: of captions, or of videos that the models look at; return its folder."""
    from granalign_fast.pipeline import MomentRetriever, open_models

    folder = bench.folder / "library"
    rng = np.random.default_rng(bench.settings.seed)
    if bench.settings.models is None:
        retriever = MomentRetriever()
        count = bench.settings.scaled(_VIDEOS, 4)
        videos = [captioned(rng, f"video-{number}") for number in range(count)]
        for index in retriever.index_many(videos):
            index.save(folder / index.video.vid)
        return folder
    from granalign_fast.miniatures.videos import render_video
    from granalign_fast.video.cutting import cut

    whole, cuts = bench.folder / "whole.mp4", bench.folder / "videos"
    cuts.mkdir()
    render_video(whole, 7, seconds=(54.0, 60.0))
    paths = [cuts / f"part-{number}.mp4" for number in range(_CUTS)]
    for number, path in enumerate(paths):
        cut(whole, 13.0 * number, 13.0 * number + 13, path, exact=True)
    open_models(bench.settings.models, prefix_gib=0.0).index(paths, folder)
    return folder


class Queries:
    """Queries of which no two are equal, of words as people write them.

    After the given ones come new ones, each the beginning of one and the end of another.

    Args:
        given: the first of them.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self._made = list(dict.fromkeys(given))
        self._more = self._mixed(list(self._made))

    def take(self, first: int, count: int) -> list[str]:
        """Return so many queries from a number on, from 0; fewer if there are no more."""
        known = set(self._made)
        while len(self._made) < first + count and (query := next(self._more, None)) is not None:
            if query not in known:
                known.add(query)
                self._made.append(query)
        return self._made[first : first + count]

    def exactly(self, first: int, count: int) -> list[str]:
        """Return so many queries from a number on.

        Raises:
            GranAlignError: there are fewer.
        """
        taken = self.take(first, count)
        if len(taken) < count:
            raise GranAlignError(
                f"queries: got ones for {len(self._made):,} requests, expected {first + count:,} "
                f"of which no two are equal; give more --queries, or measure for less time"
            )
        return taken

    @staticmethod
    def _mixed(given: list[str]) -> Iterator[str]:
        words = [query.split() for query in given]
        for turn in range(1, len(words)):
            for place, begin in enumerate(words):
                end = words[(place + turn) % len(words)]
                yield " ".join(begin[: (len(begin) + 1) // 2] + end[len(end) // 2 :])


def _read_queries(path: Path) -> list[str]:
    """Return the different queries of a file.

    Raises:
        GranAlignError: it cannot be read, or a query is no text.
    """
    found: dict[str, None] = {}
    for line, record in iter_jsonl(path, required=("query",)):
        query = record["query"]
        if not isinstance(query, str) or not query.strip():
            raise GranAlignError(f"{line}: got the query {short_repr(query)}, expected a text")
        found[query] = None
    return list(found)


def _made(bench: Bench) -> list[str]:
    return sentences(np.random.default_rng(bench.settings.seed + 1), _QUERIES)


def _measure(measured: _Measured, library: Path | None) -> None:
    """Put all loads on a service, and record the figures that people ask for first."""
    bench = measured.bench
    settings = bench.settings
    seconds, full = max(settings.seconds, _LEAST_SECONDS), settings.size >= 1
    # 1. Warm up: queries of many videos each, so that caches of videos are full before anything is
    # measured, and memory that grows later is a leak.
    bench.say("service: warm-up")
    videos = measured.served.metrics().get("granalign_library_videos", 0)
    refine = _WARM_VIDEOS if settings.models is None else None  # captions alone take no time
    count = max(2 * CLIENTS[4], round(_WARM_READS * videos / _WARM_VIDEOS))
    bodies = [measured.body(query, refine) for query in measured.queries.take(0, count)]
    measured.send(measured.plan(bodies, clients=CLIENTS[4], seconds=_WARM_SECONDS))
    # 2. Closed loops: the capacity is the best rate of any of them.
    closed = {
        clients: measured.closed(clients, seconds)
        for clients in (CLIENTS if full else (CLIENTS[0], CLIENTS[4]))
    }
    capacity = max(load.rate for load in closed.values())
    bench.constant("service: capacity, answers a second", capacity)
    _ratio(bench, "throughput, 16 clients over 1", closed[16].rate, closed[1].rate)
    # 3. Open loops, and far more than the service can do.
    opened = {
        share: measured.open(share, capacity, seconds)
        for share in (SHARES if full else (SHARES[0], SHARES[7]))
    }
    _ratio(bench, "p99 at 80% over the p50 of a lone request", opened[0.8].p99, closed[1].p50)
    over = measured.open(OVERLOAD, capacity, settings.overload_seconds or seconds)
    _ratio(bench, f"p99 at {_FULL} over that at 80%", over.p99, opened[0.8].p99)
    if over.memory is not None and opened[0.8].memory is not None:
        _ratio(bench, f"memory after {_FULL} over before", over.memory, opened[0.8].memory)
    # 4. The first stage alone, beside the library without HTTP.
    if library is not None:
        _first_stage(measured, library)


def _ratio(bench: Bench, name: str, value: float | None, base: float | None) -> None:
    if value is not None and base:
        bench.constant(f"service: {name}", value / base)


def _first_stage(measured: _Measured, library: Path) -> None:
    """Time searches of the first stage alone in turn, over HTTP and by a call of the library."""
    from granalign_fast.pipeline import MomentRetriever, open_models

    settings = measured.bench.settings
    retriever = (
        MomentRetriever(config=settings.preset, device=settings.device)
        if settings.models is None
        else open_models(settings.models, device=settings.device).retriever(settings.preset)
    )
    opened = Library.open(library, retriever)

    def call(query: str) -> object:
        return opened.search(query, refine=0)

    with _asking(measured) as ask:
        times: list[list[float]] = [[], []]
        for turn in range(_FIRST_STAGES):
            for way, found in zip((ask, call), times, strict=True):
                (query,) = measured.queries.exactly(measured.number, 1)
                measured.number += 1
                begin = time.perf_counter()
                way(query)
                if turn >= _FIRST_STAGES // 4:  # without the warm-up
                    found.append(time.perf_counter() - begin)
    over_http, by_call = (quantiles(found, (0.5,))[0] for found in times)
    _ratio(measured.bench, "first stage over HTTP over the library's call", over_http, by_call)
    for name, value in (("over HTTP", over_http), ("by the library", by_call)):
        measured.bench.constant(f"service: first stage {name}, seconds", value or 0.0)


@contextmanager
def _asking(measured: _Measured) -> Iterator[Callable[[str], object]]:
    """Yield a function that searches the first stage over one connection."""
    from http.client import HTTPConnection

    served = measured.served
    connection = HTTPConnection(served.host, served.port, timeout=60)
    headers = {"Content-Type": "application/json"}
    if served.token is not None:
        headers["Authorization"] = f"Bearer {served.token}"

    def ask(query: str) -> object:
        body = json.dumps({"query": query, "refine": 0})
        connection.request("POST", "/v1/search", body, headers)
        response = connection.getresponse()
        content = response.read()
        require(response.status == 200, f"service: got {response.status} for the first stage")
        return content

    try:
        yield ask
    finally:
        connection.close()
