"""Simulate a batching service: ``python -m granalign_fast.bench.commands.batch_queue``.

Queries come at random times. A batch of *B* takes ``fixed + each * B``, as on one processor; while
it is in work, others wait, and past the queue they are refused. The table tells what batches cost:
the greater the share of a batch that does not grow with it, the more a load of 80% of the capacity
gains from them, and the smaller is the wait beside that of a lone query.
"""

from __future__ import annotations

import argparse
from collections import deque
from typing import NamedTuple

import numpy as np

from granalign_fast.server.settings import Limits

QUERIES = 40_000
USUAL = Limits()
"""The size of batches and the queue that a service has by default."""


class Outcome(NamedTuple):
    """The answers and refusals of a simulated service."""

    waits: tuple[float, ...]
    """From when each answered query came to its answer, in units of a lone query's time."""
    refused: float
    """The share of the queries that were refused."""

    def quantile(self, share: float) -> float:
        """Return the time below which this share of the answers lies."""
        return float(np.quantile(self.waits, share))


def fixed_share(gain: float, batch: int) -> float:
    """Return the part of a lone query's time that a whole batch pays once.

    Args:
        gain: answers a second in full batches, divided by those of one query after another.
        batch: queries of a full batch.
    """
    return (batch - batch / gain) / (batch - 1)


def simulate(
    fixed: float, load: float, *, batch: int = USUAL.batch, queue: int = USUAL.queue, seed: int = 0
) -> Outcome:
    """Let queries come at random times to a service whose lone query takes 1.

    Args:
        fixed: of that, what a batch pays once, 0 to 1.
        load: queries that come, as a share of those that full batches can answer.
        batch: most queries of a batch.
        queue: queries that may wait; past them they are refused.
        seed: of the random times.
    """
    each = 1 - fixed
    capacity = batch / (fixed + each * batch)
    gaps = np.random.default_rng(seed).exponential(1 / (load * capacity), QUERIES)
    coming = deque(np.cumsum(gaps).tolist())
    waiting: deque[float] = deque()
    waits: list[float] = []
    now = 0.0

    def take(until: float) -> None:
        while coming and coming[0] <= until:
            came = coming.popleft()
            if len(waiting) < queue:
                waiting.append(came)

    while coming or waiting:
        if not waiting:
            now = max(now, coming[0])
            take(now)
        some = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
        now += fixed + each * len(some)
        waits += [now - came for came in some]
        take(now)
    return Outcome(tuple(waits), 1 - len(waits) / QUERIES)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Simulate a batching service.")
    parser.add_argument("--batch", type=int, default=USUAL.batch)
    parser.add_argument("--queue", type=int, default=USUAL.queue)
    arguments = parser.parse_args()
    sizes = {"batch": arguments.batch, "queue": arguments.queue}
    print("| gain of batches | p99 at 80%, of a lone query | refused | p99 at 10 times, of that |")
    print("|---|---|---|---|")
    for gain in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0):
        fixed = fixed_share(gain, arguments.batch)
        usual, over = simulate(fixed, 0.8, **sizes), simulate(fixed, 10.0, **sizes)
        p99 = usual.quantile(0.99)
        print(f"| {gain:g} | {p99:.1f} | {usual.refused:.1%} | {over.quantile(0.99) / p99:.2f} |")


if __name__ == "__main__":
    main()
