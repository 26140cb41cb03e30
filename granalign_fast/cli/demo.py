"""``granalign demo``: index and search a video that the command itself renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .index import index
from .options import check_extra, short
from .search_outputs import draw

if TYPE_CHECKING:
    from granalign_fast.miniatures.videos import AnnotatedQuery
    from granalign_fast.types import SearchResult

_SEED = 7
_SECONDS = (60.0, 66.0)
"""Bounds of the video's duration."""
_SHOWN, _ABSENT = 4, 1
"""Queries for moments that the video shows, and for one that it does not."""


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A folder for the video, the index and the picture.")
    ] = Path("granalign-demo"),
) -> None:
    """Render a minute of video, index it, search for moments, draw one of the results.

    The models are the miniatures of the package: the architectures of the large models, trained
    on scenes of coloured shapes.
    """
    from granalign_fast.index import VideoIndex
    from granalign_fast.miniatures.videos import render_video
    from granalign_fast.pipeline import MINIATURES, open_models

    check_extra("matplotlib", "drawing", "plot")
    out.mkdir(parents=True, exist_ok=True)
    video = out / "demo.mp4"
    script = render_video(video, _SEED, seconds=_SECONDS)
    typer.echo(f"rendered {short(video)}: {script.duration:.0f} s, {len(script.shots)} scenes")
    typer.echo(f"\n$ granalign index {short(video)} --models {MINIATURES} --out {short(out)}")
    index(videos=[str(video)], out=out, models=Path(MINIATURES))
    video_index = VideoIndex.load(out / "demo")
    retriever = open_models(MINIATURES, prefix_gib=1.0).retriever()
    queries = _choose(script.queries)
    results = [retriever.search(video_index, one.query.text) for one in queries]
    picture = out / "demo.png"
    typer.echo(
        f'\n$ granalign search {short(out / "demo")} "{queries[0].query.text}" '
        f"--models {MINIATURES} --plot {short(picture)}   # and so on"
    )
    _print(queries, results)
    shown = replace(results[0], moments=results[0].distinct())
    draw(video_index, shown, picture, truth=queries[0].windows)
    typer.echo(f"drawn in {short(picture)}")


def _choose(queries: Sequence[AnnotatedQuery]) -> list[AnnotatedQuery]:
    """Choose queries from all parts of the video, and one for what the video does not show."""
    shown = [one for one in queries if one.windows]
    absent = [one for one in queries if not one.windows]
    step = len(shown) / _SHOWN
    return [shown[int(i * step)] for i in range(_SHOWN)] + absent[:_ABSENT]


def _print(queries: Sequence[AnnotatedQuery], results: Sequence[SearchResult]) -> None:
    from rich.table import Table

    from granalign_fast.output.tables import clocks, show

    def span(start: float, end: float) -> str:
        return " - ".join(clocks(start, end))

    table = Table()
    table.add_column("asked for")
    for name in ("found at", "it is at", "shown at all"):
        table.add_column(name, justify="right", no_wrap=True)
    for one, result in zip(queries, results, strict=True):
        best = result.moments[0]
        table.add_row(
            one.query.text,
            span(best.start, best.end),
            "\n".join(span(start, end) for start, end in one.windows) or "nowhere",
            "" if result.exists is None else f"{result.exists:.0%}",
        )
    show(table)
