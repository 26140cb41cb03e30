"""An event loop in a thread of its own, which runs the requests of all callers.

Callers are plain functions, and some run inside an event loop themselves, as in a notebook. A
request that is cancelled ends at once: its task is cancelled and its connection closed.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of this process; the first call starts its thread."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="granalign-http", daemon=True).start()
        return _loop


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine in the background loop, and return its result.

    An exception in the calling thread, such as Ctrl-C, cancels the coroutine.
    """
    future = asyncio.run_coroutine_threadsafe(work, background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _forget() -> None:
    """Forget the loop in a child process, which does not have its thread."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
