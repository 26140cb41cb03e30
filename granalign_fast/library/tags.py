"""The tags of a library's videos: words of the user, by which a search chooses videos.

They lie in ``.tags.json`` in the library. They belong to ids: an index that is made again keeps the
tags of its video, and a video that is removed loses them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingFileError, one_line, short_repr
from granalign_fast.index.manifest import write_durably
from granalign_fast.parsing.json_types import matches
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_JSON_BYTES
from granalign_fast.reading import read_file
from granalign_fast.types import check_text

FILE = ".tags.json"
_FORMAT = 1

Tags = Mapping[str, tuple[str, ...]]
"""The tags of each video that has some, by video id."""


def read_tags(library: Path) -> dict[str, tuple[str, ...]]:
    """Return the tags of a library's videos.

    Raises:
        GranAlignError: the file is damaged.
    """
    path = library / FILE
    try:
        content = read_file(path, MOST_JSON_BYTES, inside=library)
    except MissingFileError:
        return {}
    try:
        record = parse_json(content)
        if record["format"] != _FORMAT:
            raise ValueError(f"got format {record['format']!r}, expected {_FORMAT}")
        if not matches(dict[str, list[str]], record["tags"]):
            raise ValueError("expected a list of tags for each video")
        return {vid: tuple(tags) for vid, tags in record["tags"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise GranAlignError(
            f"{path}: damaged ({one_line(error)}); put a copy of it back, or delete it and tag the "
            f"videos again"
        ) from None


def write_tags(library: Path, tags: Tags) -> None:
    """Write the tags of a library's videos completely or not at all.

    Raises:
        GranAlignError: the file cannot be written.
    """
    kept = {vid: list(tags[vid]) for vid in sorted(tags) if tags[vid]}
    content = json.dumps({"format": _FORMAT, "tags": kept}, indent=1) + "\n"
    write_durably(library / FILE, content.encode())


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags without those that repeat.

    Raises:
        GranAlignError: one is not a text, is blank, or begins or ends with a blank.
    """
    given = tuple(dict.fromkeys(tags))
    for tag in given:
        check_text("tag", tag)
        if tag != tag.strip():
            raise GranAlignError(f"tag: got {short_repr(tag)}, expected no blanks around it")
    return given
