"""The page `/`: files of this package, which need no other host."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from .problems import Problem

router = APIRouter(include_in_schema=False)

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _read_page() -> dict[str, bytes]:
    """Return the files of the page by their names."""
    folder = files(__package__) / "page"
    return {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.rpartition(".")[2] in _KINDS
    }


@router.head("/")
@router.get("/")
def show_page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "index.html")


@router.head("/favicon.ico")
@router.get("/favicon.ico")
def show_icon(request: Request) -> Response:
    """Return the icon."""
    return _file(request, "icon.svg")


@router.head("/page/{name}")
@router.get("/page/{name}")
def show_file(request: Request, name: str) -> Response:
    """Return a script, the style or the icon."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    content = _read_page().get(name)
    if content is None:
        raise Problem("not-found", f"got {name!r}, expected a file of the page")
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    # The browser asks each time whether a file has changed: a new version is taken up at once.
    headers = {"content-security-policy": _POLICY, "etag": tag, "cache-control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_KINDS[name.rpartition(".")[2]], headers=headers)
