"""A load of HTTP requests: ``python -m granalign_fast.bench.harness.load`` sends what stdin says.

It is a process of its own, so that it shares no interpreter with the service or with whoever reads
the figures. stdin has a `Plan` as JSON; stdout gets a list of [planned, done, status] of each
request, in seconds since the load began. In an open loop a request is planned before it is known
whether the service keeps up, and its time counts from then: a slow service cannot slow down the
questions that reveal it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from granalign_fast.errors import GranAlignError

CUT, HUNG = 0, -1
"""In the place of a status: the connection was cut, or no answer came in time."""
_PAUSE = 0.05
"""Seconds that a client of a closed loop waits after an answer other than 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A load.

    Attributes:
        host: of the service.
        port: of the service.
        path: of the requests, which are POST.
        token: for the header Authorization; None for none.
        bodies: of the requests, in the order in which they are sent.
        times: an open loop: when each is to be sent, in seconds. Empty for a closed loop.
        clients: a closed loop: so many send one request after another.
        seconds: a closed loop: after which no further request is sent.
        patience: seconds after which a request counts as hung.
    """

    host: str
    port: int
    path: str = "/v1/search"
    token: str | None = None
    bodies: Sequence[str]
    times: Sequence[float] = ()
    clients: int = 1
    seconds: float = 1.0
    patience: float = 120.0


class Sent(NamedTuple):
    """A request that was sent, or could not be."""

    planned: float
    """Seconds since the load began: when it was to be sent."""
    done: float
    """When its answer was whole."""
    status: int
    """The status of HTTP, or `CUT`, or `HUNG`."""

    @property
    def seconds(self) -> float:
        """How long its sender waited, from the planned time on."""
        return self.done - self.planned


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times of a Poisson process, ascending; one at 0 in any case.

    Args:
        rate: arrivals a second, on average.
        seconds: the times are below that.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    times, time_of = [0.0], 0.0
    while (time_of := time_of + float(rng.exponential(1 / rate))) < seconds:
        times.append(time_of)
    return times


def put_load(plan: Plan) -> list[Sent]:
    """Send the requests from a process of their own, and return what became of each.

    Raises:
        GranAlignError: the process failed.
    """
    command = [sys.executable, "-m", "granalign_fast.bench.harness.load"]
    text = json.dumps(asdict(plan)).encode()
    run = subprocess.run(command, input=text, capture_output=True, check=False)
    if run.returncode:
        said = " ".join(run.stderr.decode(errors="replace").split())[-200:]
        raise GranAlignError(f"load: the process that sends requests failed: {said}")
    return [Sent(*one) for one in json.loads(run.stdout)]


class _Connections:
    """Connections that are kept and used again; as many as requests are under way."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        host = f"[{plan.host}]" if ":" in plan.host else plan.host
        token = "" if plan.token is None else f"Authorization: Bearer {plan.token}\r\n"
        self._head = (
            f"POST {plan.path} HTTP/1.1\r\nHost: {host}:{plan.port}\r\n{token}"
            "Content-Type: application/json\r\nContent-Length: "
        )

    async def ask(self, body: str) -> int:
        """Send a request and read its answer; return its status."""
        kept = bool(self._idle)
        try:
            return await asyncio.wait_for(self._ask(body), self._plan.patience)
        except TimeoutError:
            return HUNG
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            # The service closes a connection that was idle for long: that is no failure. An answer
            # that breaks off is one.
            idle = isinstance(error, OSError) or getattr(error, "partial", None) == b""
            return await self.ask(body) if kept and idle else CUT

    async def _ask(self, body: str) -> int:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(self._plan.host, self._plan.port)
        try:
            content = body.encode()
            writer.write(f"{self._head}{len(content)}\r\n\r\n".encode() + content)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            try:
                await reader.readexactly(int(fields["content-length"]))
            except (OSError, asyncio.IncompleteReadError, KeyError):
                raise ValueError("the answer breaks off") from None
        except BaseException:
            writer.close()
            raise
        if fields.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split(" ", 2)[1])

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def _send(plan: Plan) -> list[Sent]:
    """Send all requests of a plan."""
    sent: list[Sent] = []
    connections = _Connections(plan)
    begin = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - begin

    async def one(planned: float, body: str) -> int:
        status = await connections.ask(body)
        sent.append(Sent(planned, now(), status))
        return status

    if plan.times:
        await _open_loop(plan, now, one)
    else:
        await _closed_loop(plan, now, one)
    await connections.close()
    return sent


_One = Callable[[float, str], Awaitable[int]]


async def _open_loop(plan: Plan, now: Callable[[], float], one: _One) -> None:
    """Send each request at its time, whatever became of those before."""
    tasks: set[asyncio.Future[int]] = set()
    for planned, body in zip(plan.times, plan.bodies, strict=True):
        if (rest := planned - now()) > 0:
            await asyncio.sleep(rest)
        task = asyncio.ensure_future(one(planned, body))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def _closed_loop(plan: Plan, now: Callable[[], float], one: _One) -> None:
    """Let each client send its next request when its last one is answered."""
    bodies = iter(plan.bodies)

    async def client() -> None:
        while now() < plan.seconds and (body := next(bodies, None)) is not None:
            if await one(now(), body) != 200:
                await asyncio.sleep(_PAUSE)

    await asyncio.gather(*(client() for _ in range(plan.clients)))


def main() -> None:
    """Read a plan, put the load on, and write what became of each request."""
    fields: dict[str, Any] = json.load(sys.stdin)
    json.dump(asyncio.run(_send(Plan(**fields))), sys.stdout)


if __name__ == "__main__":
    main()
