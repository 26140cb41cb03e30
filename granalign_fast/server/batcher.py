"""Queries of many requests in common batches, on the one thread that searches.

The thread goes round. In each round it takes the queries that wait, rewrites them in one call, and
answers their first stage in common passes over the clips; then it searches the next videos of all
queries in work together, so that captions and embeddings are computed in common batches. A round
begins with a short wait for further queries only if nothing is in work. A query whose client has
gone, or whose time is up, is dropped between two rounds.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from granalign_fast.errors import GranAlignError
from granalign_fast.library import Filters, Library, LibraryResult
from granalign_fast.library.refinement import Refinement
from granalign_fast.protocols import Rewriter
from granalign_fast.types import Rewrites

from .engine import Engine
from .metrics import Metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a query; queries with equal options can be searched together."""

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


@dataclass(slots=True, eq=False)
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


@dataclass(slots=True, eq=False)
class _Work:
    """A query in work."""

    ticket: Ticket
    library: Library
    refinement: Refinement
    until: float
    """The time of `time.monotonic` after which no further video is searched."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing more is to be searched."""
        return self.refinement.reached == self.refinement.count or time.monotonic() >= self.until


class QueueFull(Exception):
    """A query cannot wait: too many do, or they take longer than it has time.

    Attributes:
        reason: in words, what was got and what was expected.
        seconds: after which it is worth to try again.
    """

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


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
        self._works: list[_Work] = []
        self._unanswered, self._lock = 0, threading.Lock()
        self._pace = _Pace()
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)
        self._ended = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Take up the newest catalogue, also if no query comes: the earlier one has files open."""
        self._waiting.put(None)

    def stop(self) -> None:
        """End the thread after the batch in work."""
        self._ended = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        """How many queries wait."""
        return self._waiting.qsize()

    def check_room(self) -> None:
        """Refuse before a request is read: under a great load that is most of the work.

        Raises:
            QueueFull: not one more query can wait.
        """
        # A client whose query was answered may ask again at once: its place is free from then on.
        if self._unanswered >= self._most + self._room:
            reason = f"got {self._unanswered} queries in work or waiting, expected fewer"
            raise QueueFull(reason, max(1.0, self._seconds_ahead()))

    def _count(self, change: int) -> None:
        """Note that queries came, or were answered or dropped."""
        with self._lock:
            self._unanswered += change

    def _drop(self, count: int) -> None:
        """Note that nobody waits any more for the answers to some queries."""
        self._metrics.dropped.inc(count)
        self._count(-count)

    def _seconds_ahead(self) -> float:
        """Return how long the queries that wait or are in work will take, by the pace so far."""
        return (self.waiting + len(self._works)) * self._pace.seconds

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Let the queries of a request wait for a batch: all of them or none.

        They come in while there is room for one: a request of more queries than can wait would be
        refused for ever.

        Raises:
            QueueFull: too many wait already, or those that do take longer than one has time.
        """
        self.check_room()
        ahead, now = self._seconds_ahead(), time.monotonic()
        left = min(ticket.deadline for ticket in tickets) - now
        # With nothing before it, a query whose time is up gets the answer that it is.
        if ahead > 0 and left < ahead:
            reason = (
                f"got earlier queries that take {ahead:.1f} s, expected less than the {left:.1f} s "
                f"that this one has time"
            )
            raise QueueFull(reason, max(1.0, ahead))
        self._count(len(tickets))
        for ticket in tickets:
            self._waiting.put(ticket)

    def _run(self) -> None:
        while not self._ended:
            tickets = self._collect()
            self._engine.take_catalogue()
            self._begin(tickets)
            self._drop_unwanted()
            self._advance()
            self._answer()

    def _collect(self) -> list[Ticket]:
        """Return the queries that wait; if nothing is in work, wait for one and some after it."""
        tickets: list[Ticket] = []
        until = None
        while len(tickets) + len(self._works) < self._most:
            try:
                if self._works:
                    ticket = self._waiting.get_nowait()
                elif until is None:
                    ticket = self._waiting.get()
                else:
                    ticket = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if ticket is None:
                break
            if until is None:
                until = time.monotonic() + self._delay
                self._pace.begin(idle=not self._works)
            if ticket.is_wanted:
                tickets.append(ticket)
            else:
                self._drop(1)
        return tickets

    def _begin(self, tickets: Sequence[Ticket]) -> None:
        """Answer the first stage of queries, those with equal options together."""
        if not tickets:
            return
        now = time.monotonic()
        for ticket in tickets:
            self._metrics.waited.observe(now - ticket.came)
        self._metrics.batches.observe(len(tickets))
        groups: dict[Options, list[Ticket]] = {}
        for ticket in self._rewrite(tickets):
            groups.setdefault(ticket.options, []).append(ticket)
        for options, group in groups.items():
            self._begin_group(options, group)

    def _begin_group(self, options: Options, group: list[Ticket]) -> None:
        """Begin queries with equal options; one that is refused does not fail the others."""
        library = self._engine.library(options.preset)
        budget = float("inf") if options.budget is None else options.budget
        until = time.monotonic() + budget
        try:
            refinements = library.begin(
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
                self._begin_group(options, [ticket])
            return
        for stage, seconds in refinements[0].first.seconds.items():
            if stage != "rewrite":  # measured for all groups together
                self._metrics.stages.labels(stage).observe(seconds)
        for ticket, refinement in zip(group, refinements, strict=True):
            work = _Work(ticket, library, refinement, until)
            self._works.append(work)
            if ticket.staged and not work.is_complete:
                self._tell(work)

    def _rewrite(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Rewrite all plain queries, those of one rewriter in one call; return what can go on."""
        rewriters: dict[int, Rewriter] = {}
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

    def _drop_unwanted(self) -> None:
        wanted = [work for work in self._works if work.ticket.is_wanted]
        if dropped := len(self._works) - len(wanted):
            self._drop(dropped)
        self._works = wanted

    def _advance(self) -> None:
        """Search the next videos of all queries in work, those of one preset together."""
        groups: dict[tuple[int, bool], list[_Work]] = {}
        for work in self._works:
            if not work.is_complete:
                limited = work.ticket.options.budget is not None
                groups.setdefault((id(work.library), limited), []).append(work)
        for (_, limited), group in groups.items():
            self._advance_group(group, limited)

    def _advance_group(self, group: Sequence[_Work], limited: bool) -> None:
        begin = time.monotonic()
        try:
            group[0].library.advance([work.refinement for work in group], limited=limited)
        except Exception as error:
            if len(group) > 1:
                for work in group:
                    self._advance_group([work], limited)
                return
            self._works.remove(group[0])
            self._fail(group[0].ticket, error)
            return
        self._metrics.stages.labels("refine").observe(time.monotonic() - begin)
        for work in group:
            if work.ticket.staged and not work.is_complete:
                self._tell(work)

    def _answer(self) -> None:
        """Give the last answers of the queries that are complete."""
        complete = [work for work in self._works if work.is_complete]
        self._works = [work for work in self._works if work not in complete]
        for work in complete:
            self._tell(work, last=True)
        if complete:
            self._pace.finish(len(complete))

    def _tell(self, work: _Work, *, last: bool = False) -> None:
        try:
            result = work.library.answer(work.refinement)
        except Exception as error:
            if not last:  # the last answer fails so too
                return
            self._fail(work.ticket, error)
            return
        if last:
            self._count(-1)
        work.ticket.answer(result, last)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, GranAlignError):
            _log.error("a search failed: %s: %s", type(error).__name__, error, exc_info=error)
        self._count(-1)
        ticket.answer(error, True)


class _Pace:
    """How long a query takes while others wait: a mean in which the last ones count most."""

    def __init__(self) -> None:
        self.seconds = 0.1
        self._since = 0.0

    def begin(self, *, idle: bool) -> None:
        """Note that there is work again."""
        if idle:
            self._since = time.monotonic()

    def finish(self, count: int) -> None:
        """Note that some queries were answered."""
        now = time.monotonic()
        self.seconds += 0.2 * ((now - self._since) / count - self.seconds)
        self._since = now
