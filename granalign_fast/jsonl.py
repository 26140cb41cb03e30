"""Read and write JSON Lines, plain or gzip. Errors name file and line; files appear whole."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import IO, Any

from .errors import GranAlignError, missing_key, short_repr
from .files import replacing
from .parsing.json_values import memory_of, parse_json
from .parsing.limits import MOST_DOCUMENT_BYTES, MOST_LINE, memory_for
from .reading import open_file

Record = dict[str, Any]

_PIECE = 1 << 20
"""Bytes of a file that are read at once: 1 MiB."""
_BLANK_LINE = 64
"""Bytes that a blank line counts as. It takes no memory, but time: few bytes of gzip hold millions.
"""
_BUFFER = 1 << 16
"""Bytes that are read at once: 64 KiB, because lines may be long."""


def read_jsonl(path: str | os.PathLike[str], *, required: Iterable[str] = ()) -> list[Record]:
    """Read every record of a JSON Lines file; a name that ends in ``.gz`` is decompressed.

    Blank lines are skipped. The result keeps the file's order: record *i* is in line *i + 1* of a
    file without blank lines.

    Args:
        path: of the file.
        required: keys that every record must have.

    Raises:
        GranAlignError: the file is missing or unreadable, a line is not a JSON object, a required
            key is missing, or the file holds no record. The message names file and line.
    """
    return [record for _, record in iter_jsonl(path, required=required)]


def iter_jsonl(
    path: str | os.PathLike[str], *, required: Iterable[str] = ()
) -> Iterator[tuple[str, Record]]:
    """Yield ``("file:line", record)`` for each record; arguments and errors as in `read_jsonl`.

    A caller's own errors can name file and line too.
    """
    path, required = _as_path(path), tuple(required)
    empty = True
    number = 0
    try:
        with _open(path) as file:
            memory = _memory(path)
            for number, line in enumerate(_lines(file, path, memory), start=1):
                location, blank = f"{path}:{number}", _is_blank(line)
                memory -= len(line) + _BLANK_LINE if blank else memory_of(line)
                if memory < 0:
                    raise _too_much(path, location)
                if blank:
                    continue
                empty = False
                yield location, _parse(line, location, required)
    except UnicodeDecodeError as error:
        raise GranAlignError(f"{path}:{number}: not UTF-8 text ({error.reason})") from None
    except _READ_ERRORS as error:
        raise _unreadable(path, error, f"{path}:{number + 1}") from None
    if empty:
        raise GranAlignError(f"{path}: no records; expected one JSON object a line")


def read_bytes(path: str | os.PathLike[str]) -> tuple[bytes, int]:
    """Return the content of a file, and how many bytes its values may take in memory.

    A name that ends in ``.gz`` is decompressed.

    Raises:
        GranAlignError: the file is missing or unreadable, or decompressed it is too large.
    """
    path = _as_path(path)
    try:
        with _open(path) as file:
            memory = _memory(path)
            # The text is in memory as bytes and as characters, and as bytes once more while it is
            # read.
            most = min(memory // 3, MOST_DOCUMENT_BYTES)
            # In pieces: to read with a limit takes the memory of the limit at once.
            parts = []
            while most >= 0 and (part := file.read(_PIECE)):
                parts.append(part)
                most -= len(part)
    except _READ_ERRORS as error:
        raise _unreadable(path, error, str(path)) from None
    if most < 0:
        raise _too_much(path, str(path))
    return b"".join(parts), memory


def _is_blank(line: bytes) -> bool:
    """Whether a line holds nothing but blanks of any script."""
    # Editors on Windows begin a file with a byte order mark.
    rest = line.removeprefix(BOM_UTF8).strip()
    return not rest or (not rest[:1].isascii() and rest.decode().isspace())


def _memory(path: Path) -> int:
    """Return how many bytes the content of a file may take in memory."""
    return memory_for(path.stat().st_size)


def _lines(file: IO[bytes], path: Path, memory: int) -> Iterator[bytes]:
    """Yield the lines of a file.

    Raises:
        GranAlignError: a line is too long. It may come from a small file by decompression.
    """
    most = min(MOST_LINE, memory // 8)
    for number, line in enumerate(iter(partial(file.readline, most + 1), b""), start=1):
        if len(line) > most:
            raise GranAlignError(
                f"{path}:{number}: got a line of more than {most:,} bytes, expected one object a "
                f"line; check that it is the right file"
            )
        yield line


def _too_much(path: Path, location: str) -> GranAlignError:
    """Return the error of a file whose content is out of proportion to its size."""
    remedy = "decompress it first" if path.suffix.lower() == ".gz" else "split it"
    return GranAlignError(
        f"{location}: got more content than {_memory(path) // 1_000_000:,} MB of memory hold, "
        f"expected less in a file of {path.stat().st_size:,} bytes; {remedy}"
    )


_READ_ERRORS = (OSError, zlib.error, EOFError)
"""The errors that reading raises: `gzip.BadGzipFile` is an OSError."""


def _unreadable(path: Path, error: Exception, location: str) -> GranAlignError:
    """Return the error of a file that cannot be read; `location` is where gzip has stopped."""
    if isinstance(error, gzip.BadGzipFile | zlib.error | EOFError):
        return GranAlignError(
            f"{location}: not a whole gzip file ({error}); compress or download it again"
        )
    reason = getattr(error, "strerror", None) or error
    return GranAlignError(f"{path}: cannot be read ({reason})")


def _as_path(path: str | os.PathLike[str]) -> Path:
    """Return a `Path`, or raise a `GranAlignError` for a value that names no file."""
    if not isinstance(path, str | os.PathLike):
        raise GranAlignError(f"path: got {short_repr(path)}, expected that of a file")
    return Path(path)


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading, and decompress it if its name ends in ``.gz``."""
    file = open_file(path, buffering=_BUFFER)
    if path.suffix.lower() != ".gz":
        return file
    zipped = gzip.GzipFile(fileobj=file)
    zipped.myfileobj = file  # type: ignore[assignment]  # closed together
    # Buffered: to split lines inside gzip takes a tenth longer.
    return io.BufferedReader(zipped, _BUFFER)


