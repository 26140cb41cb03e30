"""The indexes of a library, which its catalogue is derived from: in a folder, or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import CLIPS, EMBEDDINGS, MANIFEST

from .records import CataloguedVideo, VideoRows, index_stamps, read_rows

INDEX_FILES = MANIFEST, CLIPS, EMBEDDINGS
"""The files of an index."""


class Indexes(Protocol):
    """The index folders of a library."""

    def stamps(self) -> dict[str, str]:
        """Return the stamp of each index, by video id; it changes whenever the index does.

        Raises:
            GranAlignError: the place cannot be read.
        """
        ...

    def state(self, vid: str) -> str:
        """Return a text that changes whenever a file of an index does, also one that was restored.

        Raises:
            GranAlignError: the place cannot be read.
        """
        ...

    def rows(
        self, stamps: Mapping[str, str], known: Mapping[str, CataloguedVideo]
    ) -> Iterator[tuple[str, VideoRows | GranAlignError]]:
        """Yield the rows of some indexes with the videos' ids, or why an index cannot be read.

        Args:
            stamps: of the indexes, by video id.
            known: what an earlier catalogue says about videos, as for `read_rows`.
        """
        ...


class FolderIndexes:
    """The index folders in a local folder.

    Args:
        library: the folder.
    """

    def __init__(self, library: Path) -> None:
        self._library = library

    def stamps(self) -> dict[str, str]:
        """Return the stamp of each index, by video id."""
        return index_stamps(self._library)

    def state(self, vid: str) -> str:
        """Return a text that changes whenever a file of an index or its permissions do."""
        return " ".join(_file_state(self._library / vid / name) for name in INDEX_FILES)

    def rows(
        self, stamps: Mapping[str, str], known: Mapping[str, CataloguedVideo]
    ) -> Iterator[tuple[str, VideoRows | GranAlignError]]:
        """Yield the rows of indexes, or why an index cannot be read."""
        for vid, stamp in stamps.items():
            try:
                yield vid, read_rows(self._library / vid, stamp, known.get(vid))
            except GranAlignError as error:
                yield vid, error


def _file_state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"error {error.errno}"
    return f"{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_size}"
