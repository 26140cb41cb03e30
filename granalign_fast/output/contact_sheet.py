"""Draw a contact sheet of a search: a frame of each moment, with its rank, times and score."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing
from granalign_fast.types import Image, SearchResult, check_frames

from .frames import fitted
from .plot import shorten
from .tables import absence, clocks, shown_at_all

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
"""The suffixes of a contact sheet, and the names of their formats."""

_WIDTH, _HEIGHT, _LABEL, _MARGIN = 320, 240, 30, 16
"""Pixels: the largest frame, the height of the line below it, the space around frames."""

_LEAST_WIDTH = 4 * _WIDTH
"""Pixels of the heading's lines, for a sheet of few moments."""

_TITLE, _LINE, _TITLE_SIZE, _TEXT_SIZE = 34, 24, 24, 17
"""Pixels: heights of the heading's lines, and sizes of the fonts."""

_PAPER, _PANEL, _INK, _FAINT, _ABSENT = "#ffffff", "#edf1f4", "#22303c", "#5b6873", "#b3261e"
"""Colours: the sheet, what is behind a frame and its label, text, secondary text, warnings."""

_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf")
"""Fonts of many alphabets, which most systems have. Pillow brings one for ASCII alone."""


def draw_contact_sheet(
    result: SearchResult,
    frames: Sequence[Image],
    path: str | os.PathLike[str],
    *,
    warnings: Sequence[str] = (),
) -> None:
    """Draw a frame of each moment, best first, in rows from left to right.

    Args:
        result: the result of the search, with the moments to draw.
        frames: of each moment, such as `moment_frames` returns them.
        path: the picture's file, in JPEG or PNG by its suffix.
        warnings: about the answer; they are lines of the heading.

    Raises:
        GranAlignError: there is no moment, the number of frames is not that of the moments, the
            path has another suffix, or the file cannot be written.
    """
    form = SUFFIXES.get(Path(path).suffix.lower())
    if form is None:
        raise GranAlignError(f"{path}: expected a name that ends in .jpg, .jpeg or .png")
    if len(frames) != len(result.moments):
        raise GranAlignError(
            f"frames: got {len(frames)}, expected {len(result.moments)}, one for each moment"
        )
    check_frames(frames)
    # 1. Compute the layout: as many columns as rows, but at least four if there are as many frames.
    columns = min(len(frames), max(4, math.isqrt(len(frames) - 1) + 1))
    pictures = [fitted(frame, _WIDTH, _HEIGHT) for frame in frames]
    cell = max(picture.height for picture in pictures) + _LABEL + _MARGIN
    lines = _heading(result, warnings)
    top = _MARGIN + _TITLE + _LINE * len(lines) + _MARGIN // 2
    width = _MARGIN + max(columns * (_WIDTH + _MARGIN), _LEAST_WIDTH + _MARGIN)
    sheet = Pillow.new("RGB", (width, top + math.ceil(len(frames) / columns) * cell), _PAPER)
    draw = ImageDraw.Draw(sheet)
    # 2. Draw the heading.
    title, text = _font(_TITLE_SIZE), _font(_TEXT_SIZE)
    space = width - 2 * _MARGIN
    _draw_line(draw, (_MARGIN, _MARGIN), f"“{result.query}”", title, _INK, space)
    for number, (line, colour) in enumerate(lines):
        y = _MARGIN + _TITLE + number * _LINE
        _draw_line(draw, (_MARGIN, y), line, text, colour, space)
    # 3. Draw the frames with their labels; all labels of a row are on one line.
    for number, (picture, moment) in enumerate(zip(pictures, result.moments, strict=True)):
        row, column = divmod(number, columns)
        left, above = _MARGIN + column * (_WIDTH + _MARGIN), top + row * cell
        below = above + cell - _LABEL - _MARGIN
        draw.rectangle((left, above, left + _WIDTH - 1, below + _LABEL - 1), fill=_PANEL)
        sheet.paste(picture, (left + (_WIDTH - picture.width) // 2, below - picture.height))
        label = f"#{number + 1}   {' - '.join(clocks(moment.start, moment.end))}"
        draw.text((left + 6, below + 4), label, fill=_INK, font=text)
        score = f"{moment.score:.3f}"
        draw.text((left + _WIDTH - 6, below + 4), score, fill=_FAINT, font=text, anchor="ra")
    # 4. Write the file.
    with replacing(path) as sink:
        sheet.save(sink, form, quality=90)


def _heading(result: SearchResult, warnings: Sequence[str]) -> list[tuple[str, str]]:
    """Return the lines under the query, each with its colour."""
    likely = shown_at_all(result)
    absent = absence(result)
    lines = [(absent, _ABSENT)] if absent else []
    named = result.vid if absent or likely is None else f"{result.vid}, {likely}"
    lines.append((named, _FAINT))
    return lines + [(f"warning: {warning}", _ABSENT) for warning in warnings]


def _draw_line(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: str,
    width: int,
) -> None:
    """Draw a text in one line, shortened to a width in pixels."""
    if not isinstance(font, ImageFont.FreeTypeFont) or font.getname()[0] == "Aileron":
        text = _without_accents(text)
    length = len(text)
    shown = shorten(text, length)
    while length > 10 and draw.textlength(shown, font) > width:
        length -= max(1, length // 20)
        shown = shorten(text, length)
    draw.text(place, shown, fill=colour, font=font)


def _without_accents(text: str) -> str:
    """Return letters without their accents, which Pillow's own font lacks."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the first font of `_FONTS` that this system has, or Pillow's own."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
