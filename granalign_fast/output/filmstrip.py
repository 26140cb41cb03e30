"""Draw the result of a search with frames of the video above the saliency curve."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.types import Moment, SearchResult, check_frames

from .plot import CURVE, INK, MOMENT, new_figure, plain, save_figure, shorten
from .tables import clock

FRAMES = 12
"""The largest number of frames in a strip."""

Frame = tuple[float, npt.NDArray[np.uint8]]
"""Seconds, and the image, uint8 RGB (height, width, 3)."""

_TRUTH, _LANE, _FAINT = "#4f9d69", "#f1f4f6", "#6b7a86"
"""Colours: true moments, the background of a lane, secondary text."""

_WIDTH, _LEFT, _RIGHT, _BOTTOM = 11.0, 0.95, 0.35, 0.38
_TITLE, _CURVE_HEIGHT, _ROW, _GAP = 0.5, 1.7, 0.27, 0.12
_TALLEST, _UNDER_FRAMES = 1.25, 0.22
_INNER = _WIDTH - _LEFT - _RIGHT
"""Measures of the picture in inches: the margins, the title, the heights of curve, lanes and gaps,
the height of the tallest frame and of the times under the frames, and the width of the axes."""

_CHARACTER = 0.09
"""Width of a wide character at 9 points, in inches; labels are placed by it."""

_MAX_MOMENTS = 5
"""The largest number of moments in a picture."""

_TICK_STEPS = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800),
    *(3600 * hours for hours in (1, 2, 3, 6, 12, 24)),
)
"""Seconds between two ticks of the time axis: the first step with at most 12 ticks is taken."""


def strip_clips(clips: int, count: int = FRAMES) -> list[int]:
    """Return the clips for an evenly spaced strip: the middle clips of `count` equal stretches.

    Example:
        >>> strip_clips(9, 3)
        [1, 4, 7]
    """
    count = min(count, clips)
    return [(2 * tile + 1) * clips // (2 * count) for tile in range(count)]


def draw_filmstrip(
    index: VideoIndex,
    result: SearchResult,
    frames: Sequence[Frame],
    path: str | os.PathLike[str],
    *,
    truth: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw frames of the video, the saliency and the moments below each other on one time axis.

    Args:
        index: the video that was searched.
        result: the result of the search; its best five moments are drawn.
        frames: times in seconds and images, uint8 RGB (height, width, 3), in any number and order,
            such as those of `strip_clips`. The video is divided into twelve stretches, or fewer for
            fewer frames; the frame nearest to the middle of each stretch is drawn. Without frames
            the picture has no strip.
        path: the picture's file; its suffix selects PNG, SVG or PDF.
        truth: start and end, in seconds, of annotated moments.

    Raises:
        MissingExtraError: matplotlib is not installed.
        GranAlignError: a frame or an annotated moment is invalid, or the file cannot be written.
    """
    _check_arguments(frames, truth)
    # 1. Compute the layout: tiles of the strip, rows of the lanes, and the heights of the panels.
    duration = index.seconds(len(result.saliency))
    tiles = _choose_tiles(frames, duration)
    rows = _assign_rows(result.moments[:_MAX_MOMENTS], duration)
    lanes = [("predicted", max(1, 1 + max(rows, default=0)))] + [("true", 1)] * bool(truth)
    strip = _strip_height(tiles, duration)
    lanes_height = _ROW * sum(count for _, count in lanes) + _GAP * (len(lanes) - 1)
    heights = [strip + _UNDER_FRAMES] * bool(tiles) + [_CURVE_HEIGHT, lanes_height]
    figure = new_figure(_WIDTH, _TITLE + sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM)

    # 2. Place the panels from top to bottom.
    top = figure.get_figheight() - _TITLE
    panels = []
    for height in heights:
        panels.append(_add_panel(figure, top - height, height, duration))
        top -= height + _GAP
    # 3. Draw them.
    if tiles:
        _draw_frames(panels[0], tiles, strip, duration, result.moments[:1])
    _draw_curve(panels[-2], index, result)
    _draw_lanes(panels[-1], lanes, result.moments[:_MAX_MOMENTS], rows, truth, duration)
    _draw_title(figure, result)
    save_figure(figure, path)


@dataclass(frozen=True, slots=True)
class _Tile:
    """A frame of the strip: the stretch of the video that it represents, its time, its image."""

    start: float
    end: float
    time: float
    image: npt.NDArray[np.uint8]


