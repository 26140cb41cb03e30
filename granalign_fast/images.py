"""Frames as the models take them: checked, and resized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import GranAlignError

Image = npt.NDArray[np.uint8]
"""uint8 RGB (height, width, 3)."""

_FRAMES = "expected uint8 (height, width, 3) in RGB"


def resize(image: Image, height: int, width: int, resample: int) -> Image:
    """The image in another size, (height, width, 3), by Pillow's filter number `resample`."""
    from PIL import Image as pillow

    if image.shape[:2] == (height, width):
        return image
    resized = pillow.fromarray(image).resize((width, height), pillow.Resampling(resample))
    return np.asarray(resized)


def check_frames(frames: npt.NDArray[Any] | Sequence[npt.NDArray[Any]]) -> None:
    """Raise for the first thing that is not a frame, before any work.

    Raises:
        GranAlignError: there is no frame, or one is not uint8 (height, width, 3).
    """
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise GranAlignError(
            f"frames: got shape {frames.shape}, expected (frames, height, width, 3); "
            f"pass one frame as frame[None]"
        )
    if len(frames) == 0:
        raise GranAlignError("frames: got none, expected at least one")
    for i, frame in enumerate(frames):
        if not isinstance(frame, np.ndarray):
            raise GranAlignError(
                f"frames[{i}]: got {type(frame).__name__}, {_FRAMES}; pass NumPy arrays"
            )
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise GranAlignError(
                f"frames[{i}]: got {frame.dtype} {frame.shape}, {_FRAMES}; "
                f"convert the frame as its decoder gives it, before any scaling"
            )
