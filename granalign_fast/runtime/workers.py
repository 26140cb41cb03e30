"""Worker processes with limits, for work on files and texts that strangers made.

A decoder, a tokenizer or a model that a hostile file crashes, slows down or fills with data costs
one call, and the program goes on. `Workers.run` is that boundary; `worker` is its other side. The
limits bound what a call uses. They are no sandbox: a worker has the rights of its user.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import queue
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from granalign_fast.errors import GranAlignError, short_repr

from .messages import MalformedMessage, decode, receive, send
from .worker import (
    ANSWER,
    CRASHED,
    FAILED,
    LOG,
    OUT_OF_MEMORY,
    PROGRESS,
    WARNING,
    Call,
)
from .worker_process import WorkerProcess

_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")


class WorkerError(GranAlignError):
    """A call in a worker process was ended, or failed by an error that is not a `GranAlignError`.

    Attributes:
        reason: ``"time"``, ``"memory"``, ``"cancelled"``, ``"crash"`` (the process has ended or
            sent nonsense, or the function raised some other error) or ``"closed"``.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one call in a worker. None stands for no limit.

    Raises:
        GranAlignError: a limit is no positive number.
    """

    seconds: float = 600.0
    """Seconds by the clock; `Workers.run` takes another number for one call."""
    processor_seconds: float | None = None
    """Seconds of processors, over all threads; the kernel counts in whole seconds."""
    memory: int | None = 4 << 30
    """Bytes of heap and of private memory that can be written (``RLIMIT_DATA``). Files that are
    mapped to be read, such as weights, do not count. 4 GiB: the miniatures take 0.4."""
    file_bytes: int | None = 4 << 30
    """Bytes of the largest file that a worker may write."""
    answer_bytes: int = 1 << 28
    """Bytes of the largest answer: 256 MiB, which are in the program's own memory."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value, may_be_none = getattr(self, name), name not in ("seconds", "answer_bytes")
            number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            if not (number or (value is None and may_be_none)):
                raise GranAlignError(
                    f"{name}: got {short_repr(value)}, expected a number above 0"
                    + (", or None" if may_be_none else "")
                )


