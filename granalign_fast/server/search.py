"""The route that searches: all videos of the library, by one query or several."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from granalign_fast.errors import GranAlignError
from granalign_fast.library import LibraryResult
from granalign_fast.types import Rewrites

from .batcher import Options, QueueFull, Ticket
from .events import Event, event_stream, queued_events
from .problems import Problem
from .queries import options_of, queries_of
from .records import search_answer
from .schemas import PROBLEM, SearchAnswer, SearchRequest
from .service import Current, Service

router = APIRouter(tags=["search"])
PATH = "/v1/search"
"""The path of searches."""


@router.post(
    PATH,
    summary="Find the moments that fit a query",
    response_model=None,
    responses={
        200: {
            "model": SearchAnswer,
            "description": "The answers. With `stream`, events: `first`, `refined`, `done`.",
            "content": {"text/event-stream": {}},
        },
        422: PROBLEM,
        429: PROBLEM,
        503: PROBLEM,
        504: PROBLEM,
    },
)
async def search(body: SearchRequest, request: Request, service: Current) -> Response:
    """Search all videos, or those that the filters choose.

    Queries of requests that come at the same time are searched together. With `stream`, the events
    `first` and `refined` each have a whole answer, as `done` has, which is the last event; `error`
    ends a search that failed.
    """
    service.check_ready()
    queries = queries_of(body, service.engine)
    options = options_of(body, service.engine)
    timeout = min(body.timeout or service.settings.limits.timeout, service.settings.limits.timeout)
    if body.stream:
        return _stream(body, queries[0], options, timeout, service)
    results = await _search(queries, options, timeout, request, service)
    answer = search_answer(service.engine, options.preset, results, saliency=body.saliency)
    # pydantic's writer takes a tenth of the time of Python's: an answer lists a hundred videos.
    return Response(to_json(answer, inf_nan_mode="null"), media_type="application/json")


async def _search(
    queries: Sequence[str | Rewrites],
    options: Options,
    timeout: float,
    request: Request,
    service: Service,
) -> list[LibraryResult]:
    """Search queries in common batches, and wait for the answers.

    Raises:
        Problem: too many queries wait, or the time is up.
        GranAlignError: the search was refused.
        ClientDisconnect: the client has gone.
    """
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + timeout
    futures: list[asyncio.Future[LibraryResult]] = [loop.create_future() for _ in queries]
    tickets = []
    for query, future in zip(queries, futures, strict=True):

        def answer(
            result: LibraryResult | Exception,
            last: bool,
            future: asyncio.Future[LibraryResult] = future,
        ) -> None:
            if last:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(_resolve, future, result)

        tickets.append(Ticket(query, options, answer, deadline=deadline))
    _submit(service, tickets)
    everything = asyncio.gather(*futures)
    gone = asyncio.ensure_future(_until_gone(request))
    ends: set[asyncio.Future[Any]] = {everything, gone}
    try:
        await asyncio.wait(ends, timeout=timeout, return_when="FIRST_COMPLETED")
        if everything.done():
            return everything.result()
        if gone.done():
            raise ClientDisconnect
        raise _too_late(timeout)
    finally:
        for ticket in tickets:
            ticket.cancelled = True
        gone.cancel()
        everything.add_done_callback(_ignore)
        everything.cancel()


def _ignore(everything: asyncio.Future[Any]) -> None:
    """Take the error of futures for which nobody waits any more: asyncio would log it."""
    if not everything.cancelled():
        everything.exception()


def _resolve(future: asyncio.Future[LibraryResult], result: LibraryResult | Exception) -> None:
    if future.done():  # nobody waits any more
        return
    if isinstance(result, Exception):
        future.set_exception(_shown(result))
    else:
        future.set_result(result)


def _shown(error: Exception) -> Exception:
    """Return an error as a client may see it."""
    if isinstance(error, GranAlignError | Problem):
        return error
    return Problem("internal", "the search failed; the log of the service says why")


def _submit(service: Service, tickets: list[Ticket]) -> None:
    try:
        service.batcher.submit(tickets)
    except QueueFull as full:
        raise too_many(service, full) from None


def check_room(service: Service) -> None:
    """Refuse a search whose request has not been read.

    Raises:
        Problem: too many queries wait.
    """
    try:
        service.batcher.check_room()
    except QueueFull as full:
        raise too_many(service, full) from None


def too_many(service: Service, full: QueueFull) -> Problem:
    """Return the answer to a search for which there is no room, and count it."""
    service.metrics.refused.labels("too-many").inc()
    return Problem(
        "too-many",
        f"{full.reason}; try again in {full.seconds:.0f} s",
        headers={"Retry-After": str(round(full.seconds))},
    )


def _too_late(timeout: float) -> Problem:
    return Problem(
        "too-late",
        f"got no answer in {timeout:g} s; ask for less (refine, budget), or try again later",
    )


async def _until_gone(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _stream(
    body: SearchRequest,
    query: str | Rewrites,
    options: Options,
    timeout: float,
    service: Service,
) -> Response:
    """Answer by events."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    count = 0

    def put(event: Event | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(events.put_nowait, event)

    def answer(result: LibraryResult | Exception, last: bool) -> None:
        nonlocal count
        if isinstance(result, Exception):
            put(("error", _problem(result).to_record()))
        else:
            name = "first" if count == 0 and not last else "done" if last else "refined"
            data: dict[str, Any] = search_answer(
                service.engine, options.preset, [result], saliency=body.saliency
            )
            put((name, data))
        count += 1
        if last:
            put(None)

    deadline = time.monotonic() + timeout
    ticket = Ticket(query, options, answer, staged=True, deadline=deadline)
    _submit(service, [ticket])

    async def until_done() -> AsyncIterator[Event | None]:
        try:
            async for event in queued_events(events, deadline):
                yield event
        except TimeoutError:
            yield ("error", _too_late(timeout).to_record())
        finally:
            ticket.cancelled = True

    return event_stream(until_done())


def _problem(error: Exception) -> Problem:
    shown = _shown(error)
    return shown if isinstance(shown, Problem) else Problem("invalid", str(shown))
