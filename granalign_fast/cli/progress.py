"""Progress on stderr: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from granalign_fast.output.visible import visible

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
        begin = time.monotonic()
        with _timed_lines(lambda: f"{what}, {time.monotonic() - begin:.0f} s"):
            yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield


@dataclass
class Weights:
    """How far an export is: the functions to call as it goes on.

    Attributes:
        step: called with the name of each step as it begins.
        written: called as weights are written: with their part, the bytes so far, and all bytes.
    """

    step: Callable[[str], None]
    written: Callable[[str, int, int], None]


@contextmanager
def weights_progress(what: str) -> Iterator[Weights]:
    """Show the steps of an export, and in them the part of the model, bytes and time left.

    Args:
        what: the work, such as "exporting llama in int4".
    """
    if is_quiet():
        yield Weights(lambda step: None, lambda part, done, total: None)
        return
    state = _WeightsState(what)
    if not sys.stderr.isatty():
        with _timed_lines(state.line):
            yield Weights(state.step, state.written)
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)) as shown:

        def step(name: str) -> None:
            state.step(name)
            shown.update(Text(state.line()))

        def written(part: str, done: int, total: int) -> None:
            state.written(part, done, total)
            shown.update(Text(state.line()))

        yield Weights(step, written)


class _WeightsState:
    """The latest report of an export, as a line."""

    def __init__(self, what: str) -> None:
        self._what, self._step = what, ""
        self._progress: tuple[str, int, int] | None = None
        self._begin = time.monotonic()

    def step(self, name: str) -> None:
        self._step, self._progress = name, None
        self._begin = time.monotonic()

    def written(self, part: str, done: int, total: int) -> None:
        self._progress = part, done, total

    def line(self) -> str:
        """Return the line: the work, its step and how far that is."""
        seconds = time.monotonic() - self._begin
        parts = [part for part in (self._what, self._step) if part]
        if self._progress is None:
            return ", ".join([*parts, f"{seconds:.0f} s"])
        part, done, total = self._progress
        left = seconds * (total - done) / max(done, 1)
        size = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB"
        return ", ".join([*parts, part, size, f"{left:.0f} s left"])


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
    """Writes ``indexing: 40 of 120 clips, 12 s, 24 s left`` when a line is due."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._done = 0
        self._throttle = Throttle()

    def __call__(self, more: int, total: int) -> None:
        self._done += more
        if self._throttle.due():
            seconds = self._throttle.seconds
            left = seconds * (total - self._done) / max(self._done, 1)
            done = f"{self._done} of {total} {self._unit}"
            _write(f"{self._what}: {done}, {seconds:.0f} s, {left:.0f} s left")


@contextmanager
def _timed_lines(line: Callable[[], str]) -> Iterator[None]:
    """Write a line every `INTERVAL` seconds from a thread: the work itself may make no calls."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(INTERVAL):
            _write(line())

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _write(line: str) -> None:
    sys.stderr.write(visible(line) + "\n")
    sys.stderr.flush()
