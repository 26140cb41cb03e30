"""A circuit breaker: after repeated failures no request is sent for a while."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from granalign_fast.errors import GranAlignError

FAILURES = 3
"""Requests in a row that failed in spite of their retries, after which the circuit opens."""
PAUSE = 30.0
"""Seconds without a request. Then one is sent: if it succeeds, the circuit closes."""


class Circuit:
    """Counts failures in a row. All calls come from one thread.

    Args:
        name: of the server, with which messages begin.
        clock: returns seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._failures = 0
        self._until = 0.0
        self._reason = ""

    @property
    def is_closed(self) -> bool:
        """Whether requests pass as usual. Otherwise they pass one at a time, after a `check`."""
        return self._failures < FAILURES

    def check(self) -> None:
        """Let a request pass, or raise.

        Raises:
            GranAlignError: the circuit is open, and its pause is not over.
        """
        if self.is_closed:
            return
        wait = self._until - self._clock()
        if wait > 0:
            raise GranAlignError(
                f"{self._name}: {self._failures} requests in a row failed ({self._reason}), so "
                f"none is sent for {math.ceil(wait)} s; check the server, then run it again"
            )

    def succeeded(self) -> None:
        """Count a success: the circuit closes."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """Count a failure; the third in a row opens the circuit."""
        self._failures += 1
        self._reason = reason
        self._until = self._clock() + PAUSE
