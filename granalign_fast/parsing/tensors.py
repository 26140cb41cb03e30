"""Read safetensors within limits: the header's length is looked at before it is parsed."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from .limits import MOST_TENSOR_HEADER

_LENGTH = 8
"""Bytes at the beginning of a file that say how long its header is."""


def read_tensors(
    content: bytes, *, most_header: int = MOST_TENSOR_HEADER
) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a safetensors file by name.

    Args:
        content: the file's bytes.
        most_header: the greatest length of its header, which names the tensors.

    Raises:
        ValueError: it is not such a file, or its header is too long. The message is one line.
    """
    from safetensors.numpy import load

    check_header(int.from_bytes(content[:_LENGTH], "little"), len(content), most_header)
    try:
        return load(content)
    except Exception as error:  # safetensors raises many types on a damaged file
        raise ValueError(" ".join(str(error).split())) from None


def check_header(header_bytes: int, file_bytes: int, most: int) -> None:
    """Check the length of a header that a file announces.

    Raises:
        ValueError: the file is shorter, or the header is longer than `most`.
    """
    if header_bytes > file_bytes - _LENGTH:
        raise ValueError(f"got {file_bytes:,} bytes, expected a header of {header_bytes:,}")
    if header_bytes > most:
        raise ValueError(f"got a header of {header_bytes:,} bytes, expected at most {most:,}")