class Workers:
    """A fixed number of worker processes that make calls one after another, within limits.

    A worker that passes a limit, ends or sends nonsense is replaced; the call that it made raises a
    `WorkerError`. When this program ends, even by ``kill -9``, the kernel ends its workers.

    Args:
        count: calls at the same time.
        limits: of each call.
        reuse: let a worker make many calls, so that models stay loaded between them. With False,
            each call has a process of its own, and nothing of one file is there for the next one.

    Example:
        >>> from os.path import basename
        >>> with Workers() as workers:
        ...     workers.run(basename, "/videos/yard.mp4")
        'yard.mp4'
    """

    def __init__(self, count: int = 1, limits: Limits | None = None, *, reuse: bool = True) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise GranAlignError(f"count: got {short_repr(count)}, expected an integer from 1")
        self.limits = limits or Limits()
        self._reuse = reuse
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()
        self._all: set[WorkerProcess] = set()
        self._lost = 0
        """Workers that have ended and are not replaced yet."""
        # Also when the object is forgotten, or the interpreter ends.
        self._finalizer = weakref.finalize(self, _close_all, self._all)
        for _ in range(count):
            self._idle.put(self._start())

    def run(
        self,
        function: Callable[..., _Value],
        *arguments: object,
        seconds: float | None = None,
        progress: Callable[..., object] | None = None,
        cancel: threading.Event | None = None,
    ) -> _Value:
        """Call a function in a worker, and return its result.

        It waits for a free worker first. Log records and warnings of the call appear here.

        Args:
            function: a function of a module that can be imported. It returns None, numbers, texts,
                bytes, arrays, or lists and dictionaries of these. A tuple arrives as a list, and a
                path as a text, because nothing that a worker sends is unpickled.
            *arguments: of the function, anything that can be pickled.
            seconds: the deadline of this call, from its start in a worker; None for that of
                `limits`.
            progress: the function gets a keyword argument `progress`; what it calls that with is
                passed to this. An error that this raises ends the call.
            cancel: when it is set, the call ends within a tenth of a second.

        Raises:
            WorkerError: the call took too long, needed too much memory, was cancelled, or ended its
                process; or the function raised another error than a `GranAlignError`.
            GranAlignError: the function raised it; or no worker process can be started.
        """
        seconds = self.limits.seconds if seconds is None else seconds
        call = Call(function, arguments, progress is not None, self.limits.processor_seconds)
        message = _pickled(call)
        process = self._take(cancel)
        conversation = _Conversation(process, self.limits, seconds, cancel)
        try:
            return conversation.run(message, progress)  # type: ignore[no-any-return]
        except WorkerError:
            if self._closed.is_set():
                raise _closed() from None
            raise
        finally:
            self._give_back(process, conversation.complete and self._reuse)

    def close(self) -> None:
        """End all workers at once, and the calls that they make."""
        self._closed.set()
        with self._lock:
            for process in self._all:
                process.end()  # the thread of its call closes the channel
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> WorkerProcess:
        try:
            process = WorkerProcess(self.limits.memory, self.limits.file_bytes)
        except OSError as error:
            raise GranAlignError(
                f"a worker cannot be started ({error}); free disk space or memory, and try again"
            ) from None
        with self._lock:
            self._all.add(process)
        return process

    def _take(self, cancel: threading.Event | None) -> WorkerProcess:
        """Wait for a free worker; raise if there is none and none can be started."""
        while not self._closed.is_set():
            if cancel is not None and cancel.is_set():
                raise _cancelled()
            try:
                process = self._idle.get(timeout=_STEP)
            except queue.Empty:
                self._replace_lost()
                continue
            if process.has_ended():  # while it waited: the kernel needed its memory, for one
                self._give_back(process, False)
                continue
            return process
        raise _closed()

    def _replace_lost(self) -> None:
        """Start a worker in the place of one that has ended.

        Raises:
            GranAlignError: it cannot be started, and there is no other one to wait for.
        """
        with self._lock:
            if self._closed.is_set() or not self._lost:
                return
            self._lost -= 1
        try:
            self._idle.put(self._start())
        except GranAlignError:
            with self._lock:
                self._lost += 1
                if not self._all:
                    raise

    def _give_back(self, process: WorkerProcess, reusable: bool) -> None:
        if reusable and not self._closed.is_set():
            self._idle.put(process)
        else:
            process.close()
            with self._lock:
                self._all.discard(process)
                self._lost += 1
            # The call has its own result or error. The next one tries again.
            with contextlib.suppress(GranAlignError):
                self._replace_lost()
        if self._closed.is_set():  # perhaps in this instant
            self.close()


_STEP = 0.05
"""Seconds between two looks at whether a call is cancelled."""


def _closed() -> WorkerError:
    return WorkerError("the workers are closed; make new ones", "closed")


def _close_all(processes: set[WorkerProcess]) -> None:
    for process in list(processes):
        process.close()


def _pickled(call: Call) -> bytes:
    if getattr(call.function, "__module__", None) == "__main__":
        raise GranAlignError(
            f"function: got {short_repr(call.function)} of the script itself, which a worker "
            f"cannot import; move it into a module"
        )
    try:
        return pickle.dumps(call)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise GranAlignError(
            f"function and arguments: cannot be sent to a worker ({error}); give a function of a "
            f"module and plain values"
        ) from None


