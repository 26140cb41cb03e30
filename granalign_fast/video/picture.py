"""Turn decoded frames into the pictures that a player shows.

The tags of each frame decide, because they can change within a file: pixel format, matrix, range,
transfer function, primaries, field order and display matrix. FFmpeg deinterlaces, converts YUV to
RGB and resizes; the transfer functions of HDR and wide gamuts are those of `tone_mapping`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .container import display_matrix
from .tone_mapping import BT2020, HLG, LINEAR, PQ, WIDE_PRIMARIES, tone_map

if TYPE_CHECKING:
    import av

# Code points of ITU-T H.273, which FFmpeg uses for the tags of a frame.
_UNSPECIFIED = 2
_FULL_RANGE = 2
_BT2020_MATRICES = {9, 10, 13, 14}
"""BT.2020 with non-constant and constant luminance, chromaticity-derived constant luminance, and
ICtCp. swscale converts the first alone; the others are converted like it, which is approximate."""
_SWSCALE_MATRICES = {1, 4, 5, 6, 7, 9}
"""BT.709, FCC, BT.601 (625 and 525 lines), SMPTE 240M and BT.2020: swscale refuses other tags."""

_PLANAR = {
    "nv12": "yuv420p",
    "nv16": "yuv422p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "p010le": "yuv420p10le",
    "p210le": "yuv422p10le",
    "y210le": "yuv422p10le",
}
"""Planar formats with the same samples as the formats of capture cards and hardware decoders."""

_ESTDIF_FORMATS = ("yuv4", "yuvj4", "yuva4", "gbr", "gray")
"""Beginnings of the names of the pixel formats that FFmpeg's `estdif` reads."""

_MOST_STRETCH = 8
"""The highest ratio of a pixel's sides that is believed: real videos stay below 4."""


def displayed_picture(
    frame: av.VideoFrame, pixel_aspect: Fraction | None = None
) -> npt.NDArray[np.uint8]:
    """Return the picture that a player shows, uint8 RGB (height, width, 3), C-contiguous.

    The steps, each only for frames that need it:

    1. An interlaced frame becomes its first field, with the missing lines interpolated by
       FFmpeg's `estdif`. This filter needs no other frame; `yadif` and `bwdif` need the frames
       before and after, which the reader skips. The time of the frame stays.
    2. The frame's matrix and range give RGB. A YUV frame without a tag has the matrix of BT.709 if
       it is wider than 1279 or higher than 576 pixels, else that of BT.601, as in mpv.
    3. The width is scaled by the pixel aspect.
    4. PQ, HLG, linear light and wide gamuts become BT.709 (`tone_map`).
    5. The display matrix turns and mirrors the picture, rounded to the nearest quarter turn.

    Alpha is dropped. Primaries close to those of BT.709 (BT.601) are shown as they are.

    Args:
        frame: a decoded frame.
        pixel_aspect: width of a pixel divided by its height; None for square pixels.
    """
    matrix = display_matrix(frame)
    bt709, transfer, primaries = _is_bt709(frame), frame.color_trc, _wide_primaries(frame)
    white = _white_of_rgb48(frame)
    width = _displayed_width(frame, pixel_aspect)
    options: dict[str, Any] = {}
    if width != frame.width:
        options = {"width": width, "interpolation": "BICUBIC"}
    if (colorspace := _corrected_matrix(frame)) is not None:
        options["src_colorspace"] = colorspace
    if frame.interlaced_frame:
        frame = _deinterlace(frame)
    image: npt.NDArray[Any]
    if bt709:
        image = frame.to_ndarray(format="rgb24", **options)
    else:
        signal: npt.NDArray[Any] = frame.to_ndarray(format="rgb48le", **options)
        image = tone_map(signal, transfer, primaries, white)
    return np.ascontiguousarray(_turn(image, matrix))


def displayed_size(frame: av.VideoFrame, pixel_aspect: Fraction | None = None) -> tuple[int, int]:
    """Return the height and width of the picture that `displayed_picture` returns."""
    height, width = frame.height, _displayed_width(frame, pixel_aspect)
    matrix = display_matrix(frame)
    return (width, height) if matrix is not None and _swaps_axes(matrix) else (height, width)


