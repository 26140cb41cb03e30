"""Errors of the service as problem details (RFC 9457): one JSON object, never a stack trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.output.visible import visible

MEDIA_TYPE = "application/problem+json"

TITLES: Mapping[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "unauthorised": (401, "A token is needed"),
    "forbidden": (403, "The token or the origin does not allow this"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "timeout-reading": (408, "The request did not arrive in time"),
    "conflict": (409, "It cannot be done now"),
    "file-gone": (410, "The video file is not there any more, or is another one"),
    "too-large": (413, "The request is too large"),
    "wrong-type": (415, "The media type is not accepted"),
    "bad-range": (416, "The file has no such range"),
    "wrong-host": (421, "The service does not have this name"),
    "invalid": (422, "The request asks for something that cannot be done"),
    "probably-absent": (422, "The video probably does not show the query"),
    "too-many": (429, "Too many requests wait"),
    "too-many-headers": (431, "The headers of the request are too many"),
    "internal": (500, "The service failed"),
    "not-available": (501, "The service was started without what this needs"),
    "not-ready": (503, "The service is not ready"),
    "no-space": (507, "The disk of the library is full"),
    "too-late": (504, "The answer was not ready in time"),
}
"""Status and title of each kind of problem."""

CLIENT_GONE = 499
"""The status in the log where nobody was there to get an answer."""

_BY_STATUS = {status: kind for kind, (status, _) in reversed(list(TITLES.items()))}


class Problem(Exception):
    """An error that a client sees.

    Args:
        kind: one of `TITLES`.
        detail: what was got, what was expected, what to do, in one line.
        headers: of the response.
        more: further members of the JSON object.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = TITLES[kind][0]
        self.detail = detail
        self.headers = headers
        self.more = more

    def to_record(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the JSON object."""
        status, title = TITLES[self.kind]
        record = {
            "type": f"urn:granalign:problem:{self.kind}",
            "title": title,
            "status": status,
            "detail": visible(self.detail),
        }
        if request_id is not None:
            record["request_id"] = request_id
        return record | self.more


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    """Return the response of a problem."""
    return JSONResponse(
        problem.to_record(request.scope.get("request_id")),
        problem.status,
        headers=dict(problem.headers or {}),
        media_type=MEDIA_TYPE,
    )


async def handle_problem(request: Request, error: Exception) -> JSONResponse:
    """Answer a `Problem`."""
    assert isinstance(error, Problem)
    return problem_response(request, error)


async def handle_granalign_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that the client caused by a value that was valid JSON."""
    detail = request.app.state.service.engine.shown(error)
    return problem_response(request, Problem("invalid", detail))


async def handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of the framework: an unknown route, a wrong method."""
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(
        error.status_code, "bad-request" if error.status_code < 500 else "internal"
    )
    detail = {
        404: f"got {short_repr(request.url.path)}, expected one of the routes of /docs",
        405: f"got {request.method}, expected a method that /docs names for this route",
    }.get(error.status_code, str(error.detail))
    return problem_response(request, Problem(kind, detail, headers=error.headers))


async def handle_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Answer a request whose parameters or body do not fit the schema; the first ten are named."""
    assert isinstance(error, RequestValidationError)
    errors = [_error_record(one) for one in list(error.errors())[:10]]
    first = f"{errors[0]['at']}: {errors[0]['message']}" if errors else "the request is invalid"
    not_json = any(one.get("type") == "json_invalid" for one in error.errors())
    kind = "bad-request" if not_json else "invalid"
    return problem_response(request, Problem(kind, first, errors=jsonable_encoder(errors)))


def _error_record(error: Mapping[str, Any]) -> dict[str, str]:
    location: Sequence[Any] = error.get("loc", ())
    got = error.get("input")
    shown = "" if isinstance(got, dict | list) or got is None else f"; got {short_repr(got)}"
    return {
        "at": ".".join(map(str, location)),
        "message": visible(f"{error.get('msg', '')}{shown}"),
    }


async def handle_client_gone(request: Request, error: Exception) -> Response:
    """End a request whose client has closed the connection; the log says 499, as nginx's does."""
    return Response(status_code=CLIENT_GONE)


async def handle_own_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that is the service's own; the gate writes it into the log."""
    detail = "an error that is the service's own; its log has the request id"
    return problem_response(request, Problem("internal", detail))


def install(app: Any) -> None:
    """Make an application answer all its errors so."""
    app.add_exception_handler(Problem, handle_problem)
    app.add_exception_handler(GranAlignError, handle_granalign_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(RequestValidationError, handle_invalid_request)
    app.add_exception_handler(ClientDisconnect, handle_client_gone)
    app.add_exception_handler(Exception, handle_own_error)
