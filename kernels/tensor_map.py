"""Tensor maps: how a kernel for sm_90 is told of a matrix, boxes of which it has copied."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

TENSOR_MAP = np.dtype([("encoded", "V128")])
"""A `CUtensorMap`, which nobody but the driver looks into."""

_LINE = 128  # bytes of a box's row: LINE of hopper.cuh
_ALIGNMENT = 64
_KINDS = {"float16": 6, "float32": 7}  # CU_TENSOR_MAP_DATA_TYPE_...
_SWIZZLE_128B, _L2_256B = 3, 3
_NO_INTERLEAVE = _ZEROS_OUTSIDE = 0


def mappable(array: Any) -> bool:
    """Whether the driver can encode a C-contiguous matrix.

    It holds something, and its rows begin on multiples of 16 bytes.
    """
    on_16_bytes = address_of(array) % 16 == 0 == array.shape[1] * array.itemsize % 16
    return bool(array.size and on_16_bytes)


def address_of(array: Any) -> int:
    """Where an array of NumPy or CuPy begins."""
    return int(array.ctypes.data if type(array) is np.ndarray else array.data.ptr)


def encoded_map(array: Any, rows: int, driver: Any = None) -> Any:
    """A kernel's argument: `(1,)` `TENSOR_MAP`. The array must live as long as the map is used.

    The box's rows are 128 bytes, swizzled as ``CU_TENSOR_MAP_SWIZZLE_128B`` has it; outside of the
    matrix there are zeros.

    Args:
        array: a matrix of the current device, as `mappable` wants it.
        rows: of a box, up to 256.
        driver: CUDA's, as `ctypes` loads it.

    Raises:
        RuntimeError: the driver refuses.
    """
    driver = driver or _driver()
    memory = np.zeros(TENSOR_MAP.itemsize + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    encoded = memory[first : first + TENSOR_MAP.itemsize].view(TENSOR_MAP)
    count, columns = array.shape
    pitch = columns * array.itemsize
    code = driver.cuTensorMapEncodeTiled(
        ctypes.c_void_p(encoded.ctypes.data),
        ctypes.c_int(_KINDS[array.dtype.name]),
        ctypes.c_uint32(2),  # dimensions, the innermost first
        ctypes.c_void_p(address_of(array)),
        (ctypes.c_uint64 * 2)(columns, count),
        (ctypes.c_uint64 * 1)(pitch),
        (ctypes.c_uint32 * 2)(_LINE // array.itemsize, rows),
        (ctypes.c_uint32 * 2)(1, 1),
        ctypes.c_int(_NO_INTERLEAVE),
        ctypes.c_int(_SWIZZLE_128B),
        ctypes.c_int(_L2_256B),
        ctypes.c_int(_ZEROS_OUTSIDE),
    )
    if code:
        raise RuntimeError(
            f"CUDA's driver refuses a tensor map of {count} x {columns} {array.dtype}: error {code}"
        )
    return encoded


@functools.cache
def _driver() -> Any:
    """Loaded once, as a search is told of two matrices."""
    return ctypes.CDLL("libcuda.so.1")
