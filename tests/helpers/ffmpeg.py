"""Debian's ffmpeg and ffprobe commands, which tests use as an independent judge."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg and overwrite its output; the test is skipped where the command is missing."""
    _run("ffmpeg", "-v", "error", "-y", *arguments)


def ffprobe(*arguments: str | Path) -> str:
    """Return what ffprobe prints; the test is skipped where the command is missing."""
    return _run("ffprobe", "-v", "error", *arguments)


def _run(command: str, *arguments: str | Path) -> str:
    if shutil.which(command) is None:
        pytest.skip(f"{command}: not on the PATH; install the package ffmpeg")
    done = subprocess.run(
        [command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
