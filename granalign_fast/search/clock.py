"""The times of a search's stages: how long each took, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Span(NamedTuple):
    """When a stage ran, in seconds since the start of the search."""

    stage: str
    begin: float
    end: float


class Clock:
    """A stopwatch with named laps: each lap adds the time since the last one to its stage.

    Args:
        seconds: receives the total of each stage.
        spans: receives every lap.
    """

    def __init__(self, seconds: dict[str, float], spans: list[Span] | None = None) -> None:
        self.seconds = seconds
        self.spans = [] if spans is None else spans
        self._started = self._last_lap = time.perf_counter()

    def restart(self) -> None:
        """Discard the time since the last lap."""
        self._last_lap = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        self._last_lap = self._add(stage, self._last_lap)

    @contextmanager
    def concurrent(self, stage: str) -> Iterator[None]:
        """Time a block that runs in another thread; the laps of this thread go on."""
        begin = time.perf_counter()
        yield
        self._add(stage, begin)

    def _add(self, stage: str, begin: float) -> float:
        """Add the time from `begin` until now to a stage, and return the time now."""
        end = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + end - begin
        self.spans.append(Span(stage, begin - self._started, end - self._started))
        return end
