"""The commands ffmpeg and ffprobe, which tests use as an independent judge.

A test is skipped, here alone, where a command is not installed or lacks a filter. In CI, which
installs them, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def ffmpeg(*arguments: str | Path, data: bytes = b"") -> bytes:
    """Run ffmpeg on `data` as its input and return its output; output files are overwritten."""
    return _run("ffmpeg", "-v", "error", "-y", *arguments, data=data)


def ffprobe(*arguments: str | Path) -> str:
    """Return what ffprobe prints."""
    return _run("ffprobe", "-v", "error", *arguments).decode()


def _run(command: str, *arguments: str | Path, data: bytes = b"") -> bytes:
    if shutil.which(command) is None:
        _lacking(f"needs the command {command}: install it, for example with apt install ffmpeg")
    line = [command, *map(str, arguments)]
    done = subprocess.run(line, input=data, capture_output=True, timeout=120, check=False)
    if b"No such filter: 'zscale'" in done.stderr:
        _lacking(f"needs the command {command} with the filter zscale, which this one lacks")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def _lacking(reason: str) -> None:
    """Skip the test; fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
