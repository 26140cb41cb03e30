"""Turn decoded frames into the pictures that a player shows.

The tags of each frame decide, because they can change within a file: pixel format, matrix, range,
transfer function, primaries, field order and display matrix. FFmpeg deinterlaces, converts YUV to
RGB and resizes. The transfer functions of HDR and wide gamuts are computed here (`tone_map`).
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .container import display_matrix

if TYPE_CHECKING:
    import av

Floats = npt.NDArray[np.float32]

# Code points of ITU-T H.273, which FFmpeg uses for the tags of a frame.
_UNSPECIFIED = 2
_BT2020_PRIMARIES, _DCI_P3, _DISPLAY_P3 = 9, 11, 12
_LINEAR, _PQ, _HLG = 8, 16, 18
_FULL_RANGE = 2
_BT2020_MATRICES = {9, 10, 13, 14}
"""BT.2020 with non-constant and constant luminance, chromaticity-derived constant luminance, and
ICtCp. swscale converts the first alone; the others are converted like it, which is approximate."""
_SWSCALE_MATRICES = {1, 4, 5, 6, 7, 9}
"""BT.709, FCC, BT.601 (625 and 525 lines), SMPTE 240M and BT.2020: swscale refuses other tags."""

_REFERENCE_WHITE = 203.0
"""cd/m2: HDR white that becomes SDR white (BT.2408, section 2.1)."""

_PEAK_QUANTILE = 0.9999
"""Share of the pixels that are not brighter than a frame's peak; the rest are clipped highlights.
libplacebo, which mpv and VLC use, also ignores the brightest few pixels."""

_PEAK_SAMPLES = 250_000
"""Pixels, about, from which a frame's peak is measured: all of them would take as long as the
tone mapping itself."""

_BLOCK = 1 << 14
"""Pixels that are converted at a time, so that the intermediate arrays fit into a CPU cache."""

_STEPS = 4096
"""Entries of the tables of the tone curve and of the SDR gamma. Both are indexed by the square root
of light, so that an entry is at most a quarter of an 8-bit step except in the darkest colours."""

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

_PRIMARIES = {
    _BT2020_PRIMARIES: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    _DCI_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    _DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""Chromaticities x, y of red, green and blue of the gamuts that are wider than BT.709 (H.273,
table 2). White is D65 for all: DCI white would tint what is white on other screens."""
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_D65 = (0.3127, 0.3290)


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
    if tag in _BT2020_MATRICES or frame.color_trc in (_PQ, _HLG):
        return "BT2020"
    if frame.color_primaries == _BT2020_PRIMARIES:
        return "BT2020"
    if frame.width >= 1280 or frame.height > 576:
        return "ITU709"
    return "ITU601"


def _is_bt709(frame: av.VideoFrame) -> bool:
    """Tell whether the colours of the frame need no more than its matrix and range."""
    return frame.color_trc not in (_LINEAR, _PQ, _HLG) and _wide_primaries(frame) is None


def _wide_primaries(frame: av.VideoFrame) -> int | None:
    """Return the code point of the frame's primaries if they are wider than those of BT.709."""
    primaries: int = frame.color_primaries
    if primaries in _PRIMARIES:
        return primaries
    # HDR without a tag for its primaries is BT.2020, and so is anything with BT.2020's matrix.
    implied = frame.color_trc in (_PQ, _HLG) or frame.colorspace in _BT2020_MATRICES
    return _BT2020_PRIMARIES if primaries == _UNSPECIFIED and implied else None


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


