"""``granalign index``: video files to indexes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Device, Json, PrefixGib, print_json, short
from .progress import progress_bar

if TYPE_CHECKING:
    from granalign_fast.index.builder import Progress


def index(
    videos: Annotated[list[Path], typer.Argument(help="Video files.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A folder; each video gets a folder in it.")
    ],
    models: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="A folder of exported models (vlm, clip), or: miniatures."
        ),
    ],
    clip_seconds: Annotated[float, typer.Option(help="Length of a clip in seconds.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, help="Frames in a batch.")] = 16,
    device: Device = "cpu",
    prefix_gib: PrefixGib = 4.0,
    as_json: Json = False,
) -> None:
    """Caption and embed videos. Run the same command again to resume."""
    from granalign_fast.pipeline import open_models

    opened = open_models(models, device=device, prefix_gib=prefix_gib)
    with clip_progress(hidden=as_json) as progress:
        folders = opened.index(videos, out, clip_seconds=clip_seconds, rows=rows, progress=progress)
    if as_json:
        print_json({"indexes": [str(folder) for folder in folders]})
    else:
        for folder in folders:
            typer.echo(f"indexed: {short(folder)}")


@contextmanager
def clip_progress(*, hidden: bool) -> Iterator[Progress | None]:
    """Show how many clips are indexed; yields the `progress` of `index_videos`."""
    with progress_bar("indexing", "clips", hidden=hidden) as advance:
        if advance is None:
            yield None
            return
        done = 0

        def report(clips: int, total: int, vid: str) -> None:
            nonlocal done
            advance(clips - done, total)
            done = clips

        yield report
