"""The log of the service, on stderr: a line of text, or a JSON object, for each event."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from granalign_fast.output.visible import visible


class _Lines(logging.Formatter):
    """Writes an event as one line of text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = f"{stamp} {record.levelname.lower()} {visible(record.getMessage())}"
        if request := _request(record):
            line += f" {request['seconds']:.3f}s id={request['request_id']}"
            if request["token"]:
                line += f" token={request['token']}"
        return line + _trace(record)


class _Json(logging.Formatter):
    """Writes an event as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        event: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= _request(record) or {}
        if trace := _trace(record):
            event["trace"] = trace.strip()
        return json.dumps(event)


def _request(record: logging.LogRecord) -> dict[str, Any] | None:
    return getattr(record, "request", None)


def _trace(record: logging.LogRecord) -> str:
    """Return where an error that is the service's own came from; nothing for any other event."""
    if not record.exc_info:
        return ""
    return "\n" + logging.Formatter().formatException(record.exc_info)


def configure_logs(*, as_json: bool) -> None:
    """Send the messages of the service and of its server to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Lines())
    for name, level in (
        ("granalign_fast", None),
        ("granalign_fast.server", logging.INFO),
        ("uvicorn", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler] if name != "granalign_fast.server" else []
        if level is not None:
            logger.setLevel(level)
    logging.getLogger("granalign_fast").propagate = False
    logging.getLogger("uvicorn").propagate = False
