"""``granalign datasets``: what published annotation files hold, and their content in our form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from granalign_fast.errors import GranAlignError, counted
from granalign_fast.output.visible import visible

from .options import check_target
from .verbosity import with_verbosity

if TYPE_CHECKING:
    from granalign_fast.datasets import Annotations

_log = logging.getLogger(__name__)

datasets_app = typer.Typer(
    no_args_is_help=True, help="Look into published annotation files, or convert them."
)

_Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="IN...",
        help="Annotation files of one dataset, which are joined; or one folder of captions.",
    ),
]
_Dataset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="qvhighlights, charades or activitynet. Default: recognised from the files.",
    ),
]


@datasets_app.command("show")
@with_verbosity
def show_dataset(inputs: _Inputs, dataset: _Dataset = None) -> None:
    """Say what annotation files hold, what of it is used, and show the first query."""
    if _is_captions(inputs):
        _print_captions(inputs[0])
        return
    annotations = _read(inputs, dataset)
    _print_notes(annotations)
    first = annotations.queries[0]
    rewrites = [*first.rewrites.simplified, *first.rewrites.detailed]
    length = "unknown" if first.duration is None else f"{first.duration:g} s"
    windows = ", ".join(f"{start:g} to {end:g} s" for start, end in first.windows) or "none"
    for name, value in (
        ("first query", f"qid {first.qid!r}: {first.rewrites.query}"),
        ("video", f"{first.vid}, duration {length}"),
        ("windows", windows),
        ("rewrites", " | ".join(rewrites) or "none"),
    ):
        _say(f"{name}: {value}")


@datasets_app.command("convert")
@with_verbosity
def convert(
    inputs: _Inputs,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A file to write: .jsonl or .jsonl.gz.")
    ],
    dataset: _Dataset = None,
) -> None:
    """Write annotation files in our own form: one line of JSON for each query or each video."""
    from granalign_fast.datasets.captions import caption_record, read_captions
    from granalign_fast.jsonl import write_jsonl

    check_target("OUT", out, (".jsonl", ".gz"))
    if out.exists():
        raise GranAlignError(f"{out}: already exists; name a file that does not, or delete it")
    if _is_captions(inputs):
        videos = read_captions(inputs[0])
        write_jsonl(out, map(caption_record, videos.values()))
        _say(f"Wrote {out}: the captions of {counted(len(videos), 'video')}.")
        return
    annotations = _read(inputs, dataset)
    write_jsonl(out, (query.to_record() for query in annotations.queries))
    _print_notes(annotations)
    _say(f"Wrote {out}: {counted(len(annotations.queries), 'query', 'queries')}.")


def _say(line: str) -> None:
    """Print a line on stdout; texts of the files may hold what a terminal obeys."""
    typer.echo(visible(line))


def _is_captions(inputs: Sequence[Path]) -> bool:
    """Tell whether the input is a folder, which only captions may be."""
    return len(inputs) == 1 and inputs[0].is_dir()


def _read(inputs: Sequence[Path], dataset: str | None) -> Annotations:
    """Read the files, and write their warnings to stderr."""
    from granalign_fast.datasets import read_annotations

    annotations = read_annotations(inputs, dataset)
    for warning in annotations.warnings:
        _log.warning("%s", warning)
    return annotations


def _print_notes(annotations: Annotations) -> None:
    """Print the dataset and what was taken, ignored and missing."""
    from granalign_fast.datasets.recognition import TITLES

    _say(f"dataset: {TITLES[annotations.dataset]}")
    for note in annotations.notes:
        _say(note)


def _print_captions(folder: Path) -> None:
    """Print what a folder of captions holds."""
    from granalign_fast.datasets import read_captions

    videos = read_captions(folder)
    counts = [len(video.captions) for video in videos.values()]
    first = next(iter(videos.values()))
    _say(
        f"{folder}: captions of {counted(len(videos), 'video')}, {min(counts)} to {max(counts)} "
        f"each, {sum(counts):,} together."
    )
    _say(f"first caption of {first.vid}: {first.captions[0]}")
