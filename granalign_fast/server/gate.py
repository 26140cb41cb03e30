"""The outermost layer: request ids, access rules, limits on bodies, headers, metrics, the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import COOKIE, Token, Tokens, host_name
from .metrics import Metrics
from .problems import CLIENT_GONE, Problem, handle_own_error, problem_response
from .settings import Settings

_log = logging.getLogger(__name__)
_access = logging.getLogger("granalign_fast.server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPEN = ("/health/", "/docs", "/openapi.json", "/page/")
"""Beginnings of paths that need no token: they tell nothing about the library."""
_READING_POSTS = re.compile("/v1/(search|session)")
"""Routes that change nothing, though their method is POST."""
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_BEFORE_ROUTING = ("/v1/search",)
"""Paths of requests that may be refused before they reach their route."""
_MOST_HEADERS = 100
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}


class Gate:
    """An ASGI application around another one.

    Args:
        app: what answers the requests that are let in.
        settings: of the service.
        metrics: are told of every request.
        tokens: None if nobody needs one.
        is_upload: returns whether a method and a path upload a video.
        check_room: called with method and path of each request that is allowed; raises a `Problem`
            if there is no room for it, before its body is read.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        tokens: Tokens | None,
        is_upload: Callable[[str, str], bool],
        check_room: Callable[[str, str], None],
    ) -> None:
        self._app, self._metrics, self._tokens = app, metrics, tokens
        self._check_room = check_room
        self._settings, self._is_upload = settings, is_upload
        self._hosts = frozenset(map(str.lower, settings.hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def finish(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(scope, message)
            await send(message)

        self._metrics.in_work.inc()
        try:
            try:
                self._check(scope, headers)
                self._check_room(scope["method"], scope["path"])
                await self._app(scope, self._limited(scope, headers, receive), finish)
            except Problem as problem:
                await problem_response(Request(scope), problem)(scope, receive, finish)
        except asyncio.CancelledError:
            status = status or CLIENT_GONE
            raise
        except Exception as error:
            _log.error(
                "request %s failed: %s: %s",
                scope["request_id"],
                type(error).__name__,
                error,
                exc_info=error,
            )
            if not status:
                answer = await handle_own_error(Request(scope), error)
                await answer(scope, receive, finish)
        finally:
            self._metrics.in_work.dec()
            self._report(scope, status, time.perf_counter() - begin)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Refuse what is not for this service, or not allowed.

        Raises:
            Problem: it is refused.
        """
        method, path = scope["method"], scope["path"]
        if len(headers) > _MOST_HEADERS:
            raise Problem(
                "too-many-headers", f"got {len(headers)}, expected at most {_MOST_HEADERS}"
            )
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy that goes by the other of the two would see another request after this one.
            raise Problem(
                "bad-request",
                "got Content-Length and Transfer-Encoding, expected one of them",
                headers={"connection": "close"},
            )
        given = headers.get("host", "")
        if given and not _HOST.fullmatch(given):
            raise Problem("bad-request", f"Host: got {given[:100]!r}, expected NAME or NAME:PORT")
        host = host_name(given)
        # A page of another site whose name leads to this machine must not read the library.
        if self._hosts and host not in self._hosts:
            raise Problem(
                "wrong-host",
                f"Host: got {host!r}, which is no name of this service; start it with --allow-host",
            )
        if method not in ("GET", "HEAD", "OPTIONS"):
            self._check_origin(headers)
        if self._tokens is None or self._is_open(path) or method == "OPTIONS":
            return
        token = self._token(self._tokens, headers)
        scope["token"] = token
        needed = "read" if _only_reads(method, path) else "write"
        if needed not in token.scopes:
            raise Problem(
                "forbidden", f"got a token for {_listed(token)}, expected one to {needed}"
            )

    def _check_origin(self, headers: Headers) -> None:
        """Refuse a request that a page of another site sends with this browser."""
        origin = headers.get("origin")
        if origin is None or origin in self._settings.origins:
            return
        _, _, site = origin.partition("://")
        if site.lower() != headers.get("host", "").lower():
            raise Problem(
                "forbidden",
                f"Origin: got {origin[:100]!r}, which is another site; start the service with "
                f"--cors",
            )

    def _is_open(self, path: str) -> bool:
        return path in ("/", "/favicon.ico") or path.startswith(_OPEN)

    def _token(self, tokens: Tokens, headers: Headers) -> Token:
        """Return the token of a request, from its header or from the cookie of the page.

        Raises:
            Problem: there is none, or it is unknown.
        """
        kind, _, text = headers.get("authorization", "").partition(" ")
        token = tokens.find(text.strip()) if kind.lower() == "bearer" else None
        if token is None and not kind and (value := _cookie(headers)):
            token = tokens.of_session(value)
        if token is None:
            got = "an unknown token" if kind else "no token"
            raise Problem(
                "unauthorised",
                f"got {got}, expected the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": 'Bearer realm="granalign"'},
            )
        return token

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Return a `receive` that bounds the size of a body and the time between its parts.

        Raises:
            Problem: the body says that it is too large.
        """
        limits = self._settings.limits
        uploads = self._is_upload(scope["method"], scope["path"])
        most = limits.upload_bytes if uploads else limits.body_bytes
        said = headers.get("content-length", "0")
        if said.isdecimal() and int(said) > most:
            raise Problem("too-large", f"got {int(said):,} bytes, expected at most {most:,}")
        got, more, waited = 0, True, 0.0

        async def limited() -> Message:
            nonlocal got, more, waited
            if not more:
                return await receive()
            # A client that sends a byte now and then must not hold its place for hours. Only the
            # time in which the service waits for it counts.
            left = limits.body_seconds + got / limits.body_rate - waited
            begin = time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(limits.body_seconds, left))
            except TimeoutError:
                waited += time.monotonic() - begin
                raise HTTPException(
                    408,
                    f"got {got:,} bytes of the body in {waited:.0f} s, expected the next part in "
                    f"{limits.body_seconds:.0f} s, and {limits.body_rate:,.0f} bytes a second on "
                    f"the whole; send it again, and faster",
                ) from None
            waited += time.monotonic() - begin
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                more = message.get("more_body", False)
                if got > most:
                    raise HTTPException(413, f"got more than {most:,} bytes, expected at most that")
            return message

        return limited

    def _add_headers(self, scope: Scope, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = scope["request_id"]
        for name, value in _SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        # A search that was refused for want of room has not reached its route.
        known = path if status == 429 and path in _BEFORE_ROUTING else "other"
        route = getattr(scope.get("route"), "path", known)
        self._metrics.requests.labels(_known(scope["method"]), route, str(status)).inc()
        self._metrics.durations.labels(route).observe(seconds)
        client = scope.get("client")
        _access.info(
            "%s %s %s",
            scope["method"],
            scope["path"],
            status,
            extra={
                "request": {
                    "request_id": scope["request_id"],
                    "method": scope["method"],
                    "path": scope["path"],
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "client": client[0] if client else None,
                    "token": token.name if (token := scope.get("token")) else None,
                }
            },
        )


def _only_reads(method: str, path: str) -> bool:
    """Return whether a request changes nothing of the library."""
    if method == "POST":
        return _READING_POSTS.fullmatch(path) is not None
    return method in ("GET", "HEAD") or (method, path) == ("DELETE", "/v1/session")


def _cookie(headers: Headers) -> str | None:
    """Return the session of the page; None without one."""
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return None
    return cookies[COOKIE].value if COOKIE in cookies else None


def _known(method: str) -> str:
    """Return a method; any text that is none is one label of the metrics."""
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return method if method in known else "other"


def _listed(token: Token) -> str:
    return ", ".join(sorted(token.scopes)) or "nothing"
