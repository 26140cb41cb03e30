"""The standard streams of the command: closed ones are replaced, and every text can be written."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Make stdout and stderr ready for every text, also where the caller has closed them.

    1. A closed descriptor gets the null device. Otherwise the next file that is opened would take
       its number, and messages of libraries would be written into that file.
    2. A character that the encoding of the terminal lacks is written as a code, such as `\\u65e5`.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    # Python has None in the place of a stream whose descriptor was closed.
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
