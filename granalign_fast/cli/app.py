"""The application: its commands, and how an error reaches the user."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from granalign_fast.errors import GranAlignError

from .bench import bench
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate, score
from .export import export_app
from .search import index, search

app = typer.Typer(
    help="Find the moment in a video that a sentence describes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (index, search, demo, evaluate, score, doctor, bench):
    app.command()(command)
app.add_typer(export_app, name="export")


def main() -> None:
    """The entry point: an error that a user can cause is one line, and the exit code 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            # matplotlib, of every character that its font lacks, and draws a box in its place.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
            app()
    except GranAlignError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the line of source that gave it."""
    sys.stderr.write(f"granalign: warning: {' '.join(str(message).split())}\n")


def _fail(message: str) -> None:
    sys.stderr.write(f"granalign: {message}\n")
    sys.exit(2)
