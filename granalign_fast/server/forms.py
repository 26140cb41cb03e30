"""The file and the fields of a form, read as they arrive: a video is never whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from granalign_fast.errors import GranAlignError

_MOST_FIELD = 4096
"""Bytes of a field that is not the file, and of a header of a part."""
_MOST_PARTS = 100


class FormReader:
    """Reads ``multipart/form-data``: one part ``file``, and short fields.

    Args:
        content_type: of the request.
        begin: called with the name of the file, before its bytes.
        write: called with the bytes of the file.

    Raises:
        GranAlignError: the request is no such form; also by `feed` and `end`.
    """

    def __init__(
        self,
        content_type: str,
        begin: Callable[[str], None],
        write: Callable[[bytes], None],
    ) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise GranAlignError("content-type: expected multipart/form-data with a boundary")
        self.fields: dict[str, list[str]] = {}
        self._begin, self._write = begin, write
        self._parts, self._files = 0, 0
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._value = bytearray()
        callbacks: Any = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise GranAlignError(f"content-type: {error}; send a shorter boundary") from None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise GranAlignError(f"body: not a form ({error}); send the file as one part") from None

    def end(self) -> None:
        """Check that the form is complete, and that it has a file."""
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise GranAlignError(f"body: the form is not complete ({error})") from None
        if self._files != 1:
            raise GranAlignError(f"body: got {self._files} parts 'file', expected one")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise GranAlignError(f"body: got more than {_MOST_PARTS} parts, expected fewer")
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._extend(self._header[0], data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._extend(self._header[1], data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = bytearray(), bytearray()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        self._value, self._field = bytearray(), name
        if name == "file":
            self._files += 1
            if self._files > 1:
                raise GranAlignError("body: got several parts 'file', expected one")
            self._begin(options.get(b"filename", b"").decode(errors="replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            self._write(data[start:end])
        else:
            self._extend(self._value, data[start:end])

    def _on_part_end(self) -> None:
        if self._field != "file":
            text = self._value.decode(errors="replace")
            self.fields.setdefault(self._field or "", []).append(text)

    @staticmethod
    def _extend(target: bytearray, data: bytes) -> None:
        target += data
        if len(target) > _MOST_FIELD:
            raise GranAlignError(f"body: got a field of more than {_MOST_FIELD:,} bytes")
