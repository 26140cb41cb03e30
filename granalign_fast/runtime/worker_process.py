"""The program's side of a worker process: starting it, its channel, and its end."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from .messages import send
from .worker import Setup, command


class WorkerProcess:
    """A worker process and the channel to it.

    Args:
        memory: as `Setup.memory`.
        file_bytes: as `Setup.file_bytes`.

    Raises:
        OSError: it cannot be started; nothing of it is left.
    """

    def __init__(self, memory: int | None, file_bytes: int | None) -> None:
        self._ended = False
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo:
            self.folder = tempfile.mkdtemp(prefix="granalign-worker-")
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.channel, theirs = socket.socketpair()
            undo.callback(self.channel.close)
            reading, self._lifeline = os.pipe()
            undo.callback(os.close, self._lifeline)
            try:
                self.process = subprocess.Popen(
                    command(theirs.fileno(), reading),
                    stdin=subprocess.DEVNULL,
                    # Libraries print there what a file says, with escape sequences of a terminal.
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), reading),
                    env=_environment(self.folder),
                    start_new_session=True,  # Ctrl-C reaches the program alone
                )
            finally:
                theirs.close()
                os.close(reading)
            undo.pop_all()  # it runs: `end` and `close` do this from here on
        level = logging.getLogger("granalign_fast").getEffectiveLevel()
        with contextlib.suppress(OSError):  # it has ended: the first call says so
            send(self.channel, pickle.dumps(Setup(memory, file_bytes, level)))

    def has_ended(self) -> bool:
        """Return whether the process runs no more."""
        return self.process.poll() is not None

    def end(self, grace: float = 0.0) -> int:
        """End the process; return its exit code, negative for a signal.

        Args:
            grace: seconds that it may take to end by itself.
        """
        with self._lock:
            if not self._ended:
                self._ended = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(grace)
                self.process.kill()
                self.process.wait()
                # The thread that waits for an answer wakes up.
                with contextlib.suppress(OSError):
                    self.channel.shutdown(socket.SHUT_RDWR)
                os.close(self._lifeline)
                shutil.rmtree(self.folder, ignore_errors=True)
        return self.process.returncode

    def close(self) -> None:
        """End the process, and close the channel, which no thread may be using."""
        self.end()
        self.channel.close()


def _environment(folder: str) -> dict[str, str]:
    """Return the variables of a worker, which imports what this program can import."""
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
    # Arrow's own allocator reserves 1 GiB at once, which would count as used.
    arrow = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    return {**arrow, **os.environ, "PYTHONPATH": paths, "TMPDIR": folder}