class _Conversation:
    """One call: the messages to and from a worker, up to a deadline.

    Attributes:
        complete: whether the worker has answered, so that it can make another call.
    """

    def __init__(
        self, process: WorkerProcess, limits: Limits, seconds: float, cancel: threading.Event | None
    ) -> None:
        self._process, self._limits = process, limits
        self._seconds, self._cancel = seconds, cancel
        self._end = time.monotonic() + seconds
        self.complete = False

    def run(self, message: bytes, progress: Callable[..., object] | None) -> Any:
        """Return the result; an error of `progress` or of a filter of warnings stays as it is."""
        channel = self._process.channel
        with self._explaining():
            channel.settimeout(self._seconds)
            send(channel, message)
        while True:
            with self._explaining():
                kind, *values = decode(receive(channel, self._limits.answer_bytes, self._wait))
                wanted = progress if kind == PROGRESS else _VALUES.get(kind) == len(values)
                if not wanted:
                    raise MalformedMessage(short_repr(kind))
            if kind == ANSWER:
                self.complete = True
                return values[0]
            self._handle(kind, values, progress)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn an error of the channel or of what came through it into a WorkerError."""
        try:
            yield
        except (MalformedMessage, ValueError, TypeError) as error:
            if isinstance(error, GranAlignError):
                raise
            raise WorkerError(f"the worker sent what is no answer ({error})", "crash") from None
        except (OSError, EOFError):
            self._wait()
            raise self._death() from None

    def _wait(self) -> None:
        """Set the timeout of the next read.

        Raises:
            WorkerError: the call is cancelled, or its time has passed.
        """
        left = self._end - time.monotonic()
        if self._cancel is not None:
            if self._cancel.is_set():
                raise _cancelled()
            left = min(left, _STEP)
        if left <= 0:
            raise WorkerError(f"it took more than {self._seconds:g} s", "time")
        self._process.channel.settimeout(left)

    def _handle(self, kind: str, values: list[Any], progress: Callable[..., object] | None) -> None:
        """Pass a message on; raise the error that ended the call."""
        if kind == PROGRESS and progress is not None:
            progress(*values)
        elif kind == LOG:
            name, level, text = values
            if str(name).partition(".")[0] == "granalign_fast" and level in _LEVELS:
                logging.getLogger(str(name)).log(level, "%s", _in_one_line(text))
        elif kind == WARNING:
            module, name, text = values
            warnings.warn(_warning(module, name, _in_one_line(text)), stacklevel=4)
        elif kind == FAILED:
            self.complete = True
            raise GranAlignError(_in_one_line(values[0]))
        elif kind == OUT_OF_MEMORY:
            raise WorkerError(f"it needed more than {self._memory()} of memory", "memory")
        elif kind == CRASHED:
            text, trace = values
            self.complete = True
            _log.debug("an error in a worker: %s", short_repr(trace, 4000))
            raise WorkerError(f"it failed by an unexpected error: {_in_one_line(text)}", "crash")

    def _memory(self) -> str:
        most = self._limits.memory
        return "this machine has" if most is None else f"{most / (1 << 20):,.0f} MiB"

    def _death(self) -> WorkerError:
        """Return the error of a process that has ended by itself."""
        code = self._process.end(_SECONDS_TO_EXIT)
        if code >= 0:
            return WorkerError(f"its process ended, with exit code {code}", "crash")
        # Most signals of real time have no name.
        name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
        if name == "SIGXCPU":
            most = self._limits.processor_seconds
            bound = "this program may take" if most is None else f"{most:g} s of processors"
            return WorkerError(f"it took more than {bound}", "time")
        # Libraries in C++ and Rust end the process where Python raises MemoryError.
        hint = {
            "SIGABRT": f", as where it needs more than {self._memory()} of memory",
            "SIGKILL": ", as where the machine has no memory left",
        }.get(name, "")
        return WorkerError(f"its process was ended by {name}{hint}", "crash")


_VALUES = {ANSWER: 1, FAILED: 1, OUT_OF_MEMORY: 0, CRASHED: 2, LOG: 3, WARNING: 3}
"""How many values each kind of message has; a report of progress has any number."""
_LEVELS = range(logging.CRITICAL + 1)
_SECONDS_TO_EXIT = 5.0
"""Seconds that a process has from closing its channel to its end; then it is killed."""
_MOST_TEXT = 2000


def _in_one_line(text: object) -> str:
    """Return a text of a worker in one line of bounded length."""
    line = " ".join(str(text).split())
    return line if len(line) <= _MOST_TEXT else line[: _MOST_TEXT - 3] + "..."


def _warning(module: object, name: object, text: str) -> Warning:
    """Return a warning of a class that this program has imported; a UserWarning for others."""
    found = getattr(sys.modules.get(str(module)), str(name), None)
    if isinstance(found, type) and issubclass(found, Warning):
        with contextlib.suppress(Exception):  # a class that is not made of a text alone
            return found(text)
    return UserWarning(text)


def _cancelled() -> WorkerError:
    return WorkerError("the call was cancelled", "cancelled")
