"""Mixed traffic for long: ``python -m granalign_fast.bench.commands.service_soak --seconds 3600``.

A service of a small library with the miniatures runs in a process of its own. Clients search it,
upload videos and remove them, play and cut them, break requests off, and make mistakes, at a
moderate rate. What the process holds is written down every ten seconds.

Memory is that of the service's process without the worker that indexes, which has a column of its
own. Its growth is the median of the last quarter of the time after warm-up over that of the first
quarter. Descriptors, threads and child processes are compared where no request is in work: before
the traffic, once each step was taken, and after it. The files of the catalogue are counted alone:
there are more of them where it has more segments, but none may be of a segment that was deleted.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from granalign_fast.bench.harness.machine import facts
from granalign_fast.bench.harness.process_usage import Usage, open_files, usage
from granalign_fast.bench.harness.service_traffic import Traffic
from granalign_fast.library.pointer import FOLDER
from granalign_fast.miniatures.videos import render_video
from granalign_fast.pipeline import open_models
from granalign_fast.video.cutting import cut

MOST_GROWTH = 0.01
"""The bar: memory may grow by so much."""
_CLIENTS = 3
_LIBRARY = 2
"""Videos that stay."""
_QUIET_SECONDS = 20.0
"""After so long without a request, what clients left is closed, and garbage is collected."""
_PREFIX_GIB = "0.02"
"""The cache of prompts is full after some minutes, so that it does not count as growth."""


class Sample(NamedTuple):
    """The memory and files of the service, some seconds after the traffic began."""

    seconds: float
    held: Usage


def write_library(folder: Path) -> tuple[dict[str, float], list[Path], list[str]]:
    """Write videos, and index those that stay, below ``library``.

    Returns:
        Ids and seconds of the videos that stay, files to upload, and queries.
    """
    script = render_video(folder / "long.mp4", 7, seconds=(54.0, 60.0))
    staying, files = [], []
    for number in range(_LIBRARY):
        staying.append(folder / f"stays{number}.mp4")
        cut(folder / "long.mp4", 14.0 * number, 14.0 * number + 14, staying[-1], exact=True)
    for number in range(6):
        files.append(folder / f"file{number}.mp4")
        cut(folder / "long.mp4", 7.0 * number, 7.0 * number + 8, files[-1], exact=True)
    open_models("miniatures", prefix_gib=0.0).index(staying, folder / "library")
    queries = [asked.query.text for asked in script.queries]
    return {path.stem: 14.0 for path in staying}, files, queries


class _Service:
    """A service in a process of its own, and the lines of its log that tell of errors."""

    def __init__(self, folder: Path) -> None:
        words = ["serve", str(folder / "library"), "--models", "miniatures", "--port", "0"]
        self._log = folder / "log"
        with self._log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "granalign_fast", *words, "--prefix-gib", _PREFIX_GIB],
                stderr=sink,
                env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
            )
        self.port = self._port()

    def _port(self) -> int:
        until = time.monotonic() + 120
        port = 0
        while time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.1)
            if not port:
                found = re.search(r"serving at http://\S+:(\d+)", self._log.read_text())
                port = int(found[1]) if found else 0
            elif self._is_ready(port):
                return port
        raise RuntimeError(f"the service did not begin: {self._log.read_text()}")

    def _is_ready(self, port: int) -> bool:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        finally:
            connection.close()

    def errors(self) -> list[str]:
        """Return the lines of the log that are no line of a request, but those asked for."""
        lines = self._log.read_text(errors="replace").splitlines()
        own = re.compile(r"\S+Z info |granalign: serving|\S+Z warning job \w+ failed: text\.mp4")
        return [line for line in lines if not own.match(line)]

    def end(self) -> int:
        """End it as an operator does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@contextmanager
def _running(folder: Path) -> Iterator[_Service]:
    service = _Service(folder)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def put_traffic(traffic: Traffic, seconds: float, rate: float) -> threading.Event:
    """Let clients take steps for some seconds, together so many a second.

    Returns:
        What is set once all of them have ended.
    """
    begin, lock = time.monotonic(), threading.Lock()
    taken, ended = 0, threading.Event()

    def act() -> None:
        nonlocal taken
        while True:
            with lock:
                at = begin + taken / rate
                taken += 1
            if at >= begin + seconds:
                return
            time.sleep(max(0.0, at - time.monotonic()))
            traffic.step()

    def wait() -> None:
        for thread in threads:
            thread.join()
        ended.set()

    threads = [threading.Thread(target=act) for _ in range(_CLIENTS)]
    for thread in [*threads, threading.Thread(target=wait)]:
        thread.start()
    return ended


def _let_end(traffic: Traffic) -> None:
    """Wait until no request is in work; the last search takes up the newest catalogue."""
    time.sleep(_QUIET_SECONDS)
    traffic.search()
    time.sleep(_QUIET_SECONDS)


def _at_rest(pid: int) -> dict[str, int]:
    """Return what the service holds where no request is in work."""
    held, files = usage(pid), open_files(pid)
    catalogue = sum(f"/{FOLDER}/" in path for path in files)
    return held._asdict() | {
        "catalogue_files": catalogue,
        "other_descriptors": held.descriptors - catalogue,
        "deleted_files": sum(path.endswith(" (deleted)") for path in files),
    }


