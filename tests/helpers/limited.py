"""Calls in a process of their own, with a limit on memory."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import resource, sys
from pathlib import Path
import numpy, pyarrow.parquet, pyarrow.compute
from granalign_fast.errors import GranAlignError
PATH = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    {call}
except GranAlignError as error:
    print("error:", error)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def peak_growth(call: str, path: Path, message: str) -> int:
    """Run a call that must fail with an error of one line; return the bytes by which memory grew.

    Args:
        call: a statement of Python that reads the file `PATH`.
        path: of the file.
        message: a regular expression that the error matches.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(call=call), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    error, growth = done.stdout.splitlines()
    assert re.search(message, error), error
    return int(growth)
