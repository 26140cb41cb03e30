"""Functions that the tests of worker processes call there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.index.builder import index_videos
from granalign_fast.runtime.workers import Workers
from granalign_fast.video.frames import DamagedVideoWarning
from helpers.index_worker import ROWS, stand_ins


def echo(*values: Any) -> list[Any]:
    return list(values)


def process_id() -> int:
    return os.getpid()


def environment() -> list[Any]:
    return [os.environ["TMPDIR"], tempfile.mkstemp()[1], sys.path]


def refuse(text: str) -> None:
    raise GranAlignError(text)


def fail(kind: type[BaseException]) -> None:
    raise kind("a\nb")


def allocate(size: int) -> int:
    return len(bytearray(size))


def spin() -> None:
    while True:
        pass


def spin_holding_the_lock() -> None:
    """Compute without ever giving Python's lock back, as a library in C can do."""
    sum(range(10**18))


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


def leave(code: int) -> None:
    os._exit(code)


def write(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))


def count_to(most: int, progress: Callable[..., None]) -> int:
    for number in range(most):
        progress(number, most, "clip")
    return most


def report_until_killed(progress: Callable[..., None]) -> None:
    while True:
        progress("more")


def index(video: str, out: str, progress: Callable[..., None]) -> str:
    """Index a video, as a service does."""
    (folder,) = index_videos([video], out, stand_ins(), rows=ROWS, progress=progress)
    return str(folder)


def speak() -> None:
    logging.getLogger("granalign_fast.video").warning("a frame of %s\nis damaged", "a.mp4")
    logging.getLogger("granalign_fast.video").debug("not asked for")
    logging.getLogger("other").warning("not ours")
    warnings.warn("a.mp4 is damaged near 2 s", DamagedVideoWarning, stacklevel=1)


def send_bytes(data: bytes) -> None:
    """Write to the channel as a process does that a hostile file has taken over."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith("socket:"):
                os.write(int(link.name), data)
    time.sleep(60)


def main() -> None:
    """Hold workers that compute, until this program is killed; print their process ids."""
    workers = Workers(2)
    print(*sorted(process.process.pid for process in workers._all), flush=True)
    for call in (spin_holding_the_lock, spin):
        threading.Thread(target=workers.run, args=(call,), daemon=True).start()
    signal.pause()


if __name__ == "__main__":
    from helpers import worker_calls  # a worker imports by this name

    worker_calls.main()