def _check_arguments(frames: Sequence[Frame], truth: Sequence[tuple[float, float]]) -> None:
    if frames:
        check_frames([image for _, image in frames])
    for number, (time, _) in enumerate(frames):
        if not 0 <= time < math.inf:
            raise GranAlignError(f"frames[{number}]: got time {time!r}, expected seconds from 0")
    for number, (start, end) in enumerate(truth):
        if not 0 <= start < end < math.inf:
            raise GranAlignError(
                f"truth[{number}]: got {start!r} to {end!r}, expected an end after its start"
            )


def _choose_tiles(frames: Sequence[Frame], duration: float) -> list[_Tile]:
    """Choose one frame for each stretch of the video; a stretch without a frame has no tile."""
    count = min(FRAMES, len(frames))
    best: dict[int, Frame] = {}
    for time, image in frames:
        stretch = min(int(count * time / duration), count - 1)
        middle = (stretch + 0.5) * duration / count
        if stretch not in best or abs(time - middle) < abs(best[stretch][0] - middle):
            best[stretch] = (time, image)
    return [
        _Tile(stretch * duration / count, (stretch + 1) * duration / count, time, image)
        for stretch, (time, image) in sorted(best.items(), key=lambda item: item[0])
    ]


def _strip_height(tiles: Sequence[_Tile], duration: float) -> float:
    """Return the strip's height in inches: that of a frame as wide as its tile, up to a limit."""
    width = _INNER * min((tile.end - tile.start for tile in tiles), default=0) / duration
    ratios = [tile.image.shape[0] / tile.image.shape[1] for tile in tiles]
    return min(_TALLEST, max((width * ratio for ratio in ratios), default=0))


def _assign_rows(moments: Sequence[Moment], duration: float) -> list[int]:
    """Return each moment's row in its lane, such that neither bars nor labels overlap."""
    occupied: list[list[tuple[float, float]]] = []
    rows = []
    for rank, moment in enumerate(moments):
        left, right = _label_span(rank, moment, duration)
        space = 0.08 * duration / _INNER
        left, right = min(left, moment.start) - space, max(right, moment.end) + space
        row = 0
        while row < len(occupied) and any(
            left < end and start < right for start, end in occupied[row]
        ):
            row += 1
        if row == len(occupied):
            occupied.append([])
        occupied[row].append((left, right))
        rows.append(row)
    return rows


def _label(rank: int, moment: Moment) -> str:
    return f"#{rank + 1}  {moment.score:.2f}"


def _label_span(rank: int, moment: Moment, duration: float) -> tuple[float, float]:
    """Return the seconds that a label covers: inside its bar if it fits, otherwise next to it."""
    width = len(_label(rank, moment)) * _CHARACTER * duration / _INNER
    if width < moment.end - moment.start:
        middle = (moment.start + moment.end) / 2
        return middle - width / 2, middle + width / 2
    if moment.end + width <= duration:
        return moment.end, moment.end + width
    return moment.start - width, moment.start


def _add_panel(figure: Any, bottom: float, height: float, duration: float) -> Any:
    """Add axes over the video's time; `bottom` and `height` are in inches."""
    full = figure.get_figheight()
    axes = figure.add_axes((_LEFT / _WIDTH, bottom / full, _INNER / _WIDTH, height / full))
    axes.set_xlim(0, duration)
    return axes


def _draw_title(figure: Any, result: SearchResult) -> None:
    y = 1 - 0.5 * _TITLE / figure.get_figheight()
    right = 1 - _RIGHT / _WIDTH
    if result.exists is not None:
        text = f"shown in this video: {result.exists:.2f}"
        figure.text(right, y, text, ha="right", va="center", color=_FAINT, fontsize=10)
        right -= 0.2
    title = figure.text(
        0.01, y, "", ha="left", va="center", color=INK, fontsize=14, parse_math=False
    )
    # Shorten the query until the rendered title fits.
    for width in range(100, 10, -5):
        title.set_text(f"“{shorten(result.query, width)}”")
        if title.get_window_extent().x1 <= right * figure.bbox.width:
            break