def _parse(line: bytes, location: str, required: tuple[str, ...]) -> Record:
    """Return the record of a line; errors begin with `location`, the file and line."""
    try:
        record = parse_json(line, memory=inf)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise GranAlignError(
            f"{location}: not JSON ({error}); expected one object a line"
        ) from None
    if not isinstance(record, dict):
        kind = "a list" if isinstance(record, list) else short_repr(record)
        raise GranAlignError(f"{location}: got {kind}, expected a JSON object")
    for key in required:
        if key not in record:
            raise missing_key(location, key, record)
    return record


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write records, one a line; a name that ends in ``.gz`` is compressed.

    The file is written whole or not at all.

    Raises:
        GranAlignError: the file cannot be written, or a record holds NaN or infinity.
    """
    path = _as_path(path)
    with replacing(path) as raw:
        # No name and no time in the gzip header, so that equal records make equal files.
        stream = (
            gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0)
            if path.suffix.lower() == ".gz"
            else contextlib.nullcontext(raw)
        )
        with stream as sink:
            for number, record in enumerate(records):
                sink.write(_line(record, f"{path}: record {number}"))


def _line(record: Record, name: str) -> bytes:
    """Return a record as a line of JSON.

    Raises:
        GranAlignError: it cannot be JSON; the message begins with `name`.
    """
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise GranAlignError(
            f"{name}: cannot be JSON ({error}); expected finite numbers, and None for others"
        ) from None
    try:
        return line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: `read_jsonl` reads it if it is escaped
        return (json.dumps(record) + "\n").encode()
