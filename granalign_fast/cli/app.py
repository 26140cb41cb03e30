"""The application: its commands, and how an error or a warning reaches the user."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.output.visible import visible

from .bench import bench
from .cache import cache_app
from .datasets import datasets_app
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate, score
from .export import export_app
from .index import index
from .library import library_app
from .models import models_app
from .search import search
from .serve import serve
from .streams import prepare_streams
from .verbosity import logging_to_stderr, with_verbosity, write_warning

_log = logging.getLogger(__name__)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (index, search, serve, demo, evaluate, score, doctor, bench):
    app.command()(with_verbosity(command))
app.add_typer(export_app, name="export")
app.add_typer(models_app, name="models")
app.add_typer(datasets_app, name="datasets")
app.add_typer(cache_app, name="cache")
app.add_typer(library_app, name="library")


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import platform

    from .diagnosis import installed_version

    names = ("onnxruntime", "onnxruntime-gpu")
    runtimes = [f"{name} {number}" for name in names if (number := installed_version(name))]
    version = sys.modules[
        "granalign_fast"
    ].__version__  # read, not imported: a floor above this one
    parts = [f"Python {platform.python_version()}", *(runtimes or ["no onnxruntime"])]
    typer.echo(f"granalign-fast {version} ({', '.join(parts)})")
    raise typer.Exit


@app.callback()
@with_verbosity
def start(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the versions of granalign-fast, Python and ONNX Runtime.",
        ),
    ] = False,
) -> None:
    """Find the moment in a video that a sentence describes."""


def main() -> None:
    """Run the command line; an error is one line, and the exit code 2."""
    prepare_streams()
    try:
        with warnings.catch_warnings(), logging_to_stderr():
            warnings.showwarning = write_warning
            # matplotlib warns of every character that its font lacks, and draws a box instead.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
            try:
                _check_arguments(sys.argv[1:])
                app()
            except BaseException as error:
                _log_frames(error)
                raise
    except GranAlignError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of stdout has gone; Python would write an error when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    except MemoryError:
        _fail("got too little memory; search fewer videos at once, or take smaller models")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        _fail(
            f"got {type(error).__name__} ({one_line(error)}), which is a mistake of granalign or "
            f"of a library; run it again with -vv to see where, and report it"
        )


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse empty arguments: as a path, an empty text is the current folder.

    Raises:
        GranAlignError: an argument is empty, such as a variable of the shell that is not set.
    """
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option = argument[:-1] if re.fullmatch("--[^=]+=", argument) else before
        if not argument or option != before:
            name = f"{option}: " if option.startswith("-") else ""
            raise GranAlignError(f"{name}got an empty argument, expected a value")


def _log_frames(error: BaseException) -> None:
    """Log where an error comes from, a line for each call; only `-vv` shows it."""
    if isinstance(error, SystemExit) or not _log.isEnabledFor(logging.DEBUG):
        return
    for frame in traceback.extract_tb(error.__traceback__):
        _log.debug("%s:%s in %s", frame.filename, frame.lineno, frame.name)


def _fail(message: str) -> None:
    sys.stderr.write(f"granalign: {visible(message)}\n")
    sys.exit(2)
