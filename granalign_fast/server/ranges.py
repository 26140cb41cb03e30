"""The header `Range` of a request for a file, checked before the file is sent (RFC 9110, 14.2)."""

from __future__ import annotations

import re

from starlette.requests import Request

from .problems import Problem

_PART = re.compile(r"(?P<first>\d+)-(?P<last>\d*)|-(?P<length>\d+)")


def check_range(request: Request, size: int) -> None:
    """Leave in the header `Range` of a request the ranges that can be sent.

    Without one that is valid the whole file is sent. Ranges in other units, and those that end
    before they begin, are not valid.

    Args:
        request: for the file.
        size: of the file, in bytes.

    Raises:
        Problem: `bad-range`, if no range has a byte of the file.
    """
    asked = request.headers.get("range")
    if asked is None:
        return
    unit, _, parts = asked.partition("=")
    found = [_PART.fullmatch(part.strip()) for part in parts.split(",") if part.strip()]
    valid = [part for part in found if part is not None and _is_ordered(part)]
    kept = [part[0] for part in valid if _has_bytes(part, size)]
    is_valid = unit.strip().lower() == "bytes" and valid and len(valid) == len(found)
    if is_valid and not kept:
        raise Problem(
            "bad-range",
            f"range: got {asked[:100]!r}, expected bytes of a file of {size}",
            headers={"content-range": f"bytes */{size}"},
        )
    headers = [one for one in request.scope["headers"] if one[0].lower() != b"range"]
    if is_valid:
        headers.append((b"range", f"bytes={','.join(kept)}".encode()))
    request.scope["headers"] = headers


def _is_ordered(part: re.Match[str]) -> bool:
    """Return whether a range does not end before it begins."""
    return not part["last"] or _number(part["first"]) <= _number(part["last"])


def _has_bytes(part: re.Match[str], size: int) -> bool:
    """Return whether a file of so many bytes has one of the range."""
    if part["length"] is not None:
        return size > 0 and _number(part["length"]) > 0
    return _number(part["first"]) < size


def _number(digits: str) -> int:
    """Return a number; more digits than any file's size has are cut off."""
    return int(digits.lstrip("0")[:30] or "0")
