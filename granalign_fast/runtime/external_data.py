"""The files besides an ONNX file that its weights lie in, read without loading any weights.

The file is walked as protobuf: messages that can hold a tensor are entered, and all other fields
are passed over. Numbers of fields are those of ``onnx.proto``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from granalign_fast.reading import open_file

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)

_INNER: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _TENSOR: {13: _ENTRY},
}
"""The fields of each message that are messages with tensors in them."""
_KEY, _VALUE = 1, 2
"""The fields of an entry of a tensor's external data."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""Wire types of protobuf."""
_MOST_NESTED = 100
"""Messages inside each other, as in protobuf's own parser."""


def external_files(path: Path) -> set[str]:
    """Return the names of the files that hold tensors of an ONNX file, as the file spells them.

    Raises:
        GranAlignError: the file cannot be opened.
        ValueError: it is no protobuf.
    """
    with open_file(path) as file:
        size = file.seek(0, 2)
        if not size:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return set(_locations(content, 0, size, _MODEL, 0))


def _locations(content: mmap.mmap, at: int, end: int, kind: int, depth: int) -> Iterator[str]:
    """Yield the locations in one message, which lies from `at` to `end`."""
    if depth > _MOST_NESTED:
        raise ValueError("too many messages inside each other")
    inner = _INNER[kind]
    for number, begin, stop in _fields(content, at, end):
        if (message := inner.get(number)) is None:
            continue
        if message != _ENTRY:
            yield from _locations(content, begin, stop, message, depth + 1)
            continue
        entry = {field: content[first:last] for field, first, last in _fields(content, begin, stop)}
        if entry.get(_KEY) == b"location":
            yield entry.get(_VALUE, b"").decode("utf-8", "backslashreplace")


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the beginning and the end of each field of bytes in a message."""
    while at < end:
        tag, at = _varint(content, at, end)
        wire = tag & 7
        if wire == _BYTES:
            length, at = _varint(content, at, end)
            if at + length > end:
                raise ValueError("a field goes beyond its message")
            yield tag >> 3, at, at + length
            at += length
        elif wire == _VARINT:
            _, at = _varint(content, at, end)
        elif wire in (_EIGHT, _FOUR):
            at += 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"a field of wire type {wire}")


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and the position behind it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number without an end")
