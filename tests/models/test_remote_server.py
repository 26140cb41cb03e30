"""Requests to servers that fail in every way, over real connections."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.model_server import ModelServer, Reply, chat_reply, in_turn, until

from granalign_fast import GranAlignError
from granalign_fast.models.remote import circuit
from granalign_fast.models.remote import server as transport
from granalign_fast.models.remote.address import Address
from granalign_fast.models.remote.circuit import Circuit
from granalign_fast.models.remote.server import RemoteError, Server

KEY = "sk-secret-0123456789"
GOOD = Reply.of({"ok": 1})


def client(running: ModelServer, **options: Any) -> Server:
    return Server(Address.parse("vlm", running.url), **options)


def ask(running: ModelServer, count: int = 1, **options: Any) -> list[Any]:
    return client(running, **options).post_many(
        "/chat/completions", [{"n": n} for n in range(count)]
    )


@pytest.mark.parametrize(
    "fault",
    [
        Reply(b"busy", 429),
        Reply(b"oops", 500),
        Reply(b"", 502),
        Reply(b"loading", 503),
        Reply(b'{"ok": 1}', cut=3),
        Reply(b"", cut=0, headers={"Content-Type": "application/json"}),
        Reply(b'{"ok": '),
        Reply(b"<html>starting</html>"),
    ],
    ids=["429", "500", "502", "503", "cut", "empty", "bad-json", "page"],
)
def test_a_fault_that_passes_is_not_noticed(model_server: ModelServer, fault: Reply) -> None:
    model_server.answer = in_turn(fault, fault, GOOD)
    assert ask(model_server) == [{"ok": 1}]
    assert len(model_server.posts) == 3


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(b"oops", 500), "got 500 (oops), in 5 attempts; see the server's own log"),
        (Reply(b'{"ok": 1}', cut=3), "broke the connection off"),
        (Reply(b"<p>"), "got a reply that is not JSON (<p>), in 5 attempts; check that --vlm-url"),
        (Reply(b"[" * 100_000), "not JSON"),
        (Reply(b"x" * (transport.MOST_BYTES + 1)), "more than 16 MiB"),
        (
            Reply(gzip.compress(b" " * 10_000_000), headers={"Content-Encoding": "gzip"}),
            "compressed",
        ),
        (Reply(b"", 401), "got 401; set GRANALIGN_VLM_API_KEY to the server's key"),
        (Reply(b"", 404), "got 404; check --vlm-url, which mostly ends in /v1, and --vlm-model"),
        (
            Reply.of({"error": {"message": "too\nlong\x1b[2J"}}, status=400),
            "got 400 (too long [2J)",
        ),
        (Reply.of({"error": "no", "error_type": "x"}, status=413), "got 413 (no)"),
        (Reply.of({"message": "no", "code": 424}, status=424), "got 424 (no)"),
        (Reply.of({"detail": [1]}, status=422), "got 422"),
        (Reply(b"<html>nginx</html>", 405), "got 405; check"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_fault_that_stays_is_one_line(
    model_server: ModelServer, reply: Reply, words: str
) -> None:
    model_server.answer = in_turn(reply)
    with pytest.raises(GranAlignError) as error:
        ask(model_server)
    text = str(error.value)
    assert words in text and text.startswith(f"{model_server.url}/v1: ")
    assert text.isprintable() and len(text) < 500 and error.value.__suppress_context__
    permanent = reply.status in (400, 401, 404, 405, 413, 422, 424) or "MiB" in text
    assert len(model_server.posts) == (1 if permanent else transport.ATTEMPTS)


def test_nobody_listens(model_server: ModelServer) -> None:
    address = Address.parse("llm", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"127.0.0.1:9/v1: cannot be reached \(.*, in 5 attempts"):
        Server(address).get("/models")


def test_a_connection_that_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that drops what is sent to it: its queue of connections is full."""
    monkeypatch.setattr(transport, "_CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.01)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        place = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(place)
        server = Server(Address.parse("llm", f"http://127.0.0.1:{place[1]}"))
        with pytest.raises(RemoteError, match="cannot be reached"):
            server.get("/models")
        for one in waiting:
            one.close()


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(model_server: ModelServer, form: str) -> None:
    later = datetime.now(UTC) + timedelta(seconds=2)
    text = "1" if form == "seconds" else format_datetime(later, usegmt=True)
    model_server.answer = in_turn(Reply(b"", 429, headers={"Retry-After": text}), GOOD)
    begin = time.monotonic()
    assert ask(model_server) == [{"ok": 1}]
    assert time.monotonic() - begin > 0.9


@pytest.mark.parametrize("text", ["86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_tomorrow_is_said(model_server: ModelServer, text: str) -> None:
    model_server.answer = in_turn(Reply(b"", 429, headers={"Retry-After": text}))
    with pytest.raises(RemoteError, match="to come back in 86400 s; ask fewer at a time"):
        ask(model_server)
    assert len(model_server.posts) == 1


@pytest.mark.parametrize("reply", [Reply(b"{}", wait=30), Reply(b"{    }" * 99, drip=0.05)])
def test_the_whole_request_has_a_time(model_server: ModelServer, reply: Reply) -> None:
    """A server that sends a byte now and then would outlast a time limit for each read."""
    model_server.answer = in_turn(reply)
    begin = time.monotonic()
    with pytest.raises(RemoteError, match=r"got no complete answer in 0.4 s"):
        ask(model_server, timeout=0.4)
    assert time.monotonic() - begin < 3


def test_requests_run_at_once_up_to_the_bound(model_server: ModelServer) -> None:
    model_server.answer = lambda request: Reply.of(request.body["n"], wait=0.02)
    assert ask(model_server, 30, requests=4) == list(range(30))
    assert 2 <= model_server.most_at_once <= 4
    # The bound is that of the server, whoever calls.
    server = client(model_server, requests=3)
    model_server.most_at_once = 0
    threads = [
        threading.Thread(target=server.post_many, args=("/x", [{"n": 1}] * 5)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 2 <= model_server.most_at_once <= 3


def test_the_first_failure_breaks_the_others_off(model_server: ModelServer) -> None:
    def answer(request: Any) -> Reply:
        return Reply(b"", 400) if request.body["n"] == 2 else Reply(b"{}", wait=30)

    model_server.answer = answer
    begin = time.monotonic()
    with pytest.raises(RemoteError, match="got 400"):
        ask(model_server, 6)
    assert time.monotonic() - begin < 5


def test_ctrl_c_ends_requests_at_once(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception that Ctrl-C raises in the calling thread, while a reply is awaited."""
    import concurrent.futures

    model_server.answer = in_turn(Reply(b"{}", wait=30))
    running = client(model_server)
    wait = concurrent.futures.Future.result

    def interrupted(future: Any, timeout: float | None = None) -> Any:
        assert until(lambda: len(model_server.posts) == 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(concurrent.futures.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.post_many("/x", [{}, {}])
    monkeypatch.setattr(concurrent.futures.Future, "result", wait)
    # The slots are free again, so a request passes.
    model_server.answer = in_turn(GOOD)
    begin = time.monotonic()
    assert running.post_many("/x", [{}] * 8) == [{"ok": 1}] * 8
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "place", ["http://evil.example/v1/chat", "/v1/other", "//x:1/\x1b[2J", "http://[x"]
)
def test_redirects_are_not_followed(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("GRANALIGN_VLM_API_KEY", KEY)
    model_server.answer = in_turn(Reply(b"", 307, headers={"Location": place}))
    with pytest.raises(RemoteError, match=r"got a redirect to .*, which is not followed") as error:
        ask(model_server)
    assert len(model_server.posts) == 1 and str(error.value).isprintable()


def test_the_key_is_sent_and_never_shown(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRANALIGN_VLM_API_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    model_server.answer = in_turn(GOOD)
    server = client(model_server)
    assert server.post_many("/x", [{}]) == [{"ok": 1}]
    assert model_server.posts[0].headers["authorization"] == f"Bearer {KEY}"
    # A server that repeats the key in its error, for good and in passing.
    for status in (401, 500):
        model_server.answer = in_turn(Reply(f"key {KEY} is wrong".encode(), status))
        with pytest.raises(RemoteError, match=r"key \*\*\* is wrong") as error:
            server.post_many("/x", [{}])
        assert KEY not in str(error.value)
    assert caplog.records and KEY not in caplog.text
    assert not any(KEY in str(vars(record)) for record in caplog.records)
    assert KEY not in repr(server.address) and KEY not in repr(server)


def test_a_key_over_an_open_network_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRANALIGN_LLM_API_KEY", KEY)
    for url in ("https://gpu/v1", "http://localhost:1", "http://[::1]:1", "http://127.0.0.2"):
        Server(Address.parse("llm", url))
    assert not caplog.records
    Server(Address.parse("llm", "http://gpu:8000"))
    assert "goes there unencrypted" in caplog.text and KEY not in caplog.text


def test_the_circuit_opens_and_closes(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "PAUSE", 0.5)
    server = client(model_server)

    def fails() -> str:
        with pytest.raises(GranAlignError) as error:
            server.post_many("/x", [{}])
        return str(error.value)

    model_server.answer = in_turn(Reply(b"", 400))  # the request's own fault does not count
    for _ in range(4):
        assert "got 400" in fails()
    model_server.answer = in_turn(Reply(b"down", 503))
    for _ in range(3):
        assert "got 503 (down), in 5 attempts" in fails()
    sent = len(model_server.posts)
    assert "3 requests in a row failed (got 503 (down), in 5 attempts), so none is sent" in fails()
    assert len(model_server.posts) == sent
    # After the pause one request is sent; it fails, and the pause begins again.
    time.sleep(0.55)
    assert "got 503 (down), in 5 attempts" in fails() and "so none is sent" in fails()
    time.sleep(0.55)
    model_server.answer = in_turn(GOOD)
    assert server.post_many("/x", [{}] * 3) == [{"ok": 1}] * 3


def test_only_one_request_tries_after_the_pause(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "PAUSE", 0.2)
    server = client(model_server)
    model_server.answer = in_turn(Reply(b"", 503))
    for _ in range(3):
        with pytest.raises(RemoteError):
            server.post_many("/x", [{}])
    time.sleep(0.25)
    sent = len(model_server.posts)
    with pytest.raises(GranAlignError):
        server.post_many("/x", [{}] * 8)
    assert len(model_server.posts) == sent + transport.ATTEMPTS


def test_the_pause_is_counted_down() -> None:
    now = [0.0]
    breaker = Circuit("http://x", lambda: now[0])
    for count in range(3):
        assert breaker.is_closed
        breaker.check()
        breaker.failed(f"down {count}")
    now[0] = circuit.PAUSE - 2
    with pytest.raises(GranAlignError, match=r"\(down 2\), so none is sent for 2 s"):
        breaker.check()
    now[0] = circuit.PAUSE
    breaker.check()
    assert not breaker.is_closed
    breaker.succeeded()
    assert breaker.is_closed


def test_it_works_inside_an_event_loop_and_in_a_fork(model_server: ModelServer) -> None:
    import asyncio

    server = client(model_server)
    model_server.answer = in_turn(GOOD)

    async def cell() -> Any:
        return server.post_many("/x", [{}])

    assert asyncio.run(cell()) == [{"ok": 1}]
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, json.dumps(server.post_many("/x", [{}])).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert json.loads(pipe.read()) == [{"ok": 1}]
    os.waitpid(child, 0)


def test_connections_are_reused_and_closed(model_server: ModelServer) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    model_server.answer = in_turn(GOOD)
    server = client(model_server, requests=4)
    server.post_many("/x", [{}] * 4)
    kept = descriptors()
    for _ in range(5):
        server.post_many("/x", [{}] * 40)
    assert descriptors() <= kept + 4
    del server
    assert until(lambda: descriptors() < kept)


REFUSED: list[tuple[str, Callable[[], object], str]] = [
    ("requests", lambda: Server(Address.parse("llm", "http://x"), requests=0), "--remote-requests"),
    ("timeout", lambda: Server(Address.parse("llm", "http://x"), timeout=0), "--remote-timeout"),
    ("nan", lambda: Server(Address.parse("llm", "http://x"), timeout=float("nan")), "-timeout"),
]


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in REFUSED])
def test_numbers_out_of_range_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(GranAlignError, match=words):
        make()


def test_chat_replies_are_what_the_helper_says() -> None:
    """The test of the test: a reply of the script has OpenAI's form."""
    reply = json.loads(chat_reply("x", odds={"Yes": -0.1}).body)
    assert reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["token"] == "Yes"
