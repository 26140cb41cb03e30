"""Read thousands of changed files: ``cd tests && python -m helpers.mutated 20000 [SEED]``.

Each file is read in a worker process with 2 GiB of memory and 20 seconds of processors. It must be
read, or refused by a `GranAlignError` of one line. The process must not end, nothing may be opened
or written outside the given folder, and the memory may grow by 200 MB and ten times the files'
size. A number makes the same file again: ``--only NAME:NUMBER --keep DIR``.
"""

from __future__ import annotations

import argparse
import collections
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.workers import Limits, WorkerError, Workers

from .cases import CASES, make
from .reading import examine
from .watching import Watch

LIMITS = Limits(seconds=180, processor_seconds=20, memory=2 << 30, file_bytes=1 << 28)
MOST_GROWTH = 200 * 10**6
MOST_TIMES = 10
VIDEO_GROWTH = 1200 * 10**6
"""The growth for videos. `config.MOST_PIXELS` allows more, but the changed files have small frames.
"""
MOST_MESSAGE = 2000


def plan(count: int, seed: int, names: list[str] | None = None) -> Iterator[tuple[str, int]]:
    """Yield the case and the number of each file; files of a case come together.

    With `names` it yields those of these cases alone.
    """
    total, before = sum(case.share for case in CASES.values()), 0
    for name, case in CASES.items():
        begin, before = count * before // total, before + case.share
        if names is None or name in names:
            for number in range(begin, count * before // total):
                yield name, seed * 10_000_000 + number


class Run:
    """The reading of changed files below a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outside = root / "outside"
        self.outside.mkdir()
        for name in ("secret.mp4", "secret.json", "secret.onnx"):
            (self.outside / name).write_text('{"secret": 1}')
        (root / "seeds").mkdir()
        (root / "work").mkdir()
        self.watch = Watch(self.outside)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.growth: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def seeds(self, name: str) -> Path:
        """Return the valid files of a case, written when they are first used."""
        folder = self.root / "seeds" / name
        if not folder.exists():
            folder.mkdir()
            CASES[name].write(folder)
        return folder

    def one(self, workers: Workers, name: str, number: int) -> str | None:
        """Make and read one file; return what went wrong."""
        folder = self.root / "work" / str(number)
        case = CASES[name]
        make(case, self.seeds(name), folder, number, self.outside)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        try:
            wrong = self._read(workers, name, folder, size)
            if wrong is not None and wrong.startswith("memory grew"):
                # What earlier files left behind does not count: once more, in a new process.
                shutil.rmtree(folder)
                make(case, self.seeds(name), folder, number, self.outside)
                with Workers(limits=LIMITS) as fresh:
                    wrong = self._read(fresh, name, folder, size)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if wrong is not None:
            self.failures.append(f"{name}:{number}: {wrong}")
        return wrong

    def _read(self, workers: Workers, name: str, folder: Path, size: int) -> str | None:
        arguments = (name, str(self.seeds(name)), str(folder), str(self.outside))
        try:
            result: dict[str, Any] = workers.run(examine, *arguments)
        except WorkerError as error:
            self.outcomes["wrong"] += 1
            self.watch.changes()
            return f"{error.reason}: {error}"
        except GranAlignError as error:
            raise RuntimeError(f"{name}: the valid files are refused: {error}") from None
        self.outcomes[result["outcome"]] += 1
        self.growth[name] = max(self.growth.get(name, 0), result["growth"] - MOST_TIMES * size)
        self.seconds[name] = max(self.seconds.get(name, 0.0), result["seconds"])
        escapes = result["escapes"] + self.watch.changes()
        if escapes:
            return f"left its folder: {escapes}"
        message = result["message"]
        if "\n" in message or len(message) > MOST_MESSAGE:
            return f"a message of {len(message)} characters: {message[:300]!r}"
        most = (VIDEO_GROWTH if name == "video" else MOST_GROWTH) + MOST_TIMES * size
        if result["growth"] > most:
            return f"memory grew by {result['growth'] / 1e6:,.0f} MB for {size:,} bytes"
        return None


def main(arguments: list[str] | None = None) -> int:
    """Read files, print every failure, and return 1 if there is one."""
    parser = argparse.ArgumentParser(prog="helpers.mutated")
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--cases", help="names of readers, with commas between them")
    parser.add_argument("--only", metavar="NAME:NUMBER", help="one file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the one file here")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    options = parser.parse_args(arguments)
    files = plan(options.count, options.seed, options.cases and options.cases.split(","))
    if options.only:
        logging.basicConfig(level=logging.DEBUG)  # the traceback of an error in the worker
        name, number = options.only.split(":")
        files = iter([(name, int(number))])
    begin, done, last = time.monotonic(), 0, ""
    with tempfile.TemporaryDirectory() as root, Workers(limits=LIMITS) as workers:
        run = Run(Path(root).resolve())
        for name, number in files:
            if options.seconds and time.monotonic() - begin > options.seconds:
                print(f"stopped before {name}:{number}", flush=True)
                break
            if options.keep:
                make(CASES[name], run.seeds(name), options.keep, number, run.outside)
            if name != last:
                last = name
                print(f"{time.monotonic() - begin:5.0f} s {done:6,} files; now {name}", flush=True)
            wrong = run.one(workers, name, number)
            done += 1
            if wrong is not None:
                print(run.failures[-1], flush=True)
    print(f"{done:,} files: " + ", ".join(f"{n:,} {what}" for what, n in run.outcomes.items()))
    for name, growth in sorted(run.growth.items()):
        print(f"  {name}: memory {growth / 1e6:+.0f} MB, {run.seconds[name]:.2f} s of processors")
    print(f"{len(run.failures)} failures")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
