"""A worker process of `workers.Workers`: ``python -m granalign_fast.runtime.worker``.

It takes calls over a socket, one after another, and ends when the program that started it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pickle
import resource
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from granalign_fast.errors import GranAlignError

from .messages import encode, receive, send

ANSWER, FAILED, OUT_OF_MEMORY, CRASHED = "answer", "failed", "memory", "crashed"
PROGRESS, LOG, WARNING = "progress", "log", "warning"
"""Kinds of messages of a worker. The first four end a call."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker."""

    memory: int | None
    """Bytes of the data segment: heap, and private memory that can be written."""
    file_bytes: int | None
    """Bytes of the largest file that it may write."""
    log_level: int
    """The level from which records of the package's loggers are sent back."""


@dataclass(frozen=True, slots=True)
class Call:
    """The message that a worker answers."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    reports: bool
    """Whether the function takes a keyword `progress`, a function."""
    processor_seconds: float | None


def main(channel: int, lifeline: int) -> None:
    """Answer calls until the program that started this process ends.

    Args:
        channel: file descriptor of a socket.
        lifeline: file descriptor of a pipe to read from; only that program can write to it.
    """
    _die_with(lifeline)
    sock = socket.socket(fileno=channel)
    setup: Setup = pickle.loads(receive(sock))
    _limit(resource.RLIMIT_DATA, setup.memory)
    _limit(resource.RLIMIT_FSIZE, setup.file_bytes)
    # No image of the memory of a crashed process: it would hold a stranger's data.
    _limit(resource.RLIMIT_CORE, 0)
    answering = _Answers(sock)
    logger = logging.getLogger("granalign_fast")
    logger.addHandler(_SendRecords(answering))
    logger.setLevel(setup.log_level)
    warnings.showwarning = answering.warn
    with contextlib.suppress(EOFError):
        while True:
            answering.answer(pickle.loads(receive(sock)))


def _die_with(lifeline: int) -> None:
    """Have the kernel end this process when the other end of a pipe is closed.

    A thread that waits for that would not run while a library holds Python's lock. The signal of
    ``PR_SET_PDEATHSIG`` comes when the thread that started the process ends, which is too early.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it was closed before the kernel was asked
        os._exit(1)


_F_SETSIG = 10
"""The kernel's number; Python 3.11 has no name for it."""


def _limit(kind: int, most: int | None) -> None:
    if most is not None:
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _limit_processor(seconds: float | None) -> None:
    """Allow this process so many more seconds of processors; SIGXCPU then ends it."""
    soft = hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if seconds is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        # The kernel counts in whole seconds.
        soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


class _Answers:
    """The worker's side of the channel."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()  # threads of a call report, log and warn

    def answer(self, call: Call) -> None:
        """Make a call, and send its result or its error."""
        options = {"progress": self.progress} if call.reports else {}
        try:
            _limit_processor(call.processor_seconds)
            self._send(ANSWER, call.function(*call.arguments, **options))
        except GranAlignError as error:
            self._send(FAILED, str(error))
        except MemoryError:
            self._send(OUT_OF_MEMORY)
        # A panic of a library in Rust is a BaseException.
        except BaseException as error:
            self._send(CRASHED, _in_words(error), traceback.format_exc(limit=-20))

    def progress(self, *values: object) -> None:
        """Report progress, as a function that is called does it."""
        self._send(PROGRESS, *values)

    def log(self, record: logging.LogRecord) -> None:
        """Send a record of a logger."""
        self._send(LOG, record.name, record.levelno, record.getMessage())

    def warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Send a warning; the arguments are those of `warnings.showwarning`."""
        self._send(WARNING, category.__module__, category.__qualname__, str(message))

    def _send(self, kind: str, *values: object) -> None:
        message = encode([kind, *values])
        with self._lock:
            send(self._sock, message)


def _in_words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an error whose own text fails
        return type(error).__name__


class _SendRecords(logging.Handler):
    """A handler that sends records to the program."""

    def __init__(self, answering: _Answers) -> None:
        super().__init__()
        self._answering = answering

    def emit(self, record: logging.LogRecord) -> None:
        self._answering.log(record)


def command(channel: int, lifeline: int) -> Sequence[str]:
    """Return the command that starts a worker with these file descriptors."""
    # -P: the folder in which the program runs is no place to import from.
    return [sys.executable, "-P", "-m", __name__, str(channel), str(lifeline)]


if __name__ == "__main__":
    # By its full name: what is unpickled refers to the classes of that module, not of __main__.
    from granalign_fast.runtime import worker

    worker.main(*map(int, sys.argv[1:]))
