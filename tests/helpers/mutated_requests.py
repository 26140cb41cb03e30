"""Send thousands of changed requests to a service, and see that nothing breaks.

``PYTHONPATH=tests python -m helpers.mutated_requests 10000 [SEED]``

A request of each route, an upload too, is changed: values of its JSON and its parameters, the bytes
of its head, of its body, of its form or of its video, the chunks of a body, its length. Each must
be answered, or its connection closed, within seconds: never with 500, and never with a stack trace.
No request may open, send or change a file outside the library; afterwards the service answers as
before. A number makes the same request again: ``--only NUMBER``.
"""

from __future__ import annotations

import argparse
import collections
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from helpers.changed_requests import SEARCH, Requests
from helpers.mutated.watching import Watch
from helpers.service import Service, running

SECRET = b"a secret of another folder"
SECONDS = 30.0
"""Seconds within which a request must be answered, or a connection closed that the client ends."""
_PATIENCE = 1.0
"""Seconds after which the service counts as waiting for more of a request."""
_QUIET = 0.25
"""Seconds without a byte after which an answer counts as complete."""


def send(port: int, request: bytes) -> bytes:
    """Send a request, and return the answer.

    Where none comes, the service waits for more. The client then ends its side, and the service
    must close the connection.

    Raises:
        TimeoutError: it was not closed in time.
    """
    got = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        until, ended = time.monotonic() + SECONDS, False
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
            while time.monotonic() < until:
                client.settimeout(SECONDS if ended else _QUIET if got else _PATIENCE)
                try:
                    part = client.recv(1 << 16)
                except TimeoutError:
                    if got:
                        break
                    if ended:
                        raise
                    client.shutdown(socket.SHUT_WR)
                    ended = True
                    continue
                got += part
                if not part or _is_whole(got):
                    break
            else:
                raise TimeoutError
    return bytes(got)


def _is_whole(answer: bytearray) -> bool:
    """Return whether an answer has the length that it names."""
    head, end, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"\ncontent-length: ([0-9]+)", head.lower())
    return bool(end) and found is not None and len(body) >= int(found[1])


def judge(answer: bytes) -> tuple[str, str | None]:
    """Return the status of an answer, and what is wrong with it."""
    status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.1 ") else "closed"
    if answer and status == "closed":
        return status, f"got no HTTP: {answer[:100]!r}"
    if status in ("500", "502"):
        return status, f"got {answer[-600:]!r}"
    if SECRET in answer or b"Traceback" in answer or b"root:" in answer:
        return status, f"tells too much: {answer[:600]!r}"
    return status, None


class Run:
    """Requests to a service, and the findings."""

    def __init__(self, service: Service, library: Path, video: bytes, outside: Path) -> None:
        self._service, self._library = service, library
        (outside / "secret.mp4").write_bytes(SECRET)
        (outside / "secret.json").write_bytes(SECRET)
        self._watch = Watch(outside)
        self._requests = Requests(video, outside)
        self._answer, self._videos = self._search(), self._listed()
        self._lock = threading.Lock()
        self.statuses: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0
        self.failures: list[str] = []

    def one(self, number: int, kind: str | None = None) -> None:
        """Send the request of a number."""
        request, kind = self._requests.make(number, kind)
        begin = time.monotonic()
        try:
            status, wrong = judge(send(self._service.port, request))
        except TimeoutError:
            status, wrong = "none", f"got no answer in {SECONDS:g} s"
        with self._lock:
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self.statuses[status] += 1
            self.kinds[kind] += 1
            if opened := self._watch.changes():
                wrong = f"opened {opened}, or a request at the same time did"
            if wrong:
                self.failures.append(f"{number}: {kind}: {wrong}: {request[:300]!r}")

    def end(self) -> None:
        """Wait for the jobs, and look whether all is as before."""
        client = self._service.client
        for job in client.get("/v1/jobs", params={"limit": 1000}).json()["jobs"]:
            self._service.wait_for(job["id"], "done", "failed", "cancelled")
        for video in client.get("/v1/videos", params={"limit": 1000}).json()["videos"]:
            if video["vid"] not in self._videos:
                removed = client.delete(f"/v1/videos/{quote(video['vid'], safe='')}")
                if not removed.is_success:
                    self.failures.append(f"{video['vid']!r} is not removed: {removed.text}")
        if (videos := self._listed()) != self._videos:
            self.failures.append(f"the library has {videos}, before {self._videos}")
        if (answer := self._search()) != self._answer:
            self.failures.append(f"the service answers {answer}, before {self._answer}")
        left = [path.name for path in (self._library / ".uploads").iterdir()]
        if left:
            self.failures.append(f"uploads are left: {left}")
        progress = re.compile(r"^granalign_http_requests_in_progress (\S+)", re.MULTILINE)
        if (busy := progress.findall(client.get("/metrics").text)) != ["1.0"]:
            self.failures.append(f"requests are still in work: {busy}")
        if traces := [
            line for line in self._service.lines if "Traceback" in line or " error " in line
        ]:
            self.failures.append(f"the log: {traces[:5]}")

    def _listed(self) -> list[str]:
        listed = self._service.client.get("/v1/videos", params={"limit": 1000}).json()
        return [video["vid"] for video in listed["videos"]]

    def _search(self) -> Any:
        asked = {"query": SEARCH["query"], "filters": {"videos": ["first"]}}
        found = self._service.client.post("/v1/search", json=asked).json()
        # Scores depend on the words of all captions, also of videos that were removed lately.
        return [(one["vid"], one["start"], one["end"]) for one in found["results"][0]["moments"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Send requests, print every failure, and return 1 if there is one."""
    from helpers.small_library import write_small_library

    parser = argparse.ArgumentParser(prog="helpers.mutated_requests")
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--kind", help="a method of Requests, for all of them")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one request")
    options = parser.parse_args(arguments)
    first = options.seed * 10_000_000
    numbers = range(first, first + options.count) if options.only is None else [options.only]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        outside = folder / "outside"
        outside.mkdir()
        videos = write_small_library(folder)
        with running(folder / "library", "--root", folder / "videos") as service:
            service.wait_until_ready()
            run = Run(service, folder / "library", videos["new"].read_bytes(), outside)
            with ThreadPoolExecutor(options.clients) as pool:
                list(pool.map(lambda number: run.one(number, options.kind), numbers))
            run.end()
            code = service.end()
    for failure in run.failures:
        print(failure)
    counts = ", ".join(f"{count} x {status}" for status, count in run.statuses.most_common())
    kinds = ", ".join(f"{count} {kind}" for kind, count in run.kinds.most_common())
    print(
        f"{sum(run.statuses.values()):,} requests ({kinds}): {counts}; {len(run.failures)} "
        f"failures; the slowest took {run.slowest:.1f} s; exit code {code}"
    )
    return 1 if run.failures or code else 0


if __name__ == "__main__":
    sys.exit(main())
