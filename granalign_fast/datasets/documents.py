"""Open an annotation file and recognise its form from its content; its name does not matter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from granalign_fast.errors import GranAlignError, listed, short_repr
from granalign_fast.jsonl import Record, iter_jsonl, read_bytes
from granalign_fast.parsing.json_values import parse_json

from .records import PathLike

FORMS = "JSON Lines of queries, a JSON dictionary of videos, Charades-STA's .txt, or Charades' .csv"
"""The forms that are recognised, for error messages."""

RECORD_KEYS = frozenset({"qid", "query", "vid", "captions"})
"""Keys of which a line of JSON Lines has at least one, and a dictionary of videos none."""

_LOOKED_AT = 1000
"""Characters at the beginning in which Charades-STA's ``##`` is looked for: some lines."""
_INK = re.compile(r"\S")


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a file in the form that was recognised."""

    path: Path
    form: Literal["records", "dictionary", "sentences", "table"]
    """JSON records, one JSON dictionary, Charades-STA's text, or a CSV table."""
    records: tuple[tuple[str, Record], ...] = ()
    """The location and the record of each JSON record."""
    value: Any = None
    """The content of a JSON dictionary."""
    text: str = ""
    """The lines of Charades-STA's text or of a table."""


def read_document(path: PathLike, expected: str = FORMS) -> Document:
    """Read a file and recognise its form.

    * JSON Lines: the first line is a JSON object, and other lines follow; or it is the only line
      and has one of `RECORD_KEYS`. A JSON list of objects is read alike.
    * A JSON dictionary: one JSON object, in one line or several.
    * Charades-STA's text: one of the first lines has ``##`` between times and sentence.
    * A table: the first line has the columns `id` and `length`.

    Args:
        path: of the file; what ends in ``.gz`` is decompressed.
        expected: the forms that the caller takes, for error messages.

    Raises:
        GranAlignError: the file cannot be read, is damaged, or has none of these forms.
    """
    if Path(path).is_dir():
        raise GranAlignError(f"{path}: got a folder, expected a file: {expected}")
    data, memory = read_bytes(path)
    path = Path(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GranAlignError(
            f"{path}: not UTF-8 text (byte {data[error.start]:#04x} at {error.start}), expected "
            f"{expected}; if it is an archive, unpack it first"
        ) from None
    del data
    # The text may have hundreds of megabytes: only its first line is copied.
    if (begin := _INK.search(text)) is None:
        raise GranAlignError(f"{path}: is empty, expected {expected}; download it again")
    first = _line(text, begin.start())
    second = _INK.search(text, begin.start() + len(first))
    if first[0] in "{[":
        return _read_json(path, text, first, "" if second is None else second[0], memory)
    if "##" in text[begin.start() : begin.start() + _LOOKED_AT]:
        return Document(path, "sentences", text=text)
    if {"id", "length"} <= {name.strip() for name in first.split(",")}:
        return Document(path, "table", text=text)
    raise GranAlignError(
        f"{path}: begins with {short_repr(first)}, expected {expected}; check that it is "
        f"the right file"
    )


def _line(text: str, begin: int) -> str:
    """Return a line of a text, from `begin` on."""
    end = text.find("\n", begin)
    return text[begin:] if end < 0 else text[begin:end]


def _read_json(path: Path, text: str, first: str, second: str, memory: int) -> Document:
    """Read a file that begins as JSON does: records, or one value.

    Args:
        path: of the file.
        text: of the file.
        first: its first line.
        second: the first character of the next line; empty: there is none.
        memory: bytes that the values of the file may take.
    """
    try:
        value = parse_json(first.encode(), memory=memory)
    except ValueError:
        value = None
    if isinstance(value, dict) and (second or RECORD_KEYS & value.keys()):
        return Document(path, "records", tuple(iter_jsonl(path)))
    if value is None:
        try:
            value = parse_json(text.encode(), memory=memory)
        except ValueError as error:
            if second == "{":  # JSON Lines, then: its error names the line
                return Document(path, "records", tuple(iter_jsonl(path)))
            raise GranAlignError(f"{path}: not JSON ({error}); download it again") from None
    if isinstance(value, list):
        return Document(path, "records", tuple(_numbered(path, value)))
    return Document(path, "dictionary", value=value)


def _numbered(path: Path, values: list[Any]) -> list[tuple[str, Record]]:
    """Return the objects of a JSON list with their locations."""
    if not values:
        raise GranAlignError(f"{path}: holds an empty list, expected records; download it again")
    located = [(f"{path}: record {number}", value) for number, value in enumerate(values)]
    for location, value in located:
        if not isinstance(value, dict):
            raise GranAlignError(
                f"{location}: got {short_repr(value)}, expected a JSON object with the keys "
                f"{listed(['qid', 'query', 'vid'])}"
            )
    return located