def growth(samples: Sequence[Sample], warm_up: float) -> tuple[float, float]:
    """Return the median memory of the first and the last quarter after warm-up, in bytes."""
    begin, end = warm_up, samples[-1].seconds
    quarter = (end - begin) / 4
    first = [one.held.resident for one in samples if begin <= one.seconds <= begin + quarter]
    last = [one.held.resident for one in samples if one.seconds >= end - quarter]
    return median(first), median(last)


def soak(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the service and its traffic; return the findings."""
    videos, files, queries = write_library(folder)
    samples: list[Sample] = []
    with _running(folder) as service, options.out.open("w", newline="") as sink:
        pid = service.process.pid
        table = csv.writer(sink)
        table.writerow(("seconds", *Usage._fields))
        traffic = Traffic(service.port, videos, files, queries, options.seed)
        traffic.each()
        traffic.settle()
        _let_end(traffic)
        before, begin = _at_rest(pid), time.monotonic()
        ended = put_traffic(traffic, options.seconds, options.rate)
        while not ended.wait(options.every):
            samples.append(Sample(time.monotonic() - begin, usage(pid)))
            table.writerow((f"{samples[-1].seconds:.0f}", *samples[-1].held))
            sink.flush()
        traffic.settle()
        _let_end(traffic)
        after = _at_rest(pid)
        code = service.end()
        warm_up = options.warm_up * options.seconds
        first, last = growth(samples, warm_up)
        threads = [one.held.threads for one in samples if one.seconds <= warm_up]
        statuses: dict[str, dict[str, int]] = {}
        for (step, outcome), count in sorted(traffic.counts.items()):
            statuses.setdefault(step, {})[outcome] = count
        return {
            "seconds": samples[-1].seconds,
            "resident_first": first,
            "resident_last": last,
            "growth": last / first - 1,
            "warm_up_threads": max([before["threads"], *threads]),
            "most_descriptors": max(one.held.descriptors for one in samples),
            "most_threads": max(one.held.threads for one in samples),
            "before": before,
            "after": after,
            "answers": statuses,
            "wrong": traffic.wrong,
            "log": service.errors(),
            "exit_code": code,
            "machine": facts("cpu"),
        }


def failures(found: dict[str, Any]) -> list[str]:
    """Return the bars that the findings do not meet, in words."""
    missed = []
    if found["growth"] > MOST_GROWTH:
        missed.append(f"memory grew by {found['growth']:.2%}, at most {MOST_GROWTH:.0%} is allowed")
    # Pools of threads fill while requests come together.
    allowed = found["before"] | {"threads": found["warm_up_threads"]}
    for name in ("other_descriptors", "deleted_files", "threads", "children"):
        before, after = allowed[name], found["after"][name]
        if after > before:
            shown = name.replace("_", " ")
            missed.append(f"{after} {shown} after the traffic, {before} before it")
    missed += [f"an answer that nobody asked for: {one}" for one in found["wrong"]]
    missed += [f"the log: {line}" for line in found["log"]]
    if found["exit_code"]:
        missed.append(f"the exit code is {found['exit_code']}")
    return missed


def report(found: dict[str, Any]) -> str:
    """Return the findings as tables."""
    lines = [
        f"{found['seconds']:.0f} s; memory {found['resident_first'] / 1e6:.1f} MB in the first "
        f"quarter after warm-up, {found['resident_last'] / 1e6:.1f} MB in the last: "
        f"{found['growth']:+.2%}",
        "",
        "| | before the traffic | at most | after it |",
        "|---|---|---|---|",
    ]
    for name in ("descriptors", "catalogue_files", "deleted_files", "threads", "children"):
        most = found.get(f"most_{name}", "")
        shown = name.replace("_", " ")
        lines.append(f"| {shown} | {found['before'][name]} | {most} | {found['after'][name]} |")
    lines += ["", "| step | answers |", "|---|---|"]
    for step, outcomes in found["answers"].items():
        listed = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes.items())
        lines.append(f"| {step} | {listed} |")
    return "\n".join(lines)


def _problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options; None if nothing is."""
    for name in ("seconds", "rate", "every"):
        if not 0 < getattr(options, name) < math.inf:
            return f"--{name}: got {getattr(options, name)}, expected a number above 0"
    if not 0 <= options.warm_up < 1:
        return f"--warm-up: got {options.warm_up}, expected a share of at least 0, below 1"
    # Memory is compared between two quarters of the time after warm-up: each needs a sample.
    quarter = (1 - options.warm_up) * options.seconds / 4
    if options.every > quarter:
        return (
            f"--every: got {options.every:g}, expected at most {quarter:g}, a quarter of the time "
            f"after warm-up; sample more often, or run for longer"
        )
    for path in (options.out, options.json):
        if path is not None and not path.absolute().parent.is_dir():
            return f"{path}: no such folder; make it first"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the traffic, print the findings, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Put mixed traffic on a service for long.")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--rate", type=float, default=2.0, help="steps a second (2)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples (10)")
    parser.add_argument(
        "--warm-up", type=float, default=0.25, help="share of the time before memory counts (0.25)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak.csv"), help="samples (soak.csv)")
    parser.add_argument("--json", type=Path, help="write the findings as JSON")
    options = parser.parse_args(arguments)
    if problem := _problem(options):
        parser.error(problem)
    with tempfile.TemporaryDirectory(prefix="granalign-soak-") as name:
        found = soak(Path(name), options)
    print(report(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    missed = failures(found)
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
