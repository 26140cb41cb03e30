"""The figures of a load: times, rates and refusals, and what the service says of itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .load import CUT, HUNG, Sent

Metrics = Mapping[str, float]
"""Samples of Prometheus by name and labels, such as ``name{stage="embed"}``."""

_SAMPLE = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)
_STAGE = re.compile(r'^granalign_stage_duration_seconds_sum\{stage="([^"]*)"\}$')
_NAMES = {CUT: "cut", HUNG: "hung"}

COLUMNS = (
    *("load", "answers/s", "p50", "p95", "p99", "batch", "processor ms", "memory MB"),
    "other answers",
)
"""The columns of the table of loads; times in milliseconds, processor time for each search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """The figures of a service under one load.

    Attributes:
        clients: of a closed loop; None for an open one.
        share: of an open loop: the offered rate as a share of the capacity; None for a closed one.
        offered: requests a second that were to be sent; None for a closed loop.
        seconds: from the beginning to the last answer; of an open loop at least its whole length.
        answered: requests with an answer.
        p50: median of their seconds, from the planned time on; `p95` and `p99` are the others.
        others: how many other answers there were, by status, ``cut`` or ``hung``.
        refused_p99: of the seconds of these; None without any.
        batch: queries that began together, on average; None if the service does not say.
        stages: seconds of each stage, divided by the number of queries.
        processor: seconds of processor time for each answer; None if the service does not say.
        memory: bytes of the service's memory after the load; None if it does not say.
    """

    clients: int | None = None
    share: float | None = None
    offered: float | None = None
    seconds: float
    answered: int
    p50: float | None
    p95: float | None
    p99: float | None
    others: dict[str, int] = field(default_factory=dict)
    refused_p99: float | None = None
    batch: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    processor: float | None = None
    memory: float | None = None

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def name(self) -> str:
        """The load in words."""
        if self.clients is not None:
            return f"{self.clients} client{'s' * (self.clients != 1)}"
        return f"{self.share or 0:.0%} of capacity"

    def cells(self) -> tuple[str, ...]:
        """Return the cells of its row, under `COLUMNS`."""
        others = ", ".join(f"{count} x {status}" for status, count in self.others.items())
        if self.refused_p99 is not None:
            others += f" (p99 {1000 * self.refused_p99:.0f} ms)"
        scaled = [
            *((value, 1e3, ".0f") for value in (self.p50, self.p95, self.p99)),
            *((self.batch, 1, ".1f"), (self.processor, 1e3, ".1f"), (self.memory, 1e-6, ".0f")),
        ]
        shown = (
            "-" if value is None else format(value * scale, form) for value, scale, form in scaled
        )
        return (self.name, f"{self.rate:.1f}", *shown, others or "-")


def read_metrics(text: str) -> Metrics:
    """Return the samples of a page of metrics."""
    return {name: float(value) for name, value in _SAMPLE.findall(text)}


def figures(
    sent: Sequence[Sent],
    before: Metrics,
    after: Metrics,
    *,
    clients: int | None = None,
    share: float | None = None,
    offered: float | None = None,
    length: float = 0.0,
) -> LoadFigures:
    """Return the figures of a load.

    Args:
        sent: what became of each request.
        before: the metrics of the service before the load.
        after: the same after it.
        clients: as for `LoadFigures`, like those that follow.
        share: of the capacity.
        offered: requests a second.
        length: of an open loop: seconds in which requests were to be sent.
    """
    good = [one.seconds for one in sent if one.status == 200]
    bad = [one for one in sent if one.status != 200]
    p50, p95, p99 = quantiles(good, (0.5, 0.95, 0.99))

    def grown(name: str) -> float | None:
        return after[name] - before.get(name, 0.0) if name in after else None

    queries = grown("granalign_search_batch_size_sum")
    batches = grown("granalign_search_batch_size_count")
    processor = grown("process_cpu_seconds_total")
    return LoadFigures(
        clients=clients,
        share=share,
        offered=offered,
        seconds=max([length, *(one.done for one in sent)]),
        answered=len(good),
        p50=p50,
        p95=p95,
        p99=p99,
        others=dict(Counter(_NAMES.get(one.status, str(one.status)) for one in bad)),
        refused_p99=quantiles([one.seconds for one in bad], (0.99,))[0],
        batch=queries / batches if queries and batches else None,
        stages=dict(_stages(before, after, queries)) if queries else {},
        processor=processor / len(good) if processor is not None and good else None,
        memory=after.get("process_resident_memory_bytes"),
    )


def quantiles(seconds: Sequence[float], shares: Sequence[float]) -> list[float | None]:
    """Return the seconds below which these shares lie, interpolated; None without any seconds."""
    if not seconds:
        return [None] * len(shares)
    return [float(value) for value in np.quantile(seconds, shares)]


def _stages(before: Metrics, after: Metrics, queries: float) -> Iterator[tuple[str, float]]:
    for name, total in after.items():
        if found := _STAGE.match(name):
            yield found[1], (total - before.get(name, 0.0)) / queries