def tone_map(
    signal: npt.NDArray[np.uint16], transfer: int, primaries: int | None, white: int = 65535
) -> npt.NDArray[np.uint8]:
    """Convert full-range R'G'B' of any transfer function and gamut to SDR in BT.709.

    FFmpeg's swscale has a tone curve too (`out_transfer` of its filter `scale`). It was measured
    and not chosen: it computes a table for about 5 s before the first frame, then takes longer
    per frame, and without metadata it expects highlights of 10,000 cd/m2, so that a scene without
    highlights loses 8% of its contrast. The formulas, in cd/m2:

    - PQ to light: SMPTE ST 2084, equation 4.1.
    - HLG to light: BT.2100, table 5, for a screen of 1,000 cd/m2 with the system gamma 1.2.
    - Other functions are shown unchanged, through the gamma of BT.1886.
    - Light above reference white: the EETF of BT.2390, section 5.4.1, from the frame's own peak to
      203 cd/m2. It scales R, G and B together by the curve of the largest, so hue and saturation
      stay. A frame without such light keeps its colours.
    - Primaries: linear conversion by XYZ; colours outside BT.709 are clipped (BT.2407, annex 2).
    - Light to SDR: BT.1886, with 203 cd/m2 as white (BT.2408).

    Args:
        signal: uint16 (height, width, 3).
        transfer: code point of the transfer function in H.273.
        primaries: code point of the primaries in H.273, or None for BT.709.
        white: the value of the full signal; higher ones count as this.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = signal.shape[:2]
    matrix, light_table = _to_bt709(primaries), _light_table(transfer, white)
    # 1. Measure the peak of the frame's largest components on a grid of its pixels.
    gains = None
    if transfer in (_PQ, _HLG):
        step = max(1, round((height * width / _PEAK_SAMPLES) ** 0.5))
        sample = _to_light(signal[::step, ::step].reshape(-1, 3), light_table, transfer).max(0)
        rank = min(sample.size - 1, int(_PEAK_QUANTILE * sample.size))
        peak = float(np.partition(sample, rank)[rank])
        if peak > _REFERENCE_WHITE:
            gains = _tone_curve(peak)
    pixels = signal.reshape(-1, 3)
    result = np.empty(pixels.shape, np.uint8)
    table = _sdr_table()
    for first in range(0, len(pixels), _BLOCK):
        # 2. Convert a block to light, and dim it by the tone curve.
        light = _to_light(pixels[first : first + _BLOCK], light_table, transfer)
        if gains is not None:
            largest = np.maximum(np.maximum(light[0], light[1]), light[2])
            light *= gains.take(_table_index(largest * np.float32(1 / peak)))
        # 3. Convert to BT.709, one component at a time: three sums are ten times as fast as a
        # product of matrices with such short rows.
        for component, weights in enumerate(matrix):
            part = light[0] * weights[0]
            part += light[1] * weights[1]
            part += light[2] * weights[2]
            result[first : first + _BLOCK, component] = table.take(_table_index(part))
    return result.reshape(signal.shape)


def _table_index(light: Floats) -> npt.NDArray[np.int32]:
    """Return the entries for light, 1 at the table's end; clip and overwrite the light."""
    np.clip(light, 0, 1, out=light)
    np.sqrt(light, out=light)
    light *= _STEPS - 1
    light += 0.5
    return light.astype(np.int32)


def _to_light(pixels: npt.NDArray[np.uint16], table: Floats, transfer: int) -> Floats:
    """Return the light (3, count), float32, in cd/m2, of R'G'B' pixels (count, 3)."""
    light: Floats = table.take(pixels.T)
    if transfer == _HLG:
        # The system gamma applies to the luminance of the scene: BT.2100, table 5.
        luminance = light[0] * np.float32(0.2627)
        luminance += light[1] * np.float32(0.6780)
        luminance += light[2] * np.float32(0.0593)
        light *= 1000 * luminance ** np.float32(0.2)
    return light


@cache
def _light_table(transfer: int, white: int) -> Floats:
    """Return the light for each value of a 16-bit signal; for HLG, that of the scene, 0 to 1."""
    signal = np.minimum(np.arange(1 << 16) / white, 1)
    if transfer == _PQ:
        light = _pq_to_light(signal)
    elif transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    elif transfer == _LINEAR:
        light = signal * _REFERENCE_WHITE
    else:
        light = signal**2.4 * _REFERENCE_WHITE
    return light.astype(np.float32)


_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
"""The constants of SMPTE ST 2084."""


def _pq_to_light(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    power = signal ** (1 / _PQ_M2)
    light = np.maximum(power - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * power)
    return 10_000 * light ** (1 / _PQ_M1)


def _light_to_pq(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    power = (light / 10_000) ** _PQ_M1
    return ((_PQ_C1 + _PQ_C2 * power) / (1 + _PQ_C3 * power)) ** _PQ_M2


def _tone_curve(peak: float) -> Floats:
    """Return by how much light is dimmed so that `peak` becomes white: the EETF of BT.2390.

    Entry i is for light of (i / (_STEPS - 1)) ** 2 * peak; the black level is 0 on both sides.
    """
    light = np.linspace(0, 1, _STEPS) ** 2 * peak
    top = _light_to_pq(np.array(peak))
    white = _light_to_pq(np.array(_REFERENCE_WHITE)) / top
    signal = _light_to_pq(light) / top
    knee = 1.5 * white - 0.5
    t = np.maximum(signal - knee, 0) / (1 - knee)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * white
    )
    dimmed = _pq_to_light(np.where(signal < knee, signal, spline) * top)
    light[0] = dimmed[0] = 1.0  # black stays; avoids 0 / 0
    return (dimmed / light).astype(np.float32)


@cache
def _sdr_table() -> npt.NDArray[np.uint8]:
    """Return the 8-bit signal of BT.1886 for light of (i / (_STEPS - 1)) ** 2 of white."""
    signal = np.linspace(0, 1, _STEPS) ** (2 / 2.4)
    return np.rint(signal * 255).astype(np.uint8)


@cache
def _to_bt709(primaries: int | None) -> Floats:
    """Return the matrix from light in cd/m2 to BT.709 with white at 1."""
    source = _to_xyz(_BT709 if primaries is None else _PRIMARIES[primaries])
    matrix = np.linalg.solve(_to_xyz(_BT709), source)
    return (matrix / _REFERENCE_WHITE).astype(np.float32)


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """Return the matrix from RGB to XYZ for these primaries and D65 (SMPTE RP 177)."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*chromaticities, _D65)]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
