"""JSON Lines, plain or gzip: errors name file and line, and nothing is ever half-written."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import GranAlignError

Record = dict[str, Any]


def read_jsonl(path: str | os.PathLike[str], *, required: Iterable[str] = ()) -> list[Record]:
    """Every record of a JSON Lines file; a name that ends in ``.gz`` is decompressed.

    Blank lines are passed over. The result keeps the file's order, so that record *i* stands in
    line *i + 1* of a file without blank lines.

    Raises:
        GranAlignError: the file is missing or unreadable, a line is not a JSON object, a key of
            `required` is absent, or the file holds no record. The message names file and line.
    """
    return [record for _, record in iter_jsonl(path, required=required)]


def iter_jsonl(
    path: str | os.PathLike[str], *, required: Iterable[str] = ()
) -> Iterator[tuple[str, Record]]:
    """Like `read_jsonl`, one ``("file:line", record)`` at a time, for errors to name the place."""
    path, required = Path(path), tuple(required)
    empty = True
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                empty = False
                yield f"{path}:{number}", _parse(line, f"{path}:{number}", required)
    except UnicodeDecodeError as error:
        raise GranAlignError(f"{path}:{number + 1}: not UTF-8 text ({error.reason})") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise GranAlignError(
            f"{path}:{number + 1}: not a whole gzip file ({error}); compress or download it again"
        ) from None
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None
    if empty:
        raise GranAlignError(f"{path}: no records; expected one JSON object a line")


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse(line: str, place: str, required: tuple[str, ...]) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GranAlignError(f"{place}: not JSON ({error}); expected one object a line") from None
    if not isinstance(record, dict):
        raise GranAlignError(f"{place}: got a {type(record).__name__}, expected a JSON object")
    for key in required:
        if key not in record:
            raise GranAlignError(f"{place}: key {key!r} is missing; found {sorted(record)}")
    return record


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write records one a line; a name that ends in ``.gz`` is compressed. All or nothing."""
    path = Path(path)
    with replacing(path) as raw:
        # No name and no time in the gzip header: equal records make equal files.
        packed = (
            gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0)
            if path.suffix == ".gz"
            else contextlib.nullcontext(raw)
        )
        with packed as sink:
            for record in records:
                line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
                sink.write(line.encode())


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be written ({error.strerror or error})") from None
    try:
        with os.fdopen(handle, "wb") as sink:
            yield sink
        Path(temporary).chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
