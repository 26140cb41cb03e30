"""Resize frames to the size that a model takes."""

from __future__ import annotations

import numpy as np

from granalign_fast.types import Image


def resize(image: Image, height: int, width: int, resample: int) -> Image:
    """Resize an image to uint8 RGB (height, width, 3) by Pillow's filter number `resample`."""
    from PIL import Image as pillow

    if image.shape[:2] == (height, width):
        return image
    resized = pillow.fromarray(image).resize((width, height), pillow.Resampling(resample))
    return np.asarray(resized)
