"""Running the application: sockets, slow clients, signals, worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors.multiprocess import Multiprocess

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.allocator import use_one_arena

from .app import FAILURE, SETTINGS, create_app, create_service
from .logs import configure_logs
from .settings import Settings

_HEADER_BYTES = 32 << 10
"""Most bytes of a request's headers."""
_BACKLOG = 2048
"""Connections that wait to be accepted."""
_WORKER_SECONDS = 120
"""Seconds after which a worker process that does not answer is replaced: it may load models."""
_HEADER_SECONDS = 10.0
"""Seconds in which a client must have sent them."""
_STALL_SECONDS = 120.0
"""Seconds in which a client must take the next 64 KiB of an answer; players ask again by ranges."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever: for headers, or until an answer is read.

    A new connection beyond the limit takes the place of one that waits for a request. So clients
    that open many connections and send nothing keep nobody out.
    """

    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _since = 0.0
    """When it was made, or its last answer was sent, on the clock of the event loop."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._make_room()
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for another request."""
        self._since = self.loop.time()
        super().on_response_complete()

    def _make_room(self) -> None:
        """Close the other connection that waits longest for a request, if there are too many."""
        limit = self.limit_concurrency
        if limit is None or len(self.connections) < limit:
            return
        # Those that are being closed still count for uvicorn, but not for long.
        others = [one for one in self.connections if isinstance(one, PatientProtocol)]
        others = [one for one in others if one is not self and not one.transport.is_closing()]
        waiting = [one for one in others if one.conn.their_state is h11.IDLE]
        if waiting and len(others) + 1 >= limit:
            min(waiting, key=lambda one: one._since).transport.close()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the waits."""
        self._stop_waiting()
        self._stop_stalling()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a client that does not read."""
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(_STALL_SECONDS, self._abort)

    def resume_writing(self) -> None:
        """Go on, for the client has read."""
        self._stop_stalling()
        super().resume_writing()

    def _stop_stalling(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _abort(self) -> None:
        self._stall = None
        self.transport.abort()  # not `close`, which waits until all is read

    def _watch(self) -> None:
        """Wait if a request has begun whose headers are not complete."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def serve(settings: Settings, host: str, port: int) -> int:
    """Serve until a signal ends it; return the exit code.

    Args:
        settings: of the service.
        host: to listen on.
        port: to listen on; 0 for one that is free.

    Raises:
        GranAlignError: the address cannot be listened on, or the library cannot be used.
    """
    configure_logs(as_json=settings.log_json)
    use_one_arena()
    service = create_service(settings)
    listener = _listen(host, port)
    _announce(listener)
    if settings.workers > 1:
        return _serve_by_workers(settings, listener)
    app = create_app(service, lambda reason: os.kill(os.getpid(), signal.SIGTERM))
    QuietServer(uvicorn.Config(app, **_options(settings))).run(sockets=[listener])
    return 0 if service.failure is None else 2


class QuietServer(uvicorn.Server):
    """A server that ends with an exit code, where uvicorn raises the signal that ended it again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def _serve_by_workers(settings: Settings, listener: socket.socket) -> int:
    """Serve by several processes, which share the socket; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="granalign-serve-") as name:
        failure = Path(name) / "failure"
        metrics = Path(name) / "metrics"
        metrics.mkdir()
        os.environ |= {
            SETTINGS: settings.to_json(),
            FAILURE: str(failure),
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        }
        config = uvicorn.Config(
            "granalign_fast.server.app:app_of_worker",
            factory=True,
            workers=settings.workers,
            timeout_worker_healthcheck=_WORKER_SECONDS,
            **_options(settings),
        )
        Multiprocess(config, sockets=[listener]).run()
        return 2 if failure.exists() else 0


def _options(settings: Settings) -> dict[str, Any]:
    limits = settings.limits
    return {
        "http": PatientProtocol,
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "limit_concurrency": limits.connections,
        "h11_max_incomplete_event_size": _HEADER_BYTES,
        "timeout_graceful_shutdown": round(limits.drain_seconds),
    }


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        GranAlignError: the address is not this machine's, or is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay only where the protocol is named. Otherwise the body of an answer
    # waits until the client has acknowledged the headers, which takes Linux 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # from now on clients wait, where they would be refused
    except OSError as error:
        listener.close()
        raise GranAlignError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); name "
            f"another --port, or an address of this machine"
        ) from None
    listener.set_inheritable(True)
    return listener


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    sys.stderr.write(f"granalign: serving at http://{shown}:{port} (Ctrl-C ends it)\n")
    sys.stderr.flush()
