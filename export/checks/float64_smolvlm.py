"""The vision tower of SmolVLM2 in NumPy and float64, see `float64`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.families.smolvlm import PROJECTION
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.models.graph_contract import IMAGE_EMBEDS

from .float64 import Float64, Weights
from .float64_clip import image_states

Frames = npt.NDArray[np.uint8]


def smolvlm(source: VlmSource, clip: Frames, *, quantised: bool) -> dict[str, Float64]:
    """Return the embeddings (tokens, hidden) of a frame (1, side, side, 3).

    Args:
        source: the model, with as many layers as are to be computed.
        clip: of the tower's size.
        quantised: not used. The products of an int4 export contain norms and biases, so rounding
            the source's weights would not be the same.
    """
    shape, merge = source.vision.image, source.vision.merge
    (x,) = image_states("siglip", shape, source.checkpoint, list(clip), tower="visual")
    # Pixel shuffle: the patches of each square, row by row, become one row.
    cells = shape.grid // merge
    x = x.reshape(cells, merge, cells, merge, -1).swapaxes(1, 2).reshape(cells**2, -1)
    return {IMAGE_EMBEDS: Weights(source.checkpoint).product(x, f"{PROJECTION}.weight")}


def smolvlm_pixels(source: VlmSource, clip: Frames) -> Float64:
    """Return the pixels (1, 3, side, side) of a frame as transformers' processor computes them."""
    pixels = source.pixels
    values = (clip * pixels.rescale - np.array(pixels.mean)) / np.array(pixels.std)
    return np.asarray(values.transpose(0, 3, 1, 2))
