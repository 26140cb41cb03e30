"""Clients that send or read nothing, or next to nothing, and hold a connection so."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from granalign_fast.server import serving
from granalign_fast.server.gate import Gate
from granalign_fast.server.metrics import Metrics
from granalign_fast.server.settings import Limits, Settings

WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_clients_that_say_nothing_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client has some seconds for its headers, also for those of its second request."""
    monkeypatch.setattr(serving, "_HEADER_SECONDS", 0.5)
    clients = {}
    with _serving(_answer_alive) as address:
        for opening in (b"", b"GET / HT", WHOLE[:-2] + b"X-A: ", WHOLE + b"GET /"):
            clients[opening] = socket.create_connection(address, timeout=20)
            clients[opening].sendall(opening)
        for opening, client in clients.items():
            got = b""
            while part := client.recv(65536):
                got += part
            assert (b"alive" in got) == opening.startswith(WHOLE)
            client.close()


@pytest.mark.parametrize("opening", [b"", b"GET / HT", WHOLE, WHOLE + b"GET /"])
def test_connections_that_wait_make_room(opening: bytes) -> None:
    """Otherwise one client that opens many would keep everybody out until they are closed."""
    with _serving(_answer_alive, limit_concurrency=8) as address, ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(address, timeout=20))

        idle = []
        for _ in range(12):
            idle.append(connect())
            idle[-1].sendall(opening)
            if opening.startswith(WHOLE):
                assert b"200 OK" in _answer(idle[-1])
        client = connect()
        client.sendall(WHOLE)
        assert b"200 OK" in _answer(client)
        # It is among the newest: further ones take the places of others.
        idle += [connect() for _ in range(4)]
        client.sendall(WHOLE)
        assert b"200 OK" in _answer(client)
        # The oldest was closed, the newest was not.
        with suppress(ConnectionResetError):
            assert idle[0].recv(65536) == b""
        idle[-1].sendall(WHOLE)
        assert b"200 OK" in _answer(idle[-1])


def test_requests_at_work_make_no_room() -> None:
    begun, release = threading.Barrier(4), threading.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(begun.wait, 20)
        await asyncio.to_thread(release.wait, 20)
        await _answer_alive(scope, receive, send)

    with _serving(wait, limit_concurrency=5) as address, ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(address, timeout=20))

        busy = [connect() for _ in range(3)]
        for one in busy:
            one.sendall(WHOLE)
        begun.wait(20)
        idle = [connect() for _ in range(6)]
        assert idle[0].recv(65536) == b""  # only those that wait for a request are closed
        release.set()
        assert all(b"200 OK" in _answer(one) for one in busy)


def _answer(client: socket.socket) -> bytes:
    """Read an answer up to its last chunk, or to the end of the connection."""
    got = b""
    while not got.endswith(b"\r\n0\r\n\r\n") and (part := client.recv(65536)):
        got += part
    return got


@contextmanager
def _serving(app: ASGIApp, **options: Any) -> Iterator[tuple[str, int]]:
    """Serve an application in this process; yields the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=serving.PatientProtocol, ws="none", lifespan="off", log_config=None, **options
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes nothing of its answer is cut off; one that takes it slowly is not."""
    monkeypatch.setattr(serving, "_STALL_SECONDS", 0.5)
    with _serving(_answer_much) as address:
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with socket.create_connection(address, timeout=20) as idle:
            idle.sendall(request)
            time.sleep(1.5)
            got = 0
            with suppress(ConnectionResetError):
                while part := idle.recv(1 << 20):
                    got += len(part)
            assert 0 < got < _MUCH // 2
        with socket.create_connection(address, timeout=20) as slow:
            slow.sendall(request)
            got = 0
            while part := slow.recv(1 << 21):
                got += len(part)
                time.sleep(0.02)
            assert got > _MUCH


_MUCH = 64 << 20


async def _answer_much(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64):
        await send({"type": "http.response.body", "body": bytes(_MUCH // 64), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(("pause", "parts"), [(0.0, 1), (0.05, 60)])
def test_a_body_that_comes_too_slowly(tmp_path: Path, pause: float, parts: int) -> None:
    """A client has some seconds for the next part, and for all of it by its size."""
    limits = Limits(body_seconds=0.3, body_rate=10)
    gate = Gate(
        _read_all, Settings(library=tmp_path, limits=limits), Metrics(), None, _never, _admit
    )
    sent: list[Message] = []

    async def receive() -> Message:
        nonlocal parts
        parts -= 1
        await asyncio.sleep(pause if parts >= 0 else 60)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    begin = time.monotonic()
    asyncio.run(gate(scope, receive, send))
    assert sent[0]["status"] == 408 and time.monotonic() - begin < 5


def test_a_client_that_drips(tmp_path: Path) -> None:
    """A byte now and then does not hold a place: the body must arrive at some rate on the whole."""
    limits = Limits(body_seconds=0.3, body_rate=1000)
    gate = Gate(
        _read_all, Settings(library=tmp_path, limits=limits), Metrics(), None, _never, _admit
    )
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(asyncio.wait_for(gate(scope, receive, send), 5))
    assert sent[0]["status"] == 408


def test_time_that_the_service_takes_is_not_the_clients(tmp_path: Path) -> None:
    """A disk that stalls between two parts of an upload does not end it."""

    async def read_slowly(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.5)
        await _read_all(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    limits = Limits(body_seconds=0.3, body_rate=1000)
    gate = Gate(
        read_slowly, Settings(library=tmp_path, limits=limits), Metrics(), None, _never, _admit
    )
    parts = [True, True, False]
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"a", "more_body": parts.pop(0)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(gate(scope, receive, send))
    assert sent[0]["status"] == 200


async def _read_all(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        while (await receive())["more_body"]:
            pass
    except HTTPException as error:
        await send({"type": "http.response.start", "status": error.status_code, "headers": []})


def _never(method: str, path: str) -> bool:
    return False


def _admit(method: str, path: str) -> None:
    """Let every request in."""


async def _answer_alive(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"alive"})


def test_answers_are_sent_without_delay() -> None:
    """With Nagle's algorithm a body would wait for the client to acknowledge the headers."""
    delays: list[int] = []

    class Watched(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted = transport.get_extra_info("socket")
            delays.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async def connect() -> None:
        listener = serving._listen("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(Watched, sock=listener)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        while not delays:
            await asyncio.sleep(0.001)
        writer.close()
        server.close()

    asyncio.run(connect())
    assert delays == [1]
