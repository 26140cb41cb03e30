"""Options that several commands have, checks of their values, and how results are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.output.visible import visible

_PRESETS = (
    "tuned (the default); single, for one wanted moment of usually 20 s or more; paper, which "
    "follows the paper; visual, by frames alone; recognition, where a model answers yes or no for "
    "every clip; or reze, the same for clips of 3 s with 6 frames."
)
Preset = Annotated[str, typer.Option(help=_PRESETS)]
SearchPreset = Annotated[
    str | None,
    typer.Option(help=f"{_PRESETS} Default for an index without captions: visual."),
]
Models = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="A folder of exported models (clip, llm, vlm), or: miniatures."
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="A sentence-transformers folder, one that `export` wrote, or org/name on "
        "the hub. Default: all-MiniLM-L6-v2.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or int8. Default: that of an exported folder, otherwise fp32."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
PrefixGib = Annotated[
    float,
    typer.Option(
        min=0, help="GiB on disk for prefixes, which the vision-language model computes of frames."
    ),
]
CaptionsOnly = Annotated[
    bool,
    typer.Option(
        "--captions-only",
        help="Compare captions alone, without the models that looked at the frames of the index.",
    ),
]
Approximate = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="SHARE",
        help="Of a library with approximate indexes: the share of them that is read, such as 0.05. "
        "0: compare all clips.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
NewFolder = Annotated[Path, typer.Argument(help="A folder to write; it must not exist.")]
InputFile = Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines, plain or .gz.")]


def check_target(
    option: str,
    path: Path | None,
    suffixes: Sequence[str] = (),
    inputs: Iterable[Path | None] = (),
) -> None:
    """Raise before any work if a file cannot be written or has an unknown suffix.

    Args:
        option: that names the file.
        path: the file; None if the option is not given.
        suffixes: that its name may have; none: any.
        inputs: files that the command reads, which it must not replace.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        names = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise GranAlignError(f"{option} {path}: expected a name that ends in {names}")
    if not path.resolve().parent.is_dir():
        raise GranAlignError(f"{option} {path}: its folder is not there; make it first")
    if path.is_dir():
        raise GranAlignError(f"{option} {path}: got a folder, expected the name of a file")
    check_is_no_input(option, path, inputs)


def check_is_no_input(option: str, path: Path | None, inputs: Iterable[Path | None]) -> None:
    """Raise if a file to write is one that the command reads, under whatever name."""
    for one in inputs:
        if path is not None and one is not None and _is_same_file(path, one):
            raise GranAlignError(
                f"{option} {path}: got a file that this command reads, expected another one"
            )


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        # A device such as /dev/stdout is written to, and not replaced.
        return one.is_file() and one.samefile(other)
    except OSError:
        return False


def check_extra(package: str, what: str, extra: str) -> None:
    """Raise before any work if the package of an extra is not installed."""
    if find_spec(package) is None:
        raise MissingExtraError(what, extra)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def short(path: Path) -> str:
    """Return a path to show, relative to the current folder if that is shorter."""
    relative = os.path.relpath(path)
    return visible(min(str(path), relative, key=len))
