"""Show the result of a search: a table for the terminal, a record for ``--json``."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table

from granalign_fast.index import VideoIndex
from granalign_fast.types import Moment, SearchResult


def show(content: RenderableType) -> None:
    """Print a table or a line; text that looks like Rich mark-up is printed unchanged."""
    Console(highlight=False, markup=False, emoji=False).print(content)


def clock(seconds: float, *, fine: bool = True) -> str:
    """Format seconds: ``1:02.0`` for 62, ``1:00:02.0`` for 3602; without tenths unless `fine`."""
    tenths = round(seconds * 10) if fine else int(seconds + 0.5) * 10
    minutes, rest = divmod(tenths, 600)
    last = f"{rest / 10:04.1f}" if fine else f"{rest // 10:02}"
    if minutes < 60:
        return f"{minutes}:{last}"
    return f"{minutes // 60}:{minutes % 60:02}:{last}"


def peak_caption(index: VideoIndex, result: SearchResult, moment: Moment) -> str:
    """Return the caption of the moment's clip with the highest saliency."""
    clips = np.arange(len(result.saliency)) * index.video.clip_seconds
    inside = (clips >= moment.start) & (clips < moment.end)
    best = int(np.where(inside, result.saliency, -1).argmax())
    return index.video.captions[best]


def search_record(index: VideoIndex, result: SearchResult) -> dict[str, Any]:
    """Return a search as JSON: moments in seconds, saliency of every clip, captions, timings."""
    return {
        "vid": result.vid,
        "query": result.query,
        "rewrites": None if result.rewrites is None else result.rewrites.to_record(),
        "exists": None if result.exists is None else round(result.exists, 4),
        "clip_seconds": index.video.clip_seconds,
        "missing": missing_stretches(index),
        "moments": [
            {
                "start": moment.start,
                "end": moment.end,
                "score": round(moment.score, 6),
                "caption": peak_caption(index, result, moment),
            }
            for moment in result.moments
        ],
        "saliency": [round(value, 4) for value in result.saliency.tolist()],
        "aware": {str(clip): caption for clip, caption in result.aware.items()},
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
    }


def missing_stretches(index: VideoIndex) -> list[list[float]]:
    """Return the stretches in seconds whose picture the video file lacks."""
    return [] if index.frames is None else [list(stretch) for stretch in index.frames.missing]


def print_moments(index: VideoIndex, result: SearchResult) -> None:
    """Print a table of the moments, best first."""
    table = Table(title=f"{result.query}  ({result.vid})", title_justify="left")
    for name in ("start", "end", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("its best clip")
    for moment in result.moments:
        table.add_row(
            clock(moment.start),
            clock(moment.end),
            f"{moment.score:.3f}",
            peak_caption(index, result, moment),
        )
    show(table)
    if missing := missing_stretches(index):
        text = ", ".join(f"{clock(begin)} to {clock(end)}" for begin, end in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        show(f"this index is partial: the file lacks the picture of {text}{more}")
    if result.exists is not None:
        show(f"shown at all: {result.exists:.0%} likely")
