"""The thread that searches: what queries share, and that none harms another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from helpers.fakes import BagOfWords
from helpers.libraries import write_index

from granalign_fast.errors import GranAlignError
from granalign_fast.library import Library, LibraryResult
from granalign_fast.search.retriever import Retriever
from granalign_fast.server.batcher import Batcher, Options, QueueFull, Ticket
from granalign_fast.server.metrics import Metrics
from granalign_fast.server.settings import Limits, Settings
from granalign_fast.types import Rewrites

OPTIONS = Options("tuned", 3, 4)


class Rewriter:
    """Notes its calls; a gate holds it, as a slow model does."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        self.calls.append(list(queries))
        self.entered.set()
        assert self.gate.wait(20)
        if "a bad one" in queries:
            raise GranAlignError("query: got a bad one")
        if "a bug" in queries:
            raise ZeroDivisionError
        return [Rewrites(query, (query,)) for query in queries]


class Engine:
    """An engine over a library of words."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.settings = Settings(library=folder, limits=limits)
        self.rewriter = Rewriter()
        retriever = Retriever(BagOfWords(), "tuned", rewriter=self.rewriter)
        self.libraries = {name: Library.open(folder, retriever) for name in ("tuned", "single")}
        self.searches: list[int] = []
        search_many = retriever.search_many

        def counted(requests: Sequence[Any], **options: Any) -> Any:
            self.searches.append(len(requests))
            return search_many(requests, **options)

        retriever.search_many = counted  # type: ignore[method-assign]

    def library(self, preset: str) -> Library:
        return self.libraries[preset]

    def take_catalogue(self) -> None:
        pass


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    for number in range(6):
        write_index(folder / f"v{number}", 40, number)
    return folder


@pytest.fixture
def engine(words: Path) -> Engine:
    return Engine(words, Limits(batch=8, queue=12, batch_delay=0.2))


@pytest.fixture
def batcher(engine: Engine) -> Iterator[Batcher]:
    made = Batcher(engine, Metrics())  # type: ignore[arg-type]
    made.start()
    yield made
    engine.rewriter.gate.set()
    made.stop()


def ticket(
    query: str | Rewrites, options: Options = OPTIONS, **more: Any
) -> tuple[Ticket, Future[Any]]:
    """Return a ticket, and what becomes of it: the last answer, with those before."""
    future: Future[Any] = Future()
    before: list[LibraryResult] = []

    def answer(result: LibraryResult | Exception, last: bool) -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
        elif last:
            future.set_result((before, result))
        else:
            before.append(result)

    return Ticket(query, options, answer, **more), future


def held_up(
    batcher: Batcher, engine: Engine, count: int
) -> tuple[Future[Any], list[tuple[Ticket, Future[Any]]]]:
    """Let a query be at work until the rewriter's gate opens, and others wait behind it.

    Returns:
        What becomes of the first, and the tickets of the others.
    """
    engine.rewriter.gate.clear()
    held, first = ticket("a red car")
    batcher.submit([held])
    assert engine.rewriter.entered.wait(20)
    waiting = [ticket("the dog runs") for _ in range(count)]
    batcher.submit([one for one, _ in waiting])
    return first, waiting


def test_queries_that_come_together_share_their_batches(engine: Engine, batcher: Batcher) -> None:
    queries = ["a red car", "the dog runs", "a red car", "a man sits"]
    pairs = [ticket(query) for query in queries]
    batcher.submit([pair[0] for pair in pairs[:2]])
    batcher.submit([pair[0] for pair in pairs[2:]])
    results = [future.result(20)[1] for _, future in pairs]
    assert engine.rewriter.calls == [["a red car", "the dog runs", "a man sits"]]
    assert engine.searches == [4 * OPTIONS.refine]
    alone = engine.library("tuned")
    for query, result in zip(queries, results, strict=True):
        expected = alone.search(query, top=3, refine=4)
        assert result.moments == expected.moments
        assert [hit.video.vid for hit in result.videos] == [
            hit.video.vid for hit in expected.videos
        ]


def test_options_are_kept_apart(batcher: Batcher, engine: Engine) -> None:
    one, first = ticket("a red car", replace(OPTIONS, videos=("v1",)))
    two, second = ticket("a red car", replace(OPTIONS, top=1, refine=0))
    three, third = ticket("a red car", replace(OPTIONS, preset="single"))
    batcher.submit([one, two, three])
    assert {moment.vid for moment in first.result(20)[1].moments} == {"v1"}
    unrefined = second.result(20)[1]
    assert len(unrefined.moments) == 1 and unrefined.complete
    assert not unrefined.moments[0].refined
    assert third.result(20)[1].complete
    assert len(engine.rewriter.calls) == 1


def test_a_query_that_fails_fails_alone(batcher: Batcher) -> None:
    good, answer = ticket(Rewrites("a red car", ("a car",)))
    bad, error = ticket("a bad one")
    batcher.submit([good, bad])
    assert answer.result(20)[1].moments
    with pytest.raises(GranAlignError, match="a bad one"):
        error.result(20)
    wrong, refused = ticket("a dog", replace(OPTIONS, after="soon"))
    fine, answer = ticket("a dog")
    batcher.submit([wrong, fine])
    with pytest.raises(GranAlignError, match="after: got 'soon'"):
        refused.result(20)
    assert answer.result(20)[1].moments
    bug, error = ticket("a bug")
    batcher.submit([bug])
    with pytest.raises(ZeroDivisionError):
        error.result(20)
    last, answer = ticket("a dog")
    batcher.submit([last])
    assert answer.result(20)[1].moments


def test_answers_in_stages(batcher: Batcher, engine: Engine) -> None:
    limited, answer = ticket("a red car", replace(OPTIONS, refine=6, budget=60.0), staged=True)
    batcher.submit([limited])
    before, last = answer.result(20)
    assert [result.complete for result in before] == [False, False] and last.complete
    assert [sum(hit.result is not None for hit in result.videos) for result in before] == [0, 5]
    assert last.moments == engine.library("tuned").search("a red car", top=3, refine=6).moments
    none, answer = ticket("a red car", replace(OPTIONS, budget=0.0))
    batcher.submit([none])
    before, last = answer.result(20)
    assert before == [] and not last.complete and last.moments


def test_the_queue_is_bounded_and_what_nobody_wants_is_dropped(
    batcher: Batcher, engine: Engine
) -> None:
    first, waiting = held_up(batcher, engine, 19)  # beside it, as many as a batch and the queue
    with pytest.raises(QueueFull) as full:
        batcher.submit([ticket("one more")[0]])
    assert full.value.seconds >= 1 and full.value.reason.startswith(
        "got 20 queries in work or waiting"
    )
    with pytest.raises(QueueFull):
        batcher.check_room()
    assert batcher.waiting == 19
    for one, _ in waiting[:5]:
        one.cancelled = True
    waiting[5][0].deadline = time.monotonic()
    engine.rewriter.gate.set()
    first.result(20)
    for _, future in waiting[6:]:
        future.result(20)
    assert not any(future.done() for _, future in waiting[:6])
    assert batcher.waiting == 0 == batcher._unanswered


def test_a_client_that_has_its_answer_can_ask_again(batcher: Batcher, engine: Engine) -> None:
    """As many clients as a batch and the queue, each with one query after another."""
    again: SimpleQueue[Future[Any] | QueueFull] = SimpleQueue()

    def ask(_: Future[Any]) -> None:
        made, answered = ticket("a dog")
        try:
            batcher.submit([made])
        except QueueFull as full:
            again.put(full)
        else:
            again.put(answered)

    first, waiting = held_up(batcher, engine, 19)
    for future in (first, *(future for _, future in waiting)):
        future.add_done_callback(ask)
    engine.rewriter.gate.set()
    for _ in range(20):
        asked = again.get(timeout=20)
        assert isinstance(asked, Future), "a client was refused"
        asked.result(20)


def test_a_query_that_is_cancelled_in_work_is_dropped(batcher: Batcher, engine: Engine) -> None:
    options = replace(OPTIONS, refine=6, budget=60.0)
    made, future = ticket("a red car", options, staged=True)
    answer = made.answer

    def cancel(result: LibraryResult | Exception, last: bool) -> None:
        answer(result, last)
        made.cancelled = True

    made.answer = cancel
    batcher.submit([made])
    other, done = ticket("a dog")
    batcher.submit([other])
    done.result(20)
    after, done = ticket("a dog")
    batcher.submit([after])
    done.result(20)
    assert not future.done()


def test_a_query_that_would_wait_longer_than_it_may_is_refused(
    batcher: Batcher, engine: Engine
) -> None:
    """The time of the queries before it is known from those that were answered."""
    first, before = held_up(batcher, engine, 5)
    batcher.check_room()
    batcher._pace.seconds = 2.0
    with pytest.raises(QueueFull) as full:
        batcher.submit([ticket("a dog", deadline=time.monotonic() + 8)[0]])
    assert 9 < full.value.seconds < 13
    assert "got earlier queries that take 1" in full.value.reason  # and not how many wait
    patient, last = ticket("a dog", deadline=time.monotonic() + 600)
    batcher.submit([patient])
    engine.rewriter.gate.set()
    for future in (first, last, *(future for _, future in before)):
        future.result(20)
