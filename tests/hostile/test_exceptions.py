"""Exceptions that nobody expected: each is one line, without a stack trace."""

from __future__ import annotations

import logging

import pytest

from granalign_fast.cli import app


class PanicError(BaseException):
    """Stands in for a panic of Rust, which is no `Exception` either."""


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (MemoryError(), "got too little memory"),
        (RecursionError("maximum recursion depth exceeded"), "got RecursionError (maximum"),
        (PanicError("index out of bounds:\nthe len is 0"), "bounds: the len is 0), which is a"),
        (KeyError("a\x1b[2J" + "x" * 5000), "which is a mistake of granalign or of a library"),
    ],
)
def test_an_unexpected_exception_is_one_line(
    raised: BaseException,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as ended:
        app.main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and message in shown
    assert shown.count("\n") == 1 and "\x1b" not in shown and len(shown) < 600


def test_verbosity_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        logging.getLogger("granalign_fast").setLevel(logging.DEBUG)
        raise ZeroDivisionError

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit):
        app.main()
    lines = capsys.readouterr().err.splitlines()
    assert any("test_exceptions.py" in line and "in fail" in line for line in lines)
    assert lines[-1].startswith("granalign: got ZeroDivisionError")
