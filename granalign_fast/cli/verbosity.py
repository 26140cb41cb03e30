"""The options `-v` and `-q` of every command, and the log messages that they choose on stderr."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.output.visible import visible

_LOGGER = logging.getLogger("granalign_fast")
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
"""Levels without an option, with `-v`, and with `-vv` or more."""

_Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Show what takes time or writes files; -vv: more.",
    ),
]
_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show errors only: no warnings, no progress.")
]


def with_verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with the options `--verbose` and `--quiet` added to its own.

    They are set before the command runs. They are added here, not in the signature of each
    command, because a command also calls other commands and never reads these two.
    """

    @functools.wraps(command)
    def run(*args: Any, verbose: int = 0, quiet: bool = False, **options: Any) -> Any:
        set_verbosity(verbose, quiet=quiet)
        return command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    keyword = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    added = [
        keyword("verbose", default=0, annotation=_Verbose),
        keyword("quiet", default=False, annotation=_Quiet),
    ]
    parameters = [*signature.parameters.values(), *added]
    # Typer reads the options from these two attributes.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def set_verbosity(verbose: int, *, quiet: bool) -> None:
    """Set the level of messages that reach stderr; without an option it stays as it is.

    Raises:
        GranAlignError: both options are given.
    """
    if quiet and verbose:
        raise GranAlignError("--quiet and --verbose: got both, expected one of them")
    if quiet:
        _LOGGER.setLevel(logging.ERROR)
    elif verbose:
        _LOGGER.setLevel(_LEVELS[min(verbose, len(_LEVELS) - 1)])


def is_quiet() -> bool:
    """Return whether warnings and progress are to be left out."""
    return not _LOGGER.isEnabledFor(logging.WARNING)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Write the package's log messages to stderr inside the block, from warnings on."""
    handler = _Stderr()
    level = _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(_LEVELS[0])
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)


def write_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Write a Python warning as one line, in the place of `warnings.showwarning`."""
    if not is_quiet():
        _write("warning", str(message))


class _Stderr(logging.Handler):
    """Writes each message as one line: ``granalign: info: ...``.

    A warning is written once: a model logs it, and the command repeats it with the answer.
    `sys.stderr` is looked up for each message: a progress bar replaces it while it is shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; debug messages name their module."""
        kind = record.levelname.lower()
        if record.levelno <= logging.DEBUG:
            kind += f": {record.name}"
        try:
            message = record.getMessage()
            if record.levelno == logging.WARNING:
                if message in self._warned:
                    return
                self._warned.add(message)
            _write(kind, message)
        except Exception:  # a message that cannot be formatted must not end the command
            self.handleError(record)


def _write(kind: str, message: str) -> None:
    sys.stderr.write(f"granalign: {kind}: {visible(' '.join(message.split()))}\n")
