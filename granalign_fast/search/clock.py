"""What took how long, and when: the stages of a search."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Span(NamedTuple):
    """When a stage was at work, in seconds since the clock was made."""

    stage: str
    begin: float
    end: float


class Clock:
    """Adds up the time since the last lap under the name of what was done in it.

    Args:
        seconds: receives the sums by stage.
        spans: receives every lap.
    """

    def __init__(self, seconds: dict[str, float], spans: list[Span] | None = None) -> None:
        self.seconds = seconds
        self.spans = [] if spans is None else spans
        self.made = self.last = time.perf_counter()

    def restart(self) -> None:
        """Forget the time since the last lap."""
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as that of a stage."""
        self.last = self._count(stage, self.last)

    @contextmanager
    def beside(self, stage: str) -> Iterator[None]:
        """Count what is done in another thread, while laps go on in this one."""
        begin = time.perf_counter()
        yield
        self._count(stage, begin)

    def _count(self, stage: str, begin: float) -> float:
        end = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + end - begin
        self.spans.append(Span(stage, begin - self.made, end - self.made))
        return end
