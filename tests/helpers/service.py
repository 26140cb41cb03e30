"""A service in a process of its own, as people run it, and requests to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_SECONDS = 60


class Service:
    """A running ``granalign serve``.

    Args:
        library: that it serves.
        *options: of the command.
        models: a folder; None for the sentence encoder alone.
    """

    def __init__(self, library: Path, *options: object, models: str | None = "miniatures") -> None:
        words = ["serve", library, "--port", 0, *options]
        words += [] if models is None else ["--models", models]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "granalign_fast", *map(str, words)],
            stderr=subprocess.PIPE,
            env=environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._wait_for_url()
        self.port = int(self.url.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.url, timeout=_SECONDS)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode(errors="replace").rstrip("\n"))

    def _wait_for_url(self) -> str:
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            for line in self.lines:
                if found := re.search(r"serving at (http://\S+)", line):
                    return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no service: {self.lines}")

    def wait_until_ready(self, headers: dict[str, str] | None = None) -> Service:
        """Wait until the models are loaded."""
        until = time.monotonic() + _SECONDS
        while self.client.get("/health/ready", headers=headers).status_code != 200:
            assert self.process.poll() is None and time.monotonic() < until, self.lines
            time.sleep(0.05)
        return self

    def wait_for(self, job: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of the states; return it."""
        until = time.monotonic() + _SECONDS
        while True:
            record: dict[str, Any] = self.client.get(f"/v1/jobs/{job}").json()
            if record["state"] in states:
                return record
            assert time.monotonic() < until, record
            time.sleep(0.05)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(_SECONDS)
        self._reader.join(_SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def running(
    library: Path, *options: object, models: str | None = "miniatures"
) -> Iterator[Service]:
    """Run a service for the block, and end it whatever happens."""
    service = Service(library, *options, models=models)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end(signal.SIGKILL)


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Yield the events of a stream as a browser reads them: name and data."""
    name, data = "message", []
    for line in response.iter_lines():
        if not line:
            if data:
                yield name, json.loads("\n".join(data))
            name, data = "message", []
        elif line.startswith("event:"):
            name = line[6:].removeprefix(" ")
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
