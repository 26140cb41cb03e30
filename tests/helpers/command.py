"""Run the command in this process."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from granalign_fast import cli, pipeline

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


class SharedModels:
    """The package's own models, which commands of several tests share.

    Most of a short command's time goes into loading models. Folders of models are opened anew.
    """

    def __init__(self) -> None:
        names = ("open_models", "SentenceEncoder")
        self._open = {name: _once(getattr(pipeline, name)) for name in names}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let commands open these models once."""
        for name, function in self._open.items():
            monkeypatch.setattr(pipeline, name, function)


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    kept = functools.cache(function)

    def opened(source: Any = None, **options: Any) -> Any:
        own = source is None or str(source) == pipeline.MINIATURES
        return (kept if own else function)(source, **options)

    return opened
