"""Resize frames to the size that a model takes, and cut them into tiles of this size."""

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


def cut_tiles(
    image: Image, tiles: tuple[int, int], tile_size: tuple[int, int], resample: int
) -> list[Image]:
    """Cut an image into tiles, row by row, and put the whole image, as small as one, behind them.

    As transformers' SmolVLM processor does, an image is resized three times: its longest edge to
    that of all tiles, both edges to those of all tiles, and for the whole image to those of one.
    An image whose shape asks for other rows and columns of tiles is stretched to these.

    Args:
        image: uint8 RGB (height, width, 3).
        tiles: rows and columns.
        tile_size: height and width of a tile.
        resample: number of Pillow's filter.

    Returns:
        ``rows * columns + 1`` images of the tile's size.
    """
    (rows, columns), (height, width) = tiles, tile_size
    all_size = rows * height, columns * width
    near = resize(image, *_longest_edge(image.shape[0], image.shape[1], max(all_size)), resample)
    large = resize(near, *all_size, resample)
    cut = [
        large[row : row + height, column : column + width]
        for row in range(0, all_size[0], height)
        for column in range(0, all_size[1], width)
    ]
    return [*cut, resize(large, height, width, resample)]


def _longest_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """Return the size of an image that is resized to `edge` pixels on its longer side.

    The shorter side is cut off to whole pixels, and then made even.
    """
    ratio = width / height
    if width >= height:
        short = int(edge / ratio)
        return max(short + short % 2, 1), edge
    short = int(edge * ratio)
    return edge, max(short + short % 2, 1)
