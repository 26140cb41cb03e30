"""Load a running service: ``python -m granalign_fast.bench.commands.service URL QUERIES``.

Each number of clients takes its turn: so many send one search after another, for some seconds. The
table has searches a second, their times, and the mean size of the batches, which is read from the
service's metrics. On a CPU only the ratios carry over to another machine.
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
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from granalign_fast.jsonl import read_jsonl


class Load(NamedTuple):
    """What a number of clients got."""

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


def put_load(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, token: str | None = None
) -> Load:
    """Let clients search for some seconds, each one search after another.

    Args:
        url: of the service.
        bodies: requests, which take turns.
        clients: how many search at the same time.
        seconds: how long.
        token: of the service.
    """
    before = _batches(url, token)
    turns, lock = itertools.cycle(bodies), threading.Lock()
    times: list[float] = []
    others: Counter[int] = Counter()
    begin = time.monotonic()

    def search() -> None:
        connection = _connect(url)
        while time.monotonic() - begin < seconds:
            with lock:
                body = next(turns)
            start = time.monotonic()
            connection.request("POST", "/v1/search", body, _headers(token))
            response = connection.getresponse()
            response.read()
            took = time.monotonic() - start
            with lock:
                if response.status == 200:
                    times.append(took)
                else:
                    others[response.status] += 1
            if response.status == 429:
                time.sleep(0.05)
        connection.close()

    threads = [threading.Thread(target=search) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.monotonic() - begin
    total, count = (
        after - earlier for after, earlier in zip(_batches(url, token), before, strict=True)
    )
    return Load(clients, spent, tuple(times), others, total / count if count else 0.0)


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


def _read_queries(path: Path) -> Iterator[object]:
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
        for query in _read_queries(arguments.queries)
    ]
    token = os.environ.get("GRANALIGN_TOKEN")
    print(HEAD)
    for clients in arguments.clients:
        print(put_load(arguments.url, bodies, clients, arguments.seconds, token).line(), flush=True)


if __name__ == "__main__":
    main()
