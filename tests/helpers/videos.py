"""Render test videos; every frame shows its number, in blocks that survive any codec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

ROWS, COLUMNS = 4, 6
INDEX_BITS, CHECK_BITS = 18, 6


def _check(index: int) -> int:
    """Return check bits, which a turned, mirrored or blurred image hardly ever has by chance."""
    return (index * 2654435761 >> 13 ^ index * 40503 >> 5 ^ 0b101100) & (2**CHECK_BITS - 1)


def draw(index: int, size: tuple[int, int] = (48, 64)) -> Image:
    """Draw an image (height, width, 3) of `index`, below 2 ** 18, in dark and light blocks."""
    number = index << CHECK_BITS | _check(index)
    bits = [number >> bit & 1 for bit in range(ROWS * COLUMNS)]
    grid = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 200 + 28
    rows = np.arange(size[0]) * ROWS // size[0]
    columns = np.arange(size[1]) * COLUMNS // size[1]
    return np.repeat(grid[rows[:, None], columns][..., None], 3, axis=2)


def read(image: Image) -> int | None:
    """Return the index that an image shows; None if its check bits are wrong."""
    height, width = image.shape[:2]
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        top, bottom = row * height // ROWS, (row + 1) * height // ROWS
        left, right = column * width // COLUMNS, (column + 1) * width // COLUMNS
        inner = image[(3 * top + bottom) // 4 : (top + 3 * bottom) // 4 + 1]
        inner = inner[:, (3 * left + right) // 4 : (left + 3 * right) // 4 + 1]
        number |= int(inner.mean() > 128) << bit
    index = number >> CHECK_BITS
    return index if _check(index) == number & (2**CHECK_BITS - 1) else None


def constant(rate: Fraction | int, seconds: float) -> list[Fraction]:
    """Return the times of the frames of a video with a constant frame rate."""
    return [Fraction(index) / rate for index in range(math.ceil(seconds * rate))]


def render(
    path: Path,
    times: Sequence[Fraction],
    *,
    codec: str = "libx264",
    gop: int = 25,
    bframes: int = 0,
    size: tuple[int, int] = (48, 64),
    pix_fmt: str = "yuv420p",
    start: Fraction = Fraction(0),
    rotation: float | None = None,
    flip: bool = False,
    tone: float = 0.0,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    time_base: Fraction = Fraction(1, 90000),
    drawn: Sequence[Image] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write a video whose frame i shows the number i and appears at ``start + times[i]`` seconds.

    A player must apply `rotation` (degrees counter-clockwise) and `flip` (left and right swapped).
    `tone` is the length in seconds of a sine tone in an AAC stream. `drawn` replaces the pictures.
    `aspect` is the width of a pixel divided by its height.
    """
    settings: dict[str, str] = {"g": str(gop)}
    if codec in ("libx264", "libx265"):
        settings |= {"preset": "veryfast", "crf": "18", "bf": str(bframes)}
        key = "x264-params" if codec == "libx264" else "x265-params"
        settings[key] = "scenecut=0" if codec == "libx264" else "scenecut=0:log-level=none"
    elif bframes:
        settings["bf"] = str(bframes)
    gaps = [after - before for before, after in pairwise(times)]
    rate = 1 / min(gaps) if gaps else Fraction(25)
    with av.open(str(path), "w", container_options=muxing or {}) as container:
        stream: Any = container.add_stream(
            codec, rate=rate.limit_denominator(60000), options=settings | (options or {})
        )
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=flip)
        audio: Any = container.add_stream("aac", rate=16000, layout="mono") if tone else None
        samples = 0
        for index, time in enumerate(times):
            image = draw(index, size) if drawn is None else drawn[index]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts = round((start + time) / time_base)
            frame.time_base = time_base
            container.mux(stream.encode(frame))
            while audio is not None and samples / 16000 < min(tone, float(time)):
                container.mux(audio.encode(_sine(samples, start)))
                samples += 1024
        container.mux(stream.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))
    return path


def _sine(position: int, start: Fraction) -> av.AudioFrame:
    wave = np.sin(2 * np.pi * 440 / 16000 * np.arange(position, position + 1024)) * 0.3
    frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate = 16000
    frame.pts = position + int(start * 16000)
    frame.time_base = Fraction(1, 16000)
    return frame
