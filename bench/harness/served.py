"""A service that is measured: one that is started for it, or one that runs elsewhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from granalign_fast.errors import GranAlignError

from .load_figures import Metrics, read_metrics

TOKEN = "GRANALIGN_TOKEN"
"""The variable of the environment that holds the token of a service that wants one."""
_START_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Served:
    """A service that answers."""

    host: str
    port: int
    token: str | None = None

    @classmethod
    def at(cls, url: str) -> Served:
        """Return the service at an address; its token is in the environment.

        Raises:
            GranAlignError: the address cannot be read.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        rest = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme != "http" or not parts.hostname or port in (-1, 0) or rest:
            raise GranAlignError(
                f"--url: got {url!r}, expected an address such as http://127.0.0.1:8000"
            )
        return cls(parts.hostname, port or 80, os.environ.get(TOKEN))

    def metrics(self) -> Metrics:
        """Return the service's metrics.

        Raises:
            GranAlignError: it does not give them.
        """
        status, text = self._get("/metrics")
        if status != 200:
            raise GranAlignError(f"/metrics: got {status}, expected 200; is {TOKEN} set?")
        return read_metrics(text)

    def is_ready(self) -> bool:
        """Return whether it can be searched.

        Raises:
            GranAlignError: it cannot be reached.
        """
        return self._get("/health/ready")[0] == 200

    def _get(self, path: str) -> tuple[int, str]:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        connection = HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, HTTPException) as error:
            raise GranAlignError(
                f"http://{self.host}:{self.port}: cannot be reached ({error}); is the service up?"
            ) from None
        finally:
            connection.close()


@contextmanager
def serving(library: Path, options: Sequence[str], log: Path) -> Iterator[Served]:
    """Run ``granalign serve`` in a process of its own, and yield it when it can be searched.

    Args:
        library: that it serves.
        options: of the command.
        log: a file for its log.

    Raises:
        GranAlignError: it ended, or is not ready in time; the message has the end of its log.
    """
    words = ["serve", str(library), "--port", "0", *options]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "granalign_fast", *words],
            stderr=errors,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        yield _wait(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> Served:
    """Return the service when it is ready."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        said = log.read_text(encoding="utf-8", errors="replace")
        if (found := re.search(r"serving at (http://\S+)", said)) is not None:
            served = Served.at(found[1])
            if served.is_ready():
                return served
        time.sleep(0.1)
    tail = log.read_text(encoding="utf-8", errors="replace").strip()[-300:]
    raise GranAlignError(f"granalign serve: not ready; its log ends with: {tail}")
