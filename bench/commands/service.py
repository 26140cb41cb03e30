"""Load a running service: ``python -m granalign_fast.bench.commands.service URL QUERIES``.

Each number of clients takes its turn: so many send one search after another, for some seconds. The
table has searches a second, their times, and the mean size of the batches, which is read from the
service's metrics. The table is that of `triton`, to compare both; ``granalign bench service``
measures a service thoroughly. On a CPU only the ratios carry over to another machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from granalign_fast.jsonl import read_jsonl


class Load(NamedTuple):
    """The answers and times that a number of clients got."""

    clients: int
    seconds: float
    times: tuple[float, ...]
    """Seconds of each search that was answered."""
    others: Counter[int]
    """How many other answers there were, by status."""
    batch: float
    """Queries that began together, on average."""

    def line(self) -> str:
        """Return a row of the table."""
        p50, p95, p99 = np.quantile(self.times or (float("nan"),), (0.5, 0.95, 0.99)) * 1000
        others = ", ".join(f"{count} x {status}" for status, count in self.others.items()) or "-"
        rate = len(self.times) / self.seconds
        return (
            f"| {self.clients} | {rate:.1f} | {p50:.0f} | {p95:.0f} | {p99:.0f} | {self.batch:.1f} "
            f"| {others} |"
        )


HEAD = """| clients | searches/s | p50 ms | p95 ms | p99 ms | batch | other answers |
|---|---|---|---|---|---|---|"""


Ask = Callable[[Any], int]
"""Sends a request and reads the answer; returns its status, 200 if it is one."""


def put_load(
    connect: Callable[[], AbstractContextManager[Ask]],
    requests: Sequence[Any],
    clients: int,
    seconds: float,
    batches: Callable[[], tuple[float, float]],
) -> Load:
    """Let clients search for some seconds, each one search after another.

    Args:
        connect: returns the connection of one client.
        requests: which take turns.
        clients: how many search at the same time.
        seconds: how long.
        batches: returns the sum of all batch sizes so far, and the number of batches.
    """
    before = batches()
    turns, lock = itertools.cycle(requests), threading.Lock()
    times: list[float] = []
    others: Counter[int] = Counter()
    begin = time.monotonic()

    def search() -> None:
        with connect() as ask:
            while time.monotonic() - begin < seconds:
                with lock:
                    request = next(turns)
                start = time.monotonic()
                status = ask(request)
                took = time.monotonic() - start
                with lock:
                    if status == 200:
                        times.append(took)
                    else:
                        others[status] += 1
                if status == 429:
                    time.sleep(0.05)

    threads = [threading.Thread(target=search) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.monotonic() - begin
    total, count = (after - earlier for after, earlier in zip(batches(), before, strict=True))
    return Load(clients, spent, tuple(times), others, total / count if count else 0.0)


@contextmanager
def connected(url: str, token: str | None = None) -> Iterator[Ask]:
    """Yield a connection to a service; its requests are bodies of POST /v1/search."""
    connection = _connect(url)

    def ask(body: bytes) -> int:
        connection.request("POST", "/v1/search", body, _headers(token))
        response = connection.getresponse()
        response.read()
        return response.status

    try:
        yield ask
    finally:
        connection.close()


def _connect(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    return HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=120)


def _headers(token: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    return headers if token is None else headers | {"authorization": f"Bearer {token}"}


def _batches(url: str, token: str | None) -> tuple[float, float]:
    """Return the sum of all batch sizes so far, and the number of batches."""
    connection = _connect(url)
    connection.request("GET", "/metrics", headers=_headers(token))
    text = connection.getresponse().read().decode()
    connection.close()
    found = dict(re.findall(r"^granalign_search_batch_size_(sum|count) (\S+)$", text, re.MULTILINE))
    return float(found.get("sum", 0)), float(found.get("count", 0))


def read_queries(path: Path) -> Iterator[object]:
    """Yield the queries of a file, with their rewrites where it has some."""
    for record in read_jsonl(path, required=("query",)):
        rewrites = record.get("rewrites") or []
        yield {"query": record["query"], "simplified": rewrites} if rewrites else record["query"]


def main() -> None:
    """Parse the command line, put the load on, and print."""
    parser = argparse.ArgumentParser(description="Load a running service.")
    parser.add_argument("url")
    parser.add_argument("queries", type=Path, help="JSON Lines with the key query.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--refine", type=int, default=20)
    arguments = parser.parse_args()
    bodies = [
        json.dumps({"query": query, "refine": arguments.refine}).encode()
        for query in read_queries(arguments.queries)
    ]
    token = os.environ.get("GRANALIGN_TOKEN")
    print(HEAD)
    connect = partial(connected, arguments.url, token)
    batches = partial(_batches, arguments.url, token)
    for clients in arguments.clients:
        load = put_load(connect, bodies, clients, arguments.seconds, batches)
        print(load.line(), flush=True)


if __name__ == "__main__":
    main()