def conversion_reason(frame: av.VideoFrame, pixel_aspect: Fraction | None = None) -> str | None:
    """Return why the picture is more than the frame in RGB, such as "must be deinterlaced".

    Returns:
        The predicate of a sentence about the frames, or None if there is no reason.
    """
    matrix = display_matrix(frame)
    if matrix is not None and _swaps_axes(matrix) == (np.prod(_signs(matrix)) == 1):
        return "must be mirrored"
    if turns := quarter_turns(frame):
        return f"must be turned by {turns * 90} degrees"
    if not _is_bt709(frame):
        return "must be converted to BT.709 from HDR or a wide gamut"
    if frame.interlaced_frame:
        return "must be deinterlaced"
    if _displayed_width(frame, pixel_aspect) != frame.width:
        return "must be scaled to square pixels"
    return None


def quarter_turns(frame: av.VideoFrame) -> int:
    """Return how many quarter turns counter-clockwise turn a stored frame upright."""
    return round(frame.rotation / 90) % 4


def _swaps_axes(matrix: npt.NDArray[np.int32]) -> bool:
    """Tell whether the display matrix swaps rows and columns: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    return abs(b) + abs(c) > abs(a) + abs(d)


def _signs(matrix: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Return -1 for each axis, y' and x', that the display matrix reverses, else 1."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    y, x = (b, c) if _swaps_axes(matrix) else (d, a)
    return -1 if y < 0 else 1, -1 if x < 0 else 1


def _turn(image: npt.NDArray[Any], matrix: npt.NDArray[np.int32] | None) -> npt.NDArray[Any]:
    """Return a view of the image, turned and mirrored by the display matrix."""
    if matrix is None:
        return image
    rows, columns = _signs(matrix)  # for quarter turns only the signs matter
    return (image.swapaxes(0, 1) if _swaps_axes(matrix) else image)[::rows, ::columns]


def _displayed_width(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> int:
    """Return the frame's width in square pixels, before it is turned."""
    if not pixel_aspect or not 1 / _MOST_STRETCH <= pixel_aspect <= _MOST_STRETCH:
        return frame.width
    return max(1, int(frame.width * pixel_aspect + Fraction(1, 2)))


def _corrected_matrix(frame: av.VideoFrame) -> str | None:
    """Return PyAV's name of the frame's matrix, or None if swscale reads it from the frame."""
    tag = frame.colorspace
    if tag in _SWSCALE_MATRICES:
        return None
    if frame.format.is_rgb:
        return None if tag in (0, _UNSPECIFIED) else "ITU709"  # any name that swscale accepts
    if tag in _BT2020_MATRICES or frame.color_trc in (PQ, HLG):
        return "BT2020"
    if frame.color_primaries == BT2020:
        return "BT2020"
    if frame.width >= 1280 or frame.height > 576:
        return "ITU709"
    return "ITU601"


def _is_bt709(frame: av.VideoFrame) -> bool:
    """Tell whether the colours of the frame need no more than its matrix and range."""
    return frame.color_trc not in (LINEAR, PQ, HLG) and _wide_primaries(frame) is None


def _wide_primaries(frame: av.VideoFrame) -> int | None:
    """Return the code point of the frame's primaries if they are wider than those of BT.709."""
    primaries: int = frame.color_primaries
    if primaries in WIDE_PRIMARIES:
        return primaries
    # HDR without a tag for its primaries is BT.2020, and so is anything with BT.2020's matrix.
    implied = frame.color_trc in (PQ, HLG) or frame.colorspace in _BT2020_MATRICES
    return BT2020 if primaries == _UNSPECIFIED and implied else None


def _white_of_rgb48(frame: av.VideoFrame) -> int:
    """Return the value to which swscale converts the frame's full signal in ``rgb48le``.

    It shifts YUV to the left instead of stretching it to 65535.
    """
    if frame.format.is_rgb:
        return 65535
    if frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj"):
        bits = min(16, frame.format.components[0].bits)
        return ((1 << bits) - 1) << (16 - bits)
    return 65283


def _deinterlace(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the frame's first field as a whole frame.

    A frame below 3 x 3 pixels stays, and one whose pixel format `estdif` does not read: FFmpeg
    would convert it and might change the matrix and the range.
    """
    from av.filter import Graph

    name = frame.format.name
    planar = _PLANAR.get(name, name[:-2] + "le" if name.endswith("be") else name)
    if frame.width < 3 or frame.height < 3 or not planar.startswith(_ESTDIF_FORMATS):
        return frame
    if planar != name:
        frame = frame.reformat(format=planar)
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    # PyAV does not tell which field is the first, but the filter reads it from the frame.
    fields = graph.add("estdif", "mode=frame:parity=auto:deint=all")
    graph.link_nodes(source, fields, graph.add("buffersink")).configure()
    graph.push(frame)
    graph.push(None)
    return graph.pull()  # type: ignore[return-value]
