"""Draw the result of a search: its moments and the video as frames, above the saliency curve."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.types import Image, Moment, SearchResult, check_frames

from .frames import fitted
from .plot import CURVE, INK, MOMENT, new_figure, plain, save_figure, shorten
from .tables import clock, clocks, time_ticks

FRAMES = 12
"""The largest number of frames in a strip."""

Frame = tuple[float, Image]
"""Seconds, and the image."""

_TRUTH, _LANE, _FAINT, _ABSENT = "#4f9d69", "#f1f4f6", "#6b7a86", "#b3261e"
"""Colours: true moments, the background of a lane, secondary text, a query that is not shown."""

_WIDTH, _LEFT, _RIGHT, _BOTTOM = 11.0, 0.95, 0.35, 0.38
_TITLE, _CURVE_HEIGHT, _ROW, _GAP = 0.5, 1.7, 0.27, 0.12
_TALLEST, _UNDER_FRAMES = 1.25, 0.22
_INNER = _WIDTH - _LEFT - _RIGHT
"""Measures of the picture in inches: the margins, the title, the heights of curve, lanes and gaps,
the height of the tallest frame and of the times under the frames, and the width of the axes."""

_SLOT = _INNER / 5 - 0.1
"""Width in inches of a thumbnail of a moment."""

_CHARACTER = 0.09
"""Width of a wide character at 9 points, in inches; labels are placed by it."""

MAX_MOMENTS = 5
"""The largest number of moments in a picture."""


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
    thumbnails: Sequence[Image] = (),
    truth: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw a frame of each moment; below, on one time axis, frames of the video and the saliency.

    Args:
        index: the video that was searched.
        result: the result of the search; its best five moments are drawn.
        frames: times in seconds and images, uint8 RGB (height, width, 3), in any number and order,
            such as those of `strip_clips`. The video is divided into twelve stretches, or fewer for
            fewer frames; the frame nearest to the middle of each stretch is drawn. Without frames
            the picture has no strip.
        thumbnails: a frame of each of these moments, best first, such as `moment_frames` returns
            them: the strip may lack a moment. Without them the picture has no row of moments.
        path: the picture's file; its suffix selects PNG, SVG or PDF.
        truth: start and end, in seconds, of annotated moments.

    Raises:
        MissingExtraError: matplotlib is not installed.
        GranAlignError: a frame or an annotated moment is invalid, the number of thumbnails is not
            that of the moments, or the file cannot be written.
    """
    moments = result.moments[:MAX_MOMENTS]
    _check_arguments(frames, thumbnails, moments, truth)
    # 1. Compute the layout: tiles of the strip, rows of the lanes, and the heights of the panels.
    duration = index.seconds(len(result.saliency))
    tiles = _choose_tiles(frames, duration)
    rows = _assign_rows(moments, duration)
    lanes = [("predicted", max(1, 1 + max(rows, default=0)))] + [("true", 1)] * bool(truth)
    strip = _strip_height(tiles, duration)
    lanes_height = _ROW * sum(count for _, count in lanes) + _GAP * (len(lanes) - 1)
    row = _row_height(thumbnails)
    heights = [_CURVE_HEIGHT, lanes_height]
    heights[:0] = [row + _UNDER_FRAMES] * bool(thumbnails) + [strip + _UNDER_FRAMES] * bool(tiles)
    figure = new_figure(_WIDTH, _TITLE + sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM)

    # 2. Place the panels from top to bottom.
    top = figure.get_figheight() - _TITLE
    panels = []
    for height in heights:
        panels.append(_add_panel(figure, top - height, height, duration))
        top -= height + _GAP
    # 3. Draw them.
    if thumbnails:
        _draw_moments(panels[0], thumbnails, row, moments)
    if tiles:
        _draw_frames(panels[-3], tiles, strip, duration, moments[:1])
    _draw_curve(panels[-2], index, result)
    _draw_lanes(panels[-1], lanes, moments, rows, truth, duration)
    _draw_title(figure, result)
    save_figure(figure, path)


@dataclass(frozen=True, slots=True)
class _Tile:
    """A frame of the strip: the stretch of the video that it represents, its time, its image."""

    start: float
    end: float
    time: float
    image: Image


