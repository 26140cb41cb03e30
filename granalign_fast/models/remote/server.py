"""Requests to a server: many at a time, repeated where that helps, each within a time limit."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
import weakref
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.parsing.json_values import parse_json

from .address import Address
from .background_loop import background_loop, run
from .circuit import Circuit

_log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a request is sent at most."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds before the first and before any repetition; the wait doubles each time."""
MOST_BYTES = 1 << 24
"""Bytes of a reply. 32 embeddings of 8,192 numbers in JSON take half of it."""
_CONNECT_SECONDS = 10.0
_TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504, 529))
"""Answers after which the same request may succeed."""
REFUSALS = (400, 422)
"""Answers to a request with a field that the server does not take."""


class RemoteError(GranAlignError):
    """A request failed.

    Attributes:
        status: the HTTP status of the answer; None if there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Failure(Exception):
    """An attempt failed in a way that may not last.

    Attributes:
        reason: in words.
        wait: seconds that the server asks to wait; None if it does not.
        status: as that of `RemoteError`.
    """

    def __init__(self, reason: str, wait: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.status = reason, wait, status


class Server:
    """A server, reached by JSON over HTTP. Threads may share one.

    Redirects are not followed, so the key reaches no other host. Proxies of the environment are
    used, except for this machine.

    Args:
        address: of the server.
        requests: sent at a time, at most.
        timeout: seconds for a request with all its repetitions.

    Raises:
        MissingExtraError: the HTTP client is not installed.
        GranAlignError: a number is out of range.
    """

    def __init__(self, address: Address, *, requests: int = 8, timeout: float = 120.0) -> None:
        if not 1 <= requests <= _MOST_REQUESTS:
            raise GranAlignError(
                f"--remote-requests: got {requests}, expected 1 to {_MOST_REQUESTS}"
            )
        if not 0 < timeout <= _MOST_SECONDS:
            raise GranAlignError(
                f"--remote-timeout: got {timeout}, expected more than 0 and at most "
                f"{_MOST_SECONDS} seconds"
            )
        try:
            import httpx2 as _  # noqa: F401
        except ImportError:
            raise MissingExtraError("a model on a server", "remote") from None
        self.address = address
        self.requests, self.timeout = requests, timeout
        self._connections: _Connections | None = None
        if address.shows_key:
            _log.warning(
                "%s: the key of %s goes there unencrypted; use https, or a tunnel, outside a "
                "network that you trust",
                address.url,
                address.variable,
            )

    def get(self, route: str, *, base: str | None = None) -> Any:
        """Return the JSON that the server has under a route.

        Args:
            route: such as ``/models``.
            base: the URL before it; None for that of the address.

        Raises:
            RemoteError: it cannot be had.
        """
        return run(self._request("GET", (base or self.address.url) + route, None))

    def post_many(self, route: str, bodies: Sequence[Any]) -> list[Any]:
        """Send requests, several at a time, and return the JSON of their answers in order.

        Args:
            route: such as ``/chat/completions``.
            bodies: of the requests, as JSON values.

        Raises:
            RemoteError: one failed; the others are broken off.
        """
        return run(self._post_all(self.address.url + route, bodies))

    async def _post_all(self, url: str, bodies: Sequence[Any]) -> list[Any]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._request("POST", url, body)) for body in bodies]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _request(self, method: str, url: str, body: Any) -> Any:
        """Send a request until it succeeds, fails for good, or its time is over."""
        connections = self._connect()
        async with connections.slots:
            if connections.circuit.is_closed:
                return await self._counted(connections, method, url, body)
            # One request tries whether the server is back; the others wait for what it finds.
            async with connections.trial:
                connections.circuit.check()
                return await self._counted(connections, method, url, body)

    async def _counted(self, connections: _Connections, method: str, url: str, body: Any) -> Any:
        """Send a request, and tell the circuit how it ended."""
        try:
            answer = await self._attempts(connections, method, url, body)
        except _Failure as failure:
            connections.circuit.failed(failure.reason)
            raise RemoteError(
                f"{self.address.url}: {failure.reason}; {self._remedy(failure.status)}",
                failure.status,
            ) from None
        connections.circuit.succeeded()
        return answer

    async def _attempts(self, connections: _Connections, method: str, url: str, body: Any) -> Any:
        """Send a request up to `ATTEMPTS` times.

        Raises:
            _Failure: none of the attempts succeeded.
            RemoteError: the request is refused, so that the next attempt would fail as well.
        """
        content = None if body is None else json.dumps(body).encode()
        until = time.monotonic() + self.timeout
        failure = _Failure(f"got no complete answer in {self.timeout:g} s, expected one")
        for attempt in range(ATTEMPTS):
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    return await self._send(connections, method, url, content)
            except TimeoutError:
                raise failure from None
            except _Failure as error:
                failure = error
            # The wait doubles, and is random so that clients do not come back together.
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)
            wait = max(wait, failure.wait or 0)
            if attempt == ATTEMPTS - 1 or time.monotonic() + wait >= until:
                break
            _log.info("%s: %s; again in %.1f s", self.address.url, failure.reason, wait)
            await asyncio.sleep(wait)
        if failure.wait and failure.wait > self.timeout:
            failure.reason += f", and to come back in {failure.wait:.0f} s"
        else:
            failure.reason += f", in {attempt + 1} attempts"
        raise failure

    async def _send(
        self, connections: _Connections, method: str, url: str, content: bytes | None
    ) -> Any:
        """Send a request once, and return the JSON of its answer."""
        import httpx2 as httpx

        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if self.address.key is not None:
            headers["Authorization"] = f"Bearer {self.address.key}"
        stream = connections.client.stream(method, url, content=content, headers=headers)
        try:
            async with stream as response:
                reply = await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Failure(f"cannot be reached ({self._safe(one_line(error))})") from None
        except httpx.InvalidURL as error:
            raise RemoteError(
                f"{self.address.url}: got no URL ({self._safe(one_line(error))}); check "
                f"{self.address.option}"
            ) from None
        except (httpx.TransportError, httpx.StreamError) as error:
            reason = self._safe(one_line(error)) or type(error).__name__
            raise _Failure(f"broke the connection off ({reason})") from None
        if response.status_code != 200:
            raise self._refusal(response, reply)
        if reply is None:
            raise RemoteError(
                f"{self.address.url}: got a reply of more than {MOST_BYTES >> 20} MiB or a "
                f"compressed one, expected plain JSON; check that it is a server of models"
            )
        try:
            return parse_json(reply)
        except ValueError:
            start = self._safe(reply[:60].decode("utf-8", "replace"))
            raise _Failure(f"got a reply that is not JSON ({start})", status=200) from None

    def _refusal(self, response: Any, reply: bytes | None) -> Exception:
        """Return the error of an answer that is not 200."""
        status: int = response.status_code
        if 300 <= status < 400:
            place = self._safe(_place(response.headers.get("location", "")))
            return RemoteError(
                f"{self.address.url}: got a redirect to {place}, which is not followed; name the "
                f"final address with {self.address.option}",
                status,
            )
        message = self._safe(_message(reply))
        reason = f"got {status}" + (f" ({message})" if message else "")
        if status in _TRANSIENT:
            return _Failure(reason, _retry_after(response.headers.get("retry-after")), status)
        return RemoteError(f"{self.address.url}: {reason}; {self._remedy(status)}", status)

    def _remedy(self, status: int | None) -> str:
        """Return what a user can do about an answer."""
        option, variable = self.address.option, self.address.variable
        if status in (401, 403):
            if self.address.key is None:
                return f"set {variable} to the server's key"
            return f"set {variable} to a key that the server accepts"
        if status in (404, 405):
            return f"check {option}, which mostly ends in /v1, and --{self.address.role}-model"
        if status == 429:
            return "ask fewer at a time with --remote-requests, or run the command again later"
        if status is None:
            return f"check that the server runs, {option}, and --remote-timeout"
        if status == 200:
            return f"check that {option} is a server of models"
        return "see the server's own log"

    def _safe(self, text: str) -> str:
        """Return a server's text for a message: one short line, without the key."""
        if self.address.key is not None:
            text = text.replace(self.address.key, "***")
        shown = "".join(c if c.isprintable() else " " for c in text)
        return one_line(ValueError(" ".join(shown.split()))) if shown.strip() else ""

    def _connect(self) -> _Connections:
        """Return the connections of this process; a forked child gets its own."""
        if self._connections is None or self._connections.loop is not background_loop():
            self._connections = _Connections(self)
            close = weakref.finalize(self, _Connections.close, self._connections)
            close.atexit = False  # the process ends its connections itself
        return self._connections


