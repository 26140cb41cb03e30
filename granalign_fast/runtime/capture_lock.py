"""A readers-writer lock: many runs at once, or one capture of a CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadersWriterLock:
    """Lets any number of runs on, or one capture of a CUDA graph.

    ONNX Runtime captures in CUDA's mode that forbids every thread of the process what might disturb
    it meanwhile, such as to allocate memory, to ask for an event or to load a model; it has no
    option for another one. So CuPy's calls are runs as well.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._capturing = False
        self._own = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While it lasts, nothing is captured. It may be entered again within itself.

        Never around the call of an encoder that may be captured: each would wait for the other.
        """
        if getattr(self._own, "running", False):  # to wait now would be for oneself
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._running += 1
        self._own.running = True
        try:
            yield
        finally:
            self._own.running = False
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While it lasts, nothing else runs; those that come now wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
            self._changed.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


CAPTURE_LOCK = ReadersWriterLock()
"""Of this process, as CUDA's rule is."""
