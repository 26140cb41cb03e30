"""Queries of many requests in common batches, on the one thread that searches.

A batch begins with the first query that waits. It takes what else has come after a short delay, or
at once when it is full. All plain queries of a batch are rewritten in one call, and queries with
equal options share the first stage and the method's batches. A query whose client has gone, or
whose time is up, is dropped before it costs anything.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from granalign_fast.errors import GranAlignError
from granalign_fast.library import Filters, LibraryResult
from granalign_fast.types import Rewrites

from .engine import Engine
from .metrics import Metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What a query asks for; queries with equal options can be searched together."""

    preset: str
    top: int
    refine: int
    budget: float | None = None
    videos: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    after: str | None = None
    before: str | None = None
    min_length: float = 0.0

    @property
    def filters(self) -> Filters:
        """The filters of the library."""
        return Filters(
            videos=self.videos,
            tags=self.tags,
            after=self.after,
            before=self.before,
            min_length=self.min_length,
        )


Answer = Callable[[LibraryResult | Exception, bool], None]
"""Called on the searching thread with an answer, and whether it is the last one."""


@dataclass(slots=True)
class Ticket:
    """A query that waits or is being searched.

    Attributes:
        query: a text, or a query with its rewrites.
        options: what it asks for.
        answer: receives the answers.
        staged: whether it wants the answer of the first stage, and each better one.
        deadline: of `time.monotonic`, after which nobody waits for it.
        cancelled: set by the client's side when nobody waits for it any more.
    """

    query: str | Rewrites
    options: Options
    answer: Answer
    staged: bool = False
    deadline: float = float("inf")
    cancelled: bool = False
    came: float = field(default_factory=time.monotonic)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for an answer."""
        return not self.cancelled and time.monotonic() < self.deadline


@dataclass(slots=True)
class _Staged:
    """A query whose answer comes in stages."""

    ticket: Ticket
    steps: Iterator[LibraryResult]
    last: LibraryResult | None = None


class QueueFull(Exception):
    """Too many queries wait.

    Attributes:
        seconds: after which it is worth to try again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Batcher:
    """The thread that searches, and the queue before it.

    Args:
        engine: the models and the library.
        metrics: are told of batches and queues.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        limits = engine.settings.limits
        self._engine, self._metrics = engine, metrics
        self._most, self._delay, self._room = limits.batch, limits.batch_delay, limits.queue
        self._waiting: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._staged: list[_Staged] = []
        self._seconds_per_query = 0.1
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)
        self._ended = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch in work."""
        self._ended = True
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        """How many queries wait."""
        return self._waiting.qsize()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Let queries wait for a batch: all of them or none.

        Raises:
            QueueFull: too many wait already.
        """
        waiting = self.waiting
        if waiting + len(tickets) > self._room:
            raise QueueFull(max(1.0, waiting * self._seconds_per_query))
        for ticket in tickets:
            self._waiting.put(ticket)

    def _run(self) -> None:
        while not self._ended:
            tickets = self._collect()
            self._engine.take_catalogue()
            if tickets:
                self._search(tickets)
            self._advance_staged()

    def _collect(self) -> list[Ticket]:
        """Wait for a query, and return it with those that come within the delay."""
        tickets: list[Ticket] = []
        until = None
        while len(tickets) < self._most:
            try:
                if self._staged:  # an answer in stages is under way: do not wait
                    ticket = self._waiting.get_nowait()
                elif until is None:
                    ticket = self._waiting.get()
                else:
                    ticket = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if ticket is None:
                break
            if ticket.is_wanted:
                tickets.append(ticket)
            else:
                self._metrics.dropped.inc()
            if until is None:
                until = time.monotonic() + self._delay
        return tickets

    def _search(self, tickets: list[Ticket]) -> None:
        """Search a batch."""
        begin = time.monotonic()
        for ticket in tickets:
            self._metrics.waited.observe(begin - ticket.came)
        self._metrics.batches.observe(len(tickets))
        groups: dict[Options, list[Ticket]] = {}
        for ticket in self._rewrite(tickets):
            if ticket.staged or ticket.options.budget is not None:
                self._staged.append(_Staged(ticket, self._stages(ticket)))
            else:
                groups.setdefault(ticket.options, []).append(ticket)
        for options, group in groups.items():
            self._search_group(options, group)
        spent = (time.monotonic() - begin) / len(tickets)
        self._seconds_per_query += 0.2 * (spent - self._seconds_per_query)

    def _rewrite(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Rewrite all plain queries of a batch, those of one rewriter in one call."""
        rewriters = {}
        plain: dict[int, list[Ticket]] = {}
        for ticket in tickets:
            if isinstance(ticket.query, str):
                rewriter = self._engine.library(ticket.options.preset).retriever.rewriter
                rewriters[id(rewriter)] = rewriter
                plain.setdefault(id(rewriter), []).append(ticket)
        failed: set[int] = set()
        for key, group in plain.items():
            begin = time.monotonic()
            texts = list(dict.fromkeys(str(ticket.query) for ticket in group))
            try:
                written = dict(zip(texts, rewriters[key].rewrite(texts), strict=True))
            except Exception as error:
                for ticket in group:
                    self._fail(ticket, error)
                    failed.add(id(ticket))
                continue
            self._metrics.stages.labels("rewrite").observe(time.monotonic() - begin)
            for ticket in group:
                ticket.query = written[str(ticket.query)]
        return [ticket for ticket in tickets if id(ticket) not in failed]

    def _search_group(self, options: Options, group: list[Ticket]) -> None:
        """Search queries with equal options together; one that fails does not fail the others."""
        library = self._engine.library(options.preset)
        try:
            results = library.search_many(
                [ticket.query for ticket in group],
                top=options.top,
                refine=options.refine,
                filters=options.filters,
            )
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0], error)
                return
            for ticket in group:
                self._search_group(options, [ticket])
            return
        self._observe(results[0])
        for ticket, result in zip(group, results, strict=True):
            ticket.answer(result, True)

    def _stages(self, ticket: Ticket) -> Iterator[LibraryResult]:
        options = ticket.options
        return self._engine.library(options.preset).stages(
            ticket.query,
            top=options.top,
            refine=options.refine,
            budget=options.budget,
            filters=options.filters,
        )

    def _advance_staged(self) -> None:
        """Take one step in each answer that comes in stages."""
        going = []
        for staged in self._staged:
            ticket = staged.ticket
            if not ticket.is_wanted:
                self._metrics.dropped.inc()
                continue
            try:
                result = next(staged.steps, None)
            except Exception as error:
                self._fail(ticket, error)
                continue
            if result is not None and not result.complete:
                staged.last = result
                ticket.answer(result, False)
                going.append(staged)
            elif (last := result or staged.last) is not None:  # without a result, time is up
                self._observe(last)
                ticket.answer(last, True)
        self._staged = going

    def _observe(self, result: LibraryResult) -> None:
        for stage, seconds in result.seconds.items():
            if stage != "rewrite":  # measured for the whole batch
                self._metrics.stages.labels(stage).observe(seconds)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, GranAlignError):
            _log.error("a search failed: %s: %s", type(error).__name__, error, exc_info=error)
        ticket.answer(error, True)
