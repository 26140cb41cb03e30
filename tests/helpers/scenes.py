"""Draw a scene in colours, and write it to files with the ffmpeg command."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from granalign_fast.video.frames import probe, read_frames

from .ffmpeg import ffmpeg
from .videos import Image


def scene(height: int = 180, width: int = 320) -> Image:
    """Draw discs of many colours over a gradient, and a grey ramp from black to white.

    The edges are blurred, so that subsampled chroma and the missing lines of a field cost little.
    """
    random = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    image = np.stack([0.2 + 0.5 * x, 0.3 + 0.5 * y, 0.7 - 0.5 * y * x], -1)
    for _ in range(60):
        row, column, radius = random.random(), random.random(), 0.03 + 0.12 * random.random()
        disc = (y - row) ** 2 * (height / width) ** 2 + (x - column) ** 2 < radius**2
        image[disc] = random.random(3) * 0.9 + 0.05
    image[: height // 6] = x[0, :, None]
    for axis in (0, 1):
        steps = range(-3, 4)
        padded = np.pad(image, [(3, 3) if a == axis else (0, 0) for a in range(3)], "edge")
        image = sum(np.roll(padded, step, axis) for step in steps) / len(steps)
        image = image.take(range(3, 3 + (height, width)[axis]), axis)
    return np.rint(image * 255).astype(np.uint8)


def file_from(path: Path, image: Image, filters: str, *options: str) -> Path:
    """Write three equal frames through FFmpeg's filters, by default without loss in Matroska."""
    height, width = image.shape[:2]
    options = options or ("-c:v", "ffv1")
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25")
    ffmpeg(*raw, "-i", "-", "-vf", filters, *options, path, data=image.tobytes() * 3)
    return path


def picture_of(path: Path) -> Image:
    """Return the picture of the file's only clip."""
    (frame,) = read_frames(path)
    assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
    info = probe(path)
    assert frame.image.shape == (info.height, info.width, 3)
    return frame.image


def decoded(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))
