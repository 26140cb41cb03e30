"""Progress on stderr: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .verbosity import is_quiet

Advance = Callable[[int, int], None]
"""Called with the number of items done since the last call, and the number of all items."""

INTERVAL = 5.0
"""Seconds between two lines: a log of an hour's work stays below a thousand lines."""


@contextmanager
def progress_bar(what: str, unit: str, *, hidden: bool = False) -> Iterator[Advance | None]:
    """Show how far a piece of work is, until the block ends.

    Args:
        what: the work, such as "indexing".
        unit: what is counted, such as "clips".
        hidden: show nothing, as with `--quiet`.

    Yields:
        The function to call as items are done; None where nothing is shown.
    """
    if hidden or is_quiet():
        yield None
        return
    if not sys.stderr.isatty():
        yield _Lines(what, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda more, total: bar.update(task, advance=more, total=total)


@contextmanager
def status(what: str) -> Iterator[None]:
    """Show that work without countable steps goes on, until the block ends."""
    if is_quiet():
        yield
        return
    if not sys.stderr.isatty():
        with _timed_lines(what):
            yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield


class Throttle:
    """Lets one line through every `INTERVAL` seconds; the first one after the first interval."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    def due(self) -> bool:
        """Return whether a line is due, which the caller then writes."""
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return False
        self._last = now
        return True


class _Lines:
    """Writes ``indexing: 40 of 120 clips, 12 s`` when a line is due."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._done = 0
        self._throttle = Throttle()

    def __call__(self, more: int, total: int) -> None:
        self._done += more
        if self._throttle.due():
            seconds = f"{self._throttle.seconds:.0f} s"
            _write(f"{self._what}: {self._done} of {total} {self._unit}, {seconds}")


@contextmanager
def _timed_lines(what: str) -> Iterator[None]:
    """Write a line every `INTERVAL` seconds from a thread: the work itself makes no calls."""
    ended = threading.Event()

    def write() -> None:
        begin = time.monotonic()
        while not ended.wait(INTERVAL):
            _write(f"{what}, {time.monotonic() - begin:.0f} s")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
