"""The routes that change a token for a cookie, which pictures and players of a page send too."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from .access import COOKIE, SESSION_SECONDS
from .problems import Problem
from .schemas import PROBLEM
from .service import Current

router = APIRouter(tags=["sessions"])


@router.post(
    "/v1/session",
    status_code=204,
    summary="Begin a session",
    response_class=Response,
    responses={401: PROBLEM, 501: PROBLEM},
)
async def begin_session(request: Request, service: Current) -> Response:
    """Set a cookie that stands for the token of this request, for twelve hours.

    Scripts of the page cannot read it, and no other site can send it.
    """
    token = request.scope.get("token")
    if service.tokens is None or token is None:
        raise Problem("not-available", "the service needs no token, and so no session")
    response = Response(status_code=204)
    response.set_cookie(
        COOKIE,
        service.tokens.session(token),
        max_age=SESSION_SECONDS,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.delete("/v1/session", status_code=204, summary="End a session", response_class=Response)
async def end_session() -> Response:
    """Delete the cookie."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response
