"""Draw the result of a search: the saliency curve and the moments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.files import replacing
from granalign_fast.index import VideoIndex
from granalign_fast.types import SearchResult

from .tables import clocks, peak_text

INK, CURVE, VARIANT, MOMENT = "#22303c", "#1f6f8b", "#9db4c0", "#f2a65a"
"""The colours of all pictures: text, saliency, the curve of one query variant, moments."""


def draw_search(index: VideoIndex, result: SearchResult, path: str | os.PathLike[str]) -> None:
    """Draw the saliency over time, and below it the best five moments with their captions.

    Args:
        index: the video that was searched.
        result: the result of the search.
        path: the picture's file; its suffix selects PNG, SVG or PDF.

    Raises:
        MissingExtraError: matplotlib is not installed.
        GranAlignError: the file cannot be written.
    """
    figure = new_figure(11, 5.2, layout="constrained")
    curve, lanes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_curve(curve, index, result)
    _draw_moments(lanes, index, result)
    title = f"“{shorten(result.query, 90)}”"
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=14, parse_math=False)
    save_figure(figure, path)


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = None) -> Any:
    """Return an empty figure of `width` x `height` inches, without pyplot or a window system.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing", "plot") from None

    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a picture completely or not at all, as PNG, SVG or PDF by the path's suffix.

    Raises:
        GranAlignError: the path has another suffix, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg", ".pdf"):
        raise GranAlignError(f"{path}: expected a name that ends in .png, .svg or .pdf")
    with replacing(path) as sink:
        figure.savefig(sink, format=suffix.removeprefix("."))


def shorten(text: str, width: int) -> str:
    """Shorten a text to one line of at most `width` characters.

    The line ends after a whole word, unless that would drop more than half of the width.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) <= width:
        return text
    start = text[: width - 4]
    words = start.rpartition(" ")[0]
    return f"{words if 2 * len(words) >= width else start} ..."


def _draw_curve(axes: Any, index: VideoIndex, result: SearchResult) -> None:
    edges = np.array([index.seconds(clip) for clip in range(len(result.saliency) + 1)])
    for i, variant in enumerate(result.curves):
        label = f"{len(result.curves)} curves of query variants" if i == 0 else None
        axes.stairs(variant, edges, color=VARIANT, linewidth=0.7, alpha=0.7, label=label)
    axes.stairs(result.saliency, edges, color=CURVE, linewidth=2.2, label="saliency, their mean")
    if result.moments:
        best = result.moments[0]
        axes.axvspan(
            best.start,
            best.end,
            color=MOMENT,
            alpha=0.35,
            linewidth=0,
            zorder=0,
            label="best moment",
        )
    axes.set(ylim=(0, 1.05), ylabel="similarity, rescaled", xlim=(0, edges[-1]))
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9, borderpad=0
    )
    plain(axes)


def _draw_moments(axes: Any, index: VideoIndex, result: SearchResult) -> None:
    end = index.seconds(len(result.saliency))
    shown = result.moments[:5]
    for rank, moment in enumerate(shown):
        axes.barh(
            rank,
            moment.end - moment.start,
            left=moment.start,
            height=0.62,
            color=MOMENT,
            alpha=1 - 0.16 * rank,
        )
        text = (
            f"{' to '.join(clocks(moment.start, moment.end))}  {moment.score:.2f}  "
            f"{shorten(peak_text(index, result, moment), 60)}"
        )
        # The label goes to the side of the bar that has more space.
        on_the_right = moment.end < 0.5 * end
        axes.annotate(
            text,
            (moment.end if on_the_right else moment.start, rank),
            xytext=(6 if on_the_right else -6, 0),
            textcoords="offset points",
            ha="left" if on_the_right else "right",
            va="center",
            fontsize=9,
            color=INK,
            parse_math=False,
        )
    axes.set(ylim=(max(len(shown), 1) - 0.4, -0.6), xlabel="seconds", ylabel="rank")
    axes.set_yticks(range(len(shown)), [str(rank + 1) for rank in range(len(shown))])
    plain(axes)


def plain(axes: Any) -> None:
    """Hide the top and right spines, and draw the ticks in the colour of text."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