def _check_arguments(
    frames: Sequence[Frame],
    thumbnails: Sequence[Image],
    moments: Sequence[Moment],
    truth: Sequence[tuple[float, float]],
) -> None:
    if frames:
        check_frames([image for _, image in frames])
    if thumbnails:
        check_frames(thumbnails)
    if len(thumbnails) not in (0, len(moments)):
        raise GranAlignError(
            f"thumbnails: got {len(thumbnails)}, expected {len(moments)}, one for each moment drawn"
        )
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


def _row_height(thumbnails: Sequence[Image]) -> float:
    """Return the height in inches of the row of moments, in which five have room."""
    ratios = [image.shape[0] / image.shape[1] for image in thumbnails]
    return min(_TALLEST, max((_SLOT * ratio for ratio in ratios), default=0))


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
        text, colour = f"shown in this video: {result.exists:.2f}", _FAINT
        if result.probably_absent:
            text, colour = f"probably not in this video ({result.exists:.2f})", _ABSENT
        figure.text(right, y, text, ha="right", va="center", color=colour, fontsize=10)
        right -= 0.25
    title = figure.text(
        0.01, y, "", ha="left", va="center", color=INK, fontsize=14, parse_math=False
    )
    # Shorten the query until the rendered title fits.
    for width in range(100, 10, -5):
        title.set_text(f"“{shorten(result.query, width)}”")
        if title.get_window_extent().x1 <= right * figure.bbox.width:
            break


def _draw_moments(
    axes: Any,
    thumbnails: Sequence[Image],
    height: float,
    moments: Sequence[Moment],
) -> None:
    """Draw a frame of each moment from left to right, best first, with rank and times below."""
    for rank, (image, moment) in enumerate(zip(thumbnails, moments, strict=True)):
        middle = (rank + 0.5) * _INNER / 5
        label = f"#{rank + 1}  {' - '.join(clocks(moment.start, moment.end))}"
        _draw_image(axes, image, middle, _SLOT, height, 1.0, label, bordered=rank == 0)
    axes.set(xlim=(0, _INNER), ylim=(-_UNDER_FRAMES, height))
    axes.axis("off")


def _draw_frames(
    axes: Any, tiles: Sequence[_Tile], height: float, duration: float, best: Sequence[Moment]
) -> None:
    """Draw a frame of each stretch of the video, with its time below."""
    per_inch = duration / _INNER
    digits = 0 if duration >= 60 else 1 if duration >= 1 else 3
    for tile in tiles:
        middle = (tile.start + tile.end) / 2
        available = (tile.end - tile.start) / per_inch - 0.04
        # Frames of the best moment get a border.
        in_best = any(moment.start <= tile.time < moment.end for moment in best)
        label = clock(tile.time, digits=digits)
        _draw_image(axes, tile.image, middle, available, height, per_inch, label, bordered=in_best)
    axes.set(xlim=(0, duration), ylim=(-_UNDER_FRAMES, height))
    axes.axis("off")


def _draw_image(
    axes: Any,
    image: Image,
    middle: float,
    width: float,
    height: float,
    per_inch: float,
    label: str,
    *,
    bordered: bool,
) -> None:
    """Draw an image as large as fits into `width` x `height` inches, with a label below.

    Args:
        axes: whose vertical axis is in inches, with 0 below the images.
        image: uint8 RGB (height, width, 3).
        middle: of the image on the horizontal axis.
        width: most inches.
        height: most inches.
        per_inch: units of the horizontal axis in an inch.
        label: the text.
        bordered: whether the image gets a border, and its label the colour of text.
    """
    from matplotlib.patches import Rectangle

    pixels = image.shape
    scale = min(width / pixels[1], height / pixels[0])
    wide, high = pixels[1] * scale, pixels[0] * scale
    # Resample to 300 dpi, twice that of the PNG: SVG and PDF would store the full frame.
    if 300 * wide < pixels[1]:
        image = np.asarray(fitted(image, round(300 * wide), round(300 * high)))
    left, right = middle - wide * per_inch / 2, middle + wide * per_inch / 2
    bottom = (height - high) / 2
    axes.imshow(image, extent=(left, right, bottom, bottom + high), aspect="auto")
    if bordered:
        border = Rectangle((left, bottom), right - left, high, fill=False, clip_on=False)
        border.set(edgecolor=MOMENT, linewidth=3)
        axes.add_patch(border)
    colour = INK if bordered else _FAINT
    axes.text(middle, -0.05, label, ha="center", va="top", fontsize=8, color=colour)


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
    ticks = time_ticks(duration)
    axes.set_xticks([seconds for seconds, _ in ticks], [label for _, label in ticks])
    axes.set_xlim(0, duration)
