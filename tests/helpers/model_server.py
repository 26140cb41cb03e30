"""A server of models by script: OpenAI's and TEI's routes, with every fault that a server can have.

It is written with the standard library alone, so it shares no code with the client.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """The reply to a request."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    """Seconds before the reply; it ends early when the server is closed."""
    cut: int | None = None
    """Bytes of the body after which the connection is closed."""
    drip: float = 0.0
    """Seconds between two bytes of the body."""

    @classmethod
    def of(cls, value: Any, **fields: Any) -> Reply:
        return cls(json.dumps(value).encode(), **fields)


@dataclass
class Request:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def text(self) -> str:
        """The last text of the last message."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]


Script = Callable[[Request], Reply]


@dataclass
class ModelServer:
    """A running server.

    Attributes:
        url: base of the routes.
        answer: gives the reply to each POST.
        models: what ``/v1/models`` lists; None: the route is not there.
        info: what TEI's ``/info`` says.
        requests: all requests so far.
        most_at_once: the greatest number of requests that were open at a time.
    """

    url: str
    answer: Script = lambda request: chat_reply("A dog runs.")
    models: list[str] | None = field(default_factory=lambda: ["tiny"])
    info: dict[str, Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    most_at_once: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    def reply_to(self, request: Request) -> Reply:
        if request.method == "POST":
            return self.answer(request)
        if request.path == "/v1/models" and self.models is not None:
            return Reply.of({"object": "list", "data": [{"id": name} for name in self.models]})
        if request.path == "/info" and self.info:
            return Reply.of(self.info)
        return Reply.of({"error": {"message": "no such route"}}, status=404)


def chat_reply(
    text: str | None, *, odds: dict[str, float] | None = None, finish: str = "stop", **fields: Any
) -> Reply:
    """A chat server's reply, with the log probabilities of the first token if there are any."""
    top = [{"token": t, "logprob": p, "bytes": None} for t, p in (odds or {}).items()]
    content = [{"token": "?", "logprob": -1.0, "bytes": None, "top_logprobs": top}]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "logprobs": {"content": content} if odds is not None else None,
    }
    return Reply.of({"object": "chat.completion", "choices": [choice]}, **fields)


def in_turn(*replies: Reply) -> Script:
    """Give each reply once, in order, and the last one to all further requests."""
    lock, left = threading.Lock(), list(replies)

    def answer(_: Request) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


@contextmanager
def serving(answer: Script | None = None) -> Iterator[ModelServer]:
    """Run a server on a free port of this machine until the block ends."""
    lock, open_requests = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def _handle(self) -> None:
            nonlocal open_requests
            length = int(self.headers.get("content-length") or 0)
            content = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = json.loads(content) if content else None
            request = Request(self.command, self.path, headers, body)
            with lock:
                state.requests.append(request)
                open_requests += 1
                state.most_at_once = max(state.most_at_once, open_requests)
            try:
                reply = state.reply_to(request)
                if state.closing.wait(reply.wait) and reply.wait:
                    self.close_connection = True
                    return
            finally:
                with lock:
                    open_requests -= 1
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            try:
                if reply.drip:
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        if state.closing.wait(reply.drip):
                            break
                else:
                    self.wfile.write(reply.body[: reply.cut])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            if reply.cut is not None:
                self.close_connection = True

        def handle(self) -> None:
            with suppress(ConnectionResetError):  # the client has gone, as some tests want it
                super().handle()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = ModelServer(f"http://127.0.0.1:{server.server_port}")
    if answer is not None:
        state.answer = answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for a condition; return whether it came true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
