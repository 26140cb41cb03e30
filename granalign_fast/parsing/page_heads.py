"""The heads of a Parquet file's pages: how many bytes each becomes after decompression.

A head is a struct of Thrift's compact protocol before each page. Arrow reads it as well, but only
at the moment at which it allocates what the head says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MOST_HEAD = 1 << 16
"""Bytes of a head; the statistics in it are two values of the page."""
_UNCOMPRESSED, _COMPRESSED = 2, 3
"""Fields of a head: bytes of the page after and before decompression."""
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
"""Types of Thrift's compact protocol; 4, 5 and 6 are integers."""
_MOST_NESTED = 8
"""Structs inside each other in a head; there are three."""


def page_sizes(source: Any, file_bytes: int, chunk: Any) -> Iterator[int]:
    """Yield the bytes of each page of a column chunk after decompression.

    Args:
        source: a seekable file of `pyarrow`.
        file_bytes: its size.
        chunk: a `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        ValueError: a page lies outside of the file, or its head is damaged.
    """
    begin = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        begin = min(begin, chunk.dictionary_page_offset)
    end = begin + chunk.total_compressed_size
    if not 0 < begin <= end <= file_bytes:
        raise ValueError(f"got a page at byte {begin:,} of {file_bytes:,}")
    while begin < end:
        source.seek(begin)
        head = _Head(source.read(min(_MOST_HEAD, end - begin)))
        fields = head.struct(0)
        sizes = fields.get(_UNCOMPRESSED, -1), fields.get(_COMPRESSED, -1)
        if min(sizes) < 0:
            raise ValueError(f"got a page without a size at byte {begin:,}")
        yield sizes[0]
        begin += head.at + sizes[1]


class _Head:
    """The bytes of a head and the place in them."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self, depth: int) -> dict[int, int]:
        """Read a struct; return its fields that are integers, by number."""
        if depth > _MOST_NESTED:
            raise ValueError("got the head of a page with too many structs inside each other")
        fields: dict[int, int] = {}
        number = 0
        while (first := self._byte()) != 0:
            number = number + (first >> 4) if first >> 4 else self._integer()
            value = self._value(first & 15, depth, in_list=False)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int, *, in_list: bool) -> int | None:
        """Read a value; return an integer, and None for any other."""
        if kind in (_TRUE, _FALSE):
            self.at += in_list  # outside of lists the type is the value
        elif kind == _BYTE:
            self.at += 1
        elif _BYTE < kind < _DOUBLE:
            return self._integer()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._varint()  # before the sum: it moves `at` itself
            self.at += length
        elif kind in (_LIST, _SET):
            first = self._byte()
            count = first >> 4 if first >> 4 < 15 else self._varint()
            self._repeat(count, [first & 15], depth)
        elif kind == _MAP:
            if count := self._varint():
                kinds = self._byte()
                self._repeat(count, [kinds >> 4, kinds & 15], depth)
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:
            raise ValueError(f"got a value of type {kind} in the head of a page")
        return None

    def _repeat(self, count: int, kinds: list[int], depth: int) -> None:
        for _ in range(min(count, len(self._content))):
            for kind in kinds:
                self._value(kind, depth + 1, in_list=True)

    def _byte(self) -> int:
        if self.at >= len(self._content):
            raise ValueError("got a page whose head has no end")
        value = self._content[self.at]
        self.at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("got a number without an end in the head of a page")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
