"""Draw backgrounds, shapes and signs with NumPy and Pillow."""

from __future__ import annotations

import functools
from math import ceil, cos, floor, pi, sin

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIDE = 112
"""Height and width of a frame, in pixels."""

Colour = tuple[float, float, float]
_Points = list[tuple[float, float]]
_FINER = 4  # shapes are drawn this much larger, then averaged, for smooth edges

# The letters of the signs: seven rows, separated by commas, of five columns.
_GLYPHS = {
    "a": " ### ,#   #,#   #,#####,#   #,#   #,#   #",
    "c": " ####,#    ,#    ,#    ,#    ,#    , ####",
    "e": "#####,#    ,#    ,#### ,#    ,#    ,#####",
    "f": "#####,#    ,#    ,#### ,#    ,#    ,#    ",
    "i": "#####,  #  ,  #  ,  #  ,  #  ,  #  ,#####",
    "n": "#   #,##  #,##  #,# # #,#  ##,#  ##,#   #",
    "o": " ### ,#   #,#   #,#   #,#   #,#   #, ### ",
    "p": "#### ,#   #,#   #,#### ,#    ,#    ,#    ",
    "s": " ####,#    ,#    , ### ,    #,    #,#### ",
    "t": "#####,  #  ,  #  ,  #  ,  #  ,  #  ,  #  ",
    "x": "#   #,#   #, # # ,  #  , # # ,#   #,#   #",
    "z": "#####,    #,   # ,  #  , #   ,#    ,#####",
}
_DOT = 2  # pixels of a glyph's dot
_INK = (20.0, 20.0, 25.0)
_PLATE = (245.0, 245.0, 235.0)


def background(
    colour: Colour, texture: str, phase: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    """Return an empty frame, float32 (112, 112, 3), values 0 to 255.

    Args:
        colour: red, green, blue.
        texture: ``"plain"``, ``"lines"`` or ``"spots"``.
        phase: two phases of the texture, and the angle of its lines, in radians.
    """
    down, across = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    shade = np.zeros((SIDE, SIDE), np.float32)
    if texture == "lines":
        along = across * cos(phase[2]) + down * sin(phase[2])
        shade = (30.0 * np.sin(along * (2 * pi / 11.0) + phase[0])).astype(np.float32)
    elif texture == "spots":
        bumps = np.cos(across * (2 * pi / 13.0) + phase[0]) + np.cos(
            down * (2 * pi / 13.0) + phase[1]
        )
        shade = np.where(bumps > 1.0, np.float32(45), np.float32(-6))
    frame: npt.NDArray[np.float32] = np.array(colour, np.float32) + shade[..., None]
    return frame


def paint_shape(
    frame: npt.NDArray[np.float32],
    shape: str,
    colour: Colour,
    centre: tuple[float, float],
    radius: float,
    angle: float,
) -> None:
    """Draw a shape onto a frame, in place.

    Args:
        frame: float32 (112, 112, 3).
        shape: one of `SHAPES`.
        colour: red, green, blue.
        centre: across and down, in pixels; may lie outside the frame.
        radius: half the shape's extent, in pixels.
        angle: rotation in radians.
    """
    half = ceil(radius * 1.15) + 1
    left, top = floor(centre[0]) - half, floor(centre[1]) - half
    mask = Image.new("L", (2 * half * _FINER, 2 * half * _FINER))
    draw = ImageDraw.Draw(mask)
    for outline, inside in _outlines(shape):
        points = [
            (
                (centre[0] - left + radius * (x * cos(angle) - y * sin(angle))) * _FINER,
                (centre[1] - top + radius * (x * sin(angle) + y * cos(angle))) * _FINER,
            )
            for x, y in outline
        ]
        draw.polygon(points, fill=255 if inside else 0)
    cover = np.asarray(mask.reduce(_FINER), np.float32)[..., None] / np.float32(255)
    _blend(frame, cover, np.array(colour, np.float32), left, top)


def paint_sign(frame: npt.NDArray[np.float32], word: str, centre: tuple[float, float]) -> None:
    """Draw a plate with a word onto a frame, in place; `centre` is across and down in pixels."""
    ink = _sign(word)
    height, width = ink.shape
    left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
    blank, dark = np.array(_PLATE, np.float32), np.array(_INK, np.float32)
    plate = blank + (dark - blank) * ink[..., None]
    everywhere = np.ones((height, width, 1), np.float32)
    _blend(frame, everywhere, plate.astype(np.float32), left, top)


def sign_size(word: str) -> tuple[int, int]:
    """Return the width and height of a word's plate, in pixels."""
    height, width = _sign(word).shape
    return width, height


def _blend(
    frame: npt.NDArray[np.float32],
    cover: npt.NDArray[np.float32],
    colour: npt.NDArray[np.float32],
    left: int,
    top: int,
) -> None:
    """Blend a colour into the part of the frame that `cover` overlaps."""
    height, width = cover.shape[:2]
    rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    part = frame[rows, columns]
    skip_y, skip_x = max(-top, 0), max(-left, 0)
    inside = slice(skip_y, skip_y + part.shape[0]), slice(skip_x, skip_x + part.shape[1])
    over = colour if colour.ndim == 1 else colour[inside]
    part += cover[inside] * (over - part)


@functools.cache
def _sign(word: str) -> npt.NDArray[np.float32]:
    """Return the plate of a word: 1 for ink, 0 elsewhere, with a margin of two dots."""
    letters = [[list(row) for row in _GLYPHS[letter].split(",")] for letter in word]
    gap = [[" "]] * 7
    columns = letters[0]
    for letter in letters[1:]:
        columns = [a + b + c for a, b, c in zip(columns, gap, letter, strict=True)]
    dots = np.pad(np.array(columns) == "#", 2)
    return np.kron(dots, np.ones((_DOT, _DOT))).astype(np.float32)


def _circle(radius: float) -> _Points:
    return [(radius * cos(i * pi / 20), radius * sin(i * pi / 20)) for i in range(40)]


def _star() -> _Points:
    radii = (1.1, 0.46)
    return [(radii[i % 2] * sin(i * pi / 5), -radii[i % 2] * cos(i * pi / 5)) for i in range(10)]


def _cross() -> _Points:
    arm = 0.34
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turned = [quarter]
    for _ in range(3):
        turned.append([(-y, x) for x, y in turned[-1]])
    return [point for corner in turned for point in corner]


@functools.cache
def _outlines(shape: str) -> list[tuple[_Points, bool]]:
    """Return the outlines of a shape of radius 1, and whether each is filled or a hole."""
    if shape == "ring":
        return [(_circle(1.0), True), (_circle(0.5), False)]
    simple = {
        "circle": _circle(1.0),
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0.0, -1.0), (1.0, 0.75), (-1.0, 0.75)],
        "star": _star(),
        "cross": _cross(),
    }
    return [(simple[shape], True)]
