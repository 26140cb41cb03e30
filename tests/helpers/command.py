"""Run the command in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from granalign_fast import cli

Granalign = Callable[..., tuple[int, str, str]]
"""Takes the words of a command; returns exit code, stdout and stderr."""


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Granalign:
    """Return a function that runs ``granalign``."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["granalign", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run
