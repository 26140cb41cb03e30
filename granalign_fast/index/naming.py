"""Ids of videos: each is the name of its index folder, and never that of another file's index.

The id is the file's name without suffix. Where the index of another file has it, a hyphen and the
first 8 hex digits of the content's SHA-256 follow. An id stays the same as long as its index does.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from granalign_fast.errors import GranAlignError, listed
from granalign_fast.files import escape_undecodable

from .manifest import read_manifest_source
from .records import VideoSource

_MOST_BYTES = 255
"""Length of a folder's name in UTF-8, which Linux and macOS allow."""

_DIGITS = 8
"""Hex digits of a hash in an id: short to read, and hardly ever equal for two files of one name."""


def video_name(path: Path) -> str:
    """Return a file's name without suffix, as a text that can name a folder.

    Only what cannot be in a folder's name, in JSON or in a line of text is percent-encoded: bytes
    that are not UTF-8, and control characters. So is a dot at the beginning, by which the library
    marks its own files. A longer name than a folder can have is cut.
    """
    name = "".join(map(_escape_control, escape_undecodable(path.stem)))
    if name.startswith("."):
        name = "%2E" + name[1:]
    return _cut(name, _MOST_BYTES)


def read_library(out: Path) -> dict[str, VideoSource]:
    """Return the video file of each index in a folder, by video id.

    Folders that are not the index of a video file are left out.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(out) if not entry.name.startswith("."))
    except FileNotFoundError:
        return {}
    sources = {}
    for name in names:
        try:
            source = read_manifest_source(out / name)
        except GranAlignError:
            continue
        if source is not None:
            sources[name] = source
    return sources


def find_index(out: Path, name: str | None) -> Path:
    """Return the folder of one index in a folder of indexes.

    Args:
        out: the folder of indexes.
        name: the id of a video, the name of its file with or without suffix, or the end of its path
            from any folder on. An id comes first, then a path from the current folder. None for the
            only index there is.

    Raises:
        GranAlignError: there is no index, none of this name, or several; the message lists some.
    """
    library = read_library(out)
    if name is None or name in library:
        vid = _only(out, library) if name is None else name
        return out / vid
    path = Path(os.path.normpath(Path(name).absolute()))
    matches = {vid: source for vid, source in library.items() if source.path == path}
    if not matches:
        matches = {vid: source for vid, source in library.items() if _ends_with(source.path, name)}
    if len(matches) == 1:
        return out / next(iter(matches))
    if not matches:
        known = ", such as " + listed(list(map(repr, library))) if library else ""
        raise GranAlignError(
            f"{out}: has no index of {name!r}; expected one of its {len(library)}{known}"
        )
    candidates = listed([f"{vid!r} of {source.path}" for vid, source in matches.items()])
    raise GranAlignError(
        f"{out}: has {len(matches)} indexes of {name!r}; name one by its id: {candidates}"
    )


def _only(out: Path, library: Mapping[str, VideoSource]) -> str:
    """Return the id of the only index, or raise."""
    if len(library) == 1:
        return next(iter(library))
    if not library:
        raise GranAlignError(
            f"{out}: got no manifest.json and no indexes, expected an index or a folder of them; "
            f"name a folder that `granalign index` wrote"
        )
    raise GranAlignError(
        f"{out}: holds {len(library)} indexes; name one with --vid, such as "
        f"{listed(list(map(repr, library)))}"
    )


def is_named(path: Path | None, vid: str, name: str) -> bool:
    """Return whether a name is that of a video, as `find_index` takes it.

    Args:
        path: the absolute path of the video file; None if it is unknown.
        vid: the video's id.
        name: an id, the name of a file with or without suffix, or the end of a path.
    """
    if name == vid or path is None:
        return name == vid
    return path == Path(os.path.normpath(Path(name).absolute())) or _ends_with(path, name)


def _ends_with(path: Path, name: str) -> bool:
    """Return whether the last parts of a path are those of `name`, with or without the suffix."""
    parts = Path(name).parts
    ends = (path.parts[-len(parts) :], path.with_name(path.stem).parts[-len(parts) :])
    return bool(parts) and parts in ends


def assign_ids(
    sources: Sequence[VideoSource], library: Mapping[str, VideoSource]
) -> dict[Path, str]:
    """Return the video id of each file.

    The ids do not depend on the order of the files:

    1. A file whose path is that of an index keeps its id, whatever its content is now.
    2. A file whose content is that of an index has its id, if the index's file has the same name or
       is no longer at its path. So a moved or renamed file finds its index, and copies of one name
       share an index. Copies of other names have indexes of their own.
    3. Any other file is new, and gets its name, or its name and a hash if the name is taken. Upper
       and lower case do not tell names apart, because some file systems do not. Among new files of
       one name, the first by path gets the bare name.

    Args:
        sources: the files; each path once.
        library: the file of each index by id, as `read_library` returns it.

    Returns:
        The ids by path. Of the files that share an id, the first one is the file of the index.
    """
    ids: dict[Path, str] = {}
    indexed = dict(library)
    by_path = {source.path: vid for vid, source in library.items()}
    new = []
    for source in sorted(sources, key=lambda source: source.path):
        if (vid := by_path.get(source.path)) is None:
            new.append(source)
        else:
            ids[source.path] = vid
            indexed[vid] = source
    by_content: dict[str, list[str]] = {}
    for vid, source in indexed.items():
        by_content.setdefault(source.sha256, []).append(vid)
    taken = {folded(vid) for vid in indexed}
    for source in new:
        equal = by_content.setdefault(source.sha256, [])
        vid = _find_index(source, {vid: indexed[vid].path for vid in equal})
        if vid is None:
            vid = next(vid for vid in _possible_ids(source) if folded(vid) not in taken)
            equal.append(vid)
            taken.add(folded(vid))
        ids[source.path] = vid
        # The file of the index: unless this is a copy, it is the new path from now on.
        if vid not in indexed or indexed[vid].path not in ids:
            indexed[vid] = source
    return ids


def _find_index(source: VideoSource, indexes: Mapping[str, Path]) -> str | None:
    """Return which of the indexes of equal content, given by id and path, is that of a file."""
    name = video_name(source.path)
    for vid, path in indexes.items():
        if video_name(path) == name:
            return vid
    return next((vid for vid, path in indexes.items() if not path.exists()), None)


def _possible_ids(source: VideoSource) -> Iterator[str]:
    """Yield the ids that a new file can get, the preferred one first."""
    name, suffix = video_name(source.path), f"-{source.sha256[:_DIGITS]}"
    yield name
    yield _cut(name, _MOST_BYTES - len(suffix)) + suffix
    # A file of the same hash was here and has changed since, or the digits are equal by chance.
    for number in itertools.count(2):
        counted = f"{suffix}-{number}"
        yield _cut(name, _MOST_BYTES - len(counted)) + counted


def _escape_control(character: str) -> str:
    if unicodedata.category(character) != "Cc":
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _cut(text: str, most: int) -> str:
    """Return the beginning of a text, of at most so many bytes in UTF-8."""
    return text.encode()[:most].decode(errors="ignore")


def folded(vid: str) -> str:
    """Return equal texts for names that a file system may take for the same."""
    return unicodedata.normalize("NFC", vid).casefold()