def _draw_frames(
    axes: Any, tiles: Sequence[_Tile], height: float, duration: float, best: Sequence[Moment]
) -> None:
    from matplotlib.patches import Rectangle

    per_inch = duration / _INNER
    for tile in tiles:
        # Scale the frame to its tile, in inches.
        available = (tile.end - tile.start) / per_inch - 0.04
        pixels = tile.image.shape
        scale = min(available / pixels[1], height / pixels[0])
        wide, high = pixels[1] * scale, pixels[0] * scale
        # Resample to 300 dpi, twice that of the PNG: SVG and PDF would store the full frame.
        size = (max(1, round(300 * wide)), max(1, round(300 * high)))
        picture = Image.fromarray(tile.image)
        if size[0] < pixels[1]:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        middle = (tile.start + tile.end) / 2
        left, right = middle - wide * per_inch / 2, middle + wide * per_inch / 2
        bottom = (height - high) / 2
        axes.imshow(np.asarray(picture), extent=(left, right, bottom, bottom + high), aspect="auto")
        # Frames of the best moment get a border.
        in_best = any(moment.start <= tile.time < moment.end for moment in best)
        if in_best:
            axes.add_patch(
                Rectangle(
                    (left, bottom),
                    right - left,
                    high,
                    fill=False,
                    edgecolor=MOMENT,
                    linewidth=3,
                    clip_on=False,
                )
            )
        axes.text(
            middle,
            -0.05,
            clock(tile.time, fine=duration < 60),
            ha="center",
            va="top",
            fontsize=8,
            color=INK if in_best else _FAINT,
        )
    axes.set(xlim=(0, duration), ylim=(-_UNDER_FRAMES, height))
    axes.axis("off")


def _draw_curve(axes: Any, index: VideoIndex, result: SearchResult) -> None:
    clips = len(result.saliency)
    edges = np.array([index.seconds(clip) for clip in range(clips + 1)])
    # With thousands of clips, a wide line would fill the whole panel.
    width = min(2.2, max(0.5, 2.2 * 300 / clips))
    axes.stairs(result.saliency, edges, baseline=None, color=CURVE, linewidth=width)
    axes.stairs(result.saliency, edges, color=CURVE, fill=True, alpha=0.12, linewidth=0)
    for best in result.moments[:1]:
        axes.axvspan(best.start, best.end, color=MOMENT, alpha=0.35, linewidth=0, zorder=0)
    axes.set(ylim=(0, 1.05), ylabel="saliency")
    axes.yaxis.label.set_color(INK)
    plain(axes)
    _draw_time_axis(axes, edges[-1])
    axes.tick_params(labelbottom=False)


def _draw_lanes(
    axes: Any,
    lanes: Sequence[tuple[str, int]],
    moments: Sequence[Moment],
    rows: Sequence[int],
    truth: Sequence[tuple[float, float]],
    duration: float,
) -> None:
    # The vertical axis is in inches from the top. First the backgrounds and names of the lanes.
    below = 0.0
    tops = {}
    for name, count in lanes:
        tops[name] = below
        axes.axhspan(below, below + count * _ROW, color=_LANE, linewidth=0, zorder=0)
        middle = (-0.09 / _INNER, below + count * _ROW / 2)
        margin = axes.get_yaxis_transform()  # x in widths of the axes, y in inches
        axes.text(*middle, name, transform=margin, ha="right", va="center", fontsize=10, color=INK)
        below += count * _ROW + _GAP
    # Then the predicted moments with their labels, and the annotated moments.
    for rank, (moment, row) in enumerate(zip(moments, rows, strict=True)):
        y = tops["predicted"] + (row + 0.5) * _ROW
        _draw_bar(axes, moment.start, moment.end, y, MOMENT, 1.0 if rank == 0 else 0.45)
        left, right = _label_span(rank, moment, duration)
        weight = "bold" if rank == 0 else "normal"
        axes.text(
            (left + right) / 2,
            y,
            _label(rank, moment),
            ha="center",
            va="center_baseline",
            fontsize=9,
            color=INK,
            weight=weight,
        )
    if not moments:
        y = tops["predicted"] + _ROW / 2
        style = {"ha": "center", "va": "center_baseline", "fontsize": 9, "color": _FAINT}
        axes.text(duration / 2, y, "no moments", **style)
    for start, end in truth:
        _draw_bar(axes, start, end, tops["true"] + _ROW / 2, _TRUTH, 1.0)
    axes.set_ylim(below - _GAP, 0)
    axes.set_yticks([])
    plain(axes)
    axes.spines["left"].set_visible(False)
    _draw_time_axis(axes, duration)


def _draw_bar(axes: Any, start: float, end: float, y: float, colour: str, alpha: float) -> None:
    # The edge keeps a moment of a few seconds visible in a video of hours.
    axes.barh(
        y,
        end - start,
        left=start,
        height=0.7 * _ROW,
        color=colour,
        edgecolor=colour,
        linewidth=1.2,
        alpha=alpha,
    )


def _draw_time_axis(axes: Any, duration: float) -> None:
    step = next((step for step in _TICK_STEPS if duration / step <= 12), math.ceil(duration / 12))
    ticks = [step * number for number in range(int(duration / step) + 1)]
    axes.set_xticks(ticks, [clock(tick, fine=step < 1) for tick in ticks])
    axes.set_xlim(0, duration)
