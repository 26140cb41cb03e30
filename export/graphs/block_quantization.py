"""Block quantisation of weights in MatMulNBits' format: each block has a scale and a zero point.

ONNX Runtime's own quantiser rounds in the same way, but takes whole graphs and changes Python's
logging settings.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.specs import Rounding


def quantise_blocks(
    weight: Float32, rounding: Rounding
) -> tuple[npt.NDArray[np.uint8], Float32, npt.NDArray[np.uint8]]:
    """Quantise each block between its least and greatest value; the range always includes 0.

    Args:
        weight: (rows, columns), rows being outputs; columns are padded to whole blocks.
        rounding: 4 or 8 bits, and the columns of a block.

    Returns:
        Packed values (rows, blocks, block * bits / 8), scales (rows, blocks) and packed zero points
        (rows, blocks * bits / 8, rounded up). Two 4-bit values share a byte; the first is in the
        lower half.
    """
    # Split the padded columns into blocks (rows, blocks, block).
    bits, block = rounding.bits, rounding.block
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % block)))
    blocks = padded.reshape(rows, -1, block)
    # One step for each block, and the integer that stands for 0.
    low = np.minimum(blocks.min(axis=2), 0)
    high = np.maximum(blocks.max(axis=2), 0)
    top = 2**bits - 1
    scales = ((high - low) / top).astype(np.float32)
    steps = np.where(scales == 0, np.float32(1), scales)
    zeros = np.clip(np.rint(-low / steps), 0, top)
    # Round the values.
    values = np.clip(np.rint(blocks / steps[:, :, None]) + zeros[:, :, None], 0, top)
    return _pack(values.astype(np.uint8), bits), scales, _pack(zeros.astype(np.uint8), bits)


def quantise_slices(
    slices: Iterable[Float32], shape: tuple[int, ...], rounding: Rounding
) -> tuple[npt.NDArray[np.uint8], Float32, npt.NDArray[np.uint8]]:
    """Return the same as `quantise_blocks`, of a weight (rows, columns) in slices of rows.

    float32 of the whole weight is never in memory.
    """
    bits, block = rounding.bits, rounding.block
    rows, blocks = shape[0], -(-shape[1] // block)
    packed = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = np.empty((rows, -(-blocks * bits // 8)), np.uint8)
    start = 0
    for part in slices:
        end = start + len(part)
        packed[start:end], scales[start:end], zeros[start:end] = quantise_blocks(part, rounding)
        start = end
    return packed, scales, zeros


def round_blocks(weight: Float32, rounding: Rounding) -> Float32:
    """Quantise a weight with `quantise_blocks` and dequantise it: float32 (rows, columns)."""
    packed, scales, zeros = quantise_blocks(weight, rounding)
    bits = rounding.bits
    values = _unpack(packed, bits).astype(np.float32)
    centre = _unpack(zeros, bits)[:, : scales.shape[1], None].astype(np.float32)
    whole = ((values - centre) * scales[:, :, None]).reshape(len(weight), -1)
    return whole[:, : weight.shape[1]]


def _pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack 4-bit values in pairs along the last axis."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    packed: npt.NDArray[np.uint8] = values[..., ::2] | values[..., 1::2] << np.uint8(4)
    return packed


def _unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Undo `_pack`; an odd number of values leaves one 0 at the end."""
    if bits == 8:
        return packed
    pairs = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)
