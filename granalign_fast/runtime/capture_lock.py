"""A readers-writer lock: many runs at once, or one capture of a CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadersWriterLock:
    """Readers-writer lock: runs are readers, the capture of a CUDA graph is the writer.

    While ONNX Runtime captures, CUDA forbids every thread of the process to do what might disturb
    the capture: allocate memory, query an event, load a model. ONNX Runtime has no option for a
    capture mode that forbids less. CuPy's calls therefore count as runs, too.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        self._local = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep captures out. A thread that holds the lock may enter it again.

        Do not hold it around the call of an encoder that may be captured: the capture and the
        holder would wait for each other.
        """
        # A thread that already reads must not wait: a waiting writer waits for this very thread.
        if getattr(self._local, "reading", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._readers += 1
        self._local.reading = True
        try:
            yield
        finally:
            self._local.reading = False
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep all runs and all other captures out. New runs wait until it is released."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            # From here on no new reader enters; wait for those that are inside.
            self._writing = True
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


CAPTURE_LOCK = ReadersWriterLock()
"""The lock of this process. There is one, because CUDA's rule holds for the whole process."""