_MOST_REQUESTS, _MOST_SECONDS = 1024, 86_400


class _Connections:
    """The HTTP client, the slots and the circuit of a server, which belong to one event loop."""

    def __init__(self, server: Server) -> None:
        import httpx2 as httpx

        self.loop = background_loop()
        self.slots = asyncio.Semaphore(server.requests)
        self.circuit, self.trial = Circuit(server.address.url), asyncio.Lock()
        try:
            self.client = httpx.AsyncClient(
                # The time of a whole request is bounded where it is sent.
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(
                    max_connections=server.requests, max_keepalive_connections=server.requests
                ),
                follow_redirects=False,
                trust_env=not server.address.is_local,
            )
        except (ValueError, ImportError, OSError) as error:
            # Neither a key nor a password of the proxy's URL may be shown.
            raise GranAlignError(
                f"{server.address.url}: got a proxy or certificates in the environment that "
                f"cannot be used ({type(error).__name__}), expected URLs of http proxies in "
                f"HTTP_PROXY and HTTPS_PROXY and PEM files in SSL_CERT_FILE; correct or unset them"
            ) from None

    def close(self) -> None:
        """Close idle connections."""
        self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self.client.aclose()))


async def _read(response: Any) -> bytes | None:
    """Return the body of an answer; None if it is too long or compressed."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return None
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def _message(reply: bytes | None) -> str:
    """Return what a server says in the body of an error: OpenAI's form, TEI's, or plain text."""
    if not reply:
        return ""
    text = reply[:4000].decode("utf-8", "replace")
    try:
        record = parse_json(reply)
    except ValueError:
        return "" if text.lstrip().startswith("<") else text  # a page says nothing
    if not isinstance(record, dict):
        return text
    for key in ("error", "message", "detail"):
        found = record.get(key)
        if isinstance(found, dict):
            found = found.get("message")
        if isinstance(found, str):
            return found[:4000]
    return text


def _place(location: str) -> str:
    """Return a ``Location`` header without user, query and fragment, which may hold secrets."""
    try:
        target = urlsplit(location)
    except ValueError:
        return "an address that is no URL"
    return f"{target.scheme}://{target.hostname}{target.path}"


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which are a number or a date."""
    if not text:
        return None
    try:
        return float(min(max(int(text.strip()), 0), _MOST_SECONDS))
    except ValueError:
        pass
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
        return min(max(seconds, 0.0), _MOST_SECONDS)
    except (ValueError, TypeError, OverflowError):
        return None
