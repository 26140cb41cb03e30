"""Convert HDR and wide gamuts to SDR in BT.709, the space that image encoders are trained on.

FFmpeg's swscale has a tone curve too (`out_transfer` of its filter `scale`). It was measured and
not chosen: it computes a table for about 5 s before the first frame, is no faster after that,
and without metadata it expects highlights of 10,000 cd/m2, so that a scene without highlights
loses 8% of its contrast.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Code points of ITU-T H.273, which FFmpeg uses for the tags of a frame.
BT2020, DCI_P3, DISPLAY_P3 = 9, 11, 12
LINEAR, PQ, HLG = 8, 16, 18

_REFERENCE_WHITE = 203.0
"""cd/m2: HDR white that becomes SDR white (BT.2408)."""

_PEAK_QUANTILE = 0.9999
"""Share of the pixels that are not brighter than a frame's peak; the rest are clipped highlights.
libplacebo, which mpv uses, can ignore the brightest few pixels in the same way."""

_PEAK_SAMPLES = 250_000
"""Pixels, about, from which a frame's peak is measured: all of them would take as long as the
tone mapping itself."""

_BLOCK = 1 << 14
"""Pixels that are converted at a time, so that the intermediate arrays fit into a CPU cache."""

_STEPS = 4096
"""Entries of the tables of the tone curve and of the SDR gamma. Both are indexed by the square root
of light, so that neighbouring entries differ by at most a quarter of an 8-bit step."""

WIDE_PRIMARIES = {
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    DCI_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""Chromaticities x, y of red, green and blue of the gamuts that are wider than BT.709 (H.273,
table 2). White is D65 for all: DCI white would tint what is white on other screens."""
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_D65 = (0.3127, 0.3290)


def tone_map(
    signal: npt.NDArray[np.uint16], transfer: int, primaries: int | None, white: int = 65535
) -> npt.NDArray[np.uint8]:
    """Convert full-range R'G'B' of any transfer function and gamut to SDR in BT.709.

    The formulas, in cd/m2:

    - PQ to light: the EOTF of SMPTE ST 2084.
    - HLG to light: BT.2100, table 5, for a screen of 1,000 cd/m2 with the system gamma 1.2.
    - Other functions are shown unchanged, through the gamma of BT.1886.
    - Light above reference white: the EETF of BT.2390, section 5.4.1, from the frame's own peak to
      203 cd/m2. It scales R, G and B together by the curve of the largest, so hue and saturation
      stay. A frame without such light keeps its colours.
    - Primaries: linear conversion by XYZ; colours outside BT.709 are clipped, as in BT.2407.
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
    if transfer in (PQ, HLG):
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
    if transfer == HLG:
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
    if transfer == PQ:
        light = _pq_to_light(signal)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    elif transfer == LINEAR:
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
    source = _to_xyz(_BT709 if primaries is None else WIDE_PRIMARIES[primaries])
    matrix = np.linalg.solve(_to_xyz(_BT709), source)
    return (matrix / _REFERENCE_WHITE).astype(np.float32)


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """Return the matrix from RGB to XYZ for these primaries and D65 (SMPTE RP 177)."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*chromaticities, _D65)]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
