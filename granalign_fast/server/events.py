"""Server-sent events: how answers that come in stages, and the progress of jobs, are sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

_QUIET_SECONDS = 15.0
"""After so long without an event a comment is sent, so that no proxy ends the connection."""

Event = tuple[str, Any]
"""The name of an event, and its data for JSON."""

SCHEMA = {
    "description": "Server-sent events; see the documentation of the routes.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def event_bytes(name: str, data: Any) -> bytes:
    r"""Return an event in the form of the protocol.

    >>> event_bytes("first", {"moments": []})
    b'event: first\ndata: {"moments": []}\n\n'
    """
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def event_stream(events: AsyncIterator[Event | None]) -> StreamingResponse:
    """Return a response that sends events as they come; None sends a comment."""

    async def frames() -> AsyncIterator[bytes]:
        yield b": begin\n\n"
        async for event in events:
            yield b": wait\n\n" if event is None else event_bytes(*event)

    return StreamingResponse(
        frames(), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


async def queued_events(
    queue: asyncio.Queue[Event | None], deadline: float = float("inf")
) -> AsyncIterator[Event | None]:
    """Yield the events of a queue until a None is in it; None for each quiet while.

    Args:
        queue: of the events.
        deadline: of `time.monotonic`.

    Raises:
        TimeoutError: the deadline has passed.
    """
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            event = await asyncio.wait_for(queue.get(), min(left, _QUIET_SECONDS))
        except TimeoutError:
            yield None
            continue
        if event is None:
            return
        yield event
