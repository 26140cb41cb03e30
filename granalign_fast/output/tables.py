"""Show the result of a search: a table for the terminal, a record for ``--json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table

from granalign_fast.files import escape_undecodable
from granalign_fast.index import VideoIndex
from granalign_fast.types import Moment, SearchResult

from .visible import is_unsafe


def show(content: RenderableType) -> None:
    """Print a table or a line; text that looks like Rich mark-up is printed unchanged.

    Control characters and those that change the direction of text are left out.
    """
    Console(highlight=False, markup=False, emoji=False).print(_Harmless(content))


@dataclass(frozen=True)
class _Harmless:
    """Content for Rich without control characters in its text; Rich's own styles stay."""

    content: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.content, options):
            if segment.control:
                yield segment
            else:  # Rich has split the text into lines
                kept = (c for c in segment.text if c == "\n" or not is_unsafe(c))
                yield segment._replace(text="".join(kept))


def clock(seconds: float, *, digits: int = 1) -> str:
    """Format seconds, with so many decimals: ``1:02.0`` for 62, ``1:00:02.0`` for 3602."""
    scale = 10**digits
    minutes, rest = divmod(round(seconds * scale) if digits else int(seconds + 0.5), 60 * scale)
    last = f"{rest / scale:0{3 + digits}.{digits}f}" if digits else f"{rest:02}"
    if minutes < 60:
        return f"{minutes}:{last}"
    return f"{minutes // 60}:{minutes % 60:02}:{last}"


def clocks(start: float, end: float, *, digits: int = 1) -> tuple[str, str]:
    """Format the start and the end of a stretch, in seconds.

    A stretch that is shorter than the last decimal has more of them, up to three, so that its start
    and its end differ.

    >>> clocks(62, 64), clocks(0, 0.04)
    (('1:02.0', '1:04.0'), ('0:00.00', '0:00.04'))
    """
    while digits < _MOST_DIGITS and (end - start) * 10**digits < 1 - 1e-6:
        digits += 1
    return clock(start, digits=digits), clock(end, digits=digits)


_MOST_DIGITS = 3
"""Decimals of a second that are shown at most."""


def length(seconds: float, *, digits: int = 1) -> str:
    """Format a length; with more decimals, up to three, where it would be shown as 0."""
    return clocks(0, seconds, digits=digits)[1] if seconds > 0 else clock(0, digits=digits)


_TICK_STEPS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800),
    *(3600 * hours for hours in (1, 2, 3, 6, 12, 24)),
)
"""Seconds between two ticks of a time axis: the first step with few enough ticks is taken."""


def time_ticks(duration: float, most: int = 12) -> list[tuple[float, str]]:
    """Return the ticks of a time axis: seconds and label of each, from 0, in at most `most` steps.

    >>> time_ticks(130, 3)
    [(0, '0:00'), (60, '1:00'), (120, '2:00')]
    """
    least = 0.1 if duration >= 0.1 else _TICK_STEPS[0]
    fitting = (step for step in _TICK_STEPS if step >= least and duration / step <= most)
    step = next(fitting, math.ceil(duration / most))
    digits = next(digits for digits in range(_MOST_DIGITS + 1) if step * 10**digits >= 1)
    ticks = [step * number for number in range(int(duration / step) + 1)]
    return [(tick, clock(tick, digits=digits)) for tick in ticks]


def peak_clip(index: VideoIndex, result: SearchResult, moment: Moment) -> int:
    """Return the number of the moment's clip with the highest saliency."""
    clips = np.arange(len(result.saliency)) * index.video.clip_seconds
    inside = (clips >= moment.start) & (clips < moment.end)
    return int(np.where(inside, result.saliency, -1).argmax())


def peak_caption(index: VideoIndex, result: SearchResult, moment: Moment) -> str | None:
    """Return the caption of the moment's clip with the highest saliency; None without captions."""
    captions = index.video.captions
    return None if captions is None else captions[peak_clip(index, result, moment)]


def peak_text(index: VideoIndex, result: SearchResult, moment: Moment) -> str:
    """Return what `peak_caption` does; without captions, the second of that clip's frame."""
    caption = peak_caption(index, result, moment)
    if caption is not None or index.frames is None:
        return caption or ""
    return f"frame at {clock(index.frames.pictured_at(peak_clip(index, result, moment)))}"


def shown_at_all(result: SearchResult) -> str | None:
    """Return how likely the video shows the query, in words; None if no model has judged it."""
    return None if result.exists is None else f"shown at all: {result.exists:.0%} likely"


def absence(result: SearchResult) -> str | None:
    """Return the line that comes before all others if the video probably lacks the query."""
    if not result.probably_absent:
        return None
    return f"probably not in this video ({shown_at_all(result)})"


def search_record(
    index: VideoIndex,
    result: SearchResult,
    warnings: Sequence[str] = (),
    *,
    overlapping: bool = False,
) -> dict[str, Any]:
    """Return a search as JSON: moments in seconds, saliency of every clip, captions, timings.

    Args:
        index: the video that was searched.
        result: the result of the search, with the moments to show.
        warnings: about the answer.
        overlapping: whether the moments are the list that benchmarks score, not distinct ones.
    """
    path = None if index.frames is None else index.frames.path
    return {
        "probably_absent": result.probably_absent,
        "warnings": list(warnings),
        "vid": result.vid,
        "video": None if path is None else escape_undecodable(str(path)),
        "models": dict(index.models),
        "query": result.query,
        "rewrites": None if result.rewrites is None else result.rewrites.to_record(),
        "exists": None if result.exists is None else round(result.exists, 4),
        "clip_seconds": index.video.clip_seconds,
        "missing": missing_stretches(index),
        "list": "overlapping" if overlapping else "distinct",
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


def print_moments(
    index: VideoIndex, result: SearchResult, warnings: Sequence[str] = (), note: str | None = None
) -> None:
    """Print a table of the moments, best first.

    Args:
        index: the video that was searched.
        result: the result of the search, with the moments to show.
        warnings: about the answer; they follow the table.
        note: about the list of moments; it comes after the warnings.
    """
    if absent := absence(result):
        show(absent)
    table = Table(title=f"{result.query}  ({result.vid})", title_justify="left")
    for name in ("start", "end", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("its best clip")
    for moment in result.moments:
        table.add_row(
            *clocks(moment.start, moment.end),
            f"{moment.score:.3f}",
            peak_text(index, result, moment),
        )
    show(table)
    for warning in warnings:
        show(f"warning: {warning}")
    if note is not None:
        show(note)
    if likely := shown_at_all(result):
        show(likely)
