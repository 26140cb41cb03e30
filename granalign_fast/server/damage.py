"""The indexes that a service cannot read: those that its catalogue names, and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.library.catalogue import Catalogue
from granalign_fast.library.indexes import FolderIndexes
from granalign_fast.library.records import CataloguedVideo, index_stamp


class Damage:
    """Remembers which indexes cannot be read, until one of their files changes.

    A catalogue knows the indexes that were damaged when it was made. An index may be damaged later:
    that is found when it is read.

    Args:
        folder: of the library.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indexes = FolderIndexes(folder)
        self._found: dict[str, tuple[str, str]] = {}
        """State and error of each index that could not be read, by video id."""

    def note(self, video: CataloguedVideo, error: GranAlignError) -> None:
        """Note that the index of a video could not be read; any thread may call this.

        An index that was removed or made anew meanwhile is not damaged.
        """
        state = self._indexes.state(video.vid)
        if index_stamp(self._folder / video.vid) == video.stamp:
            self._found[video.vid] = state, str(error)

    def forget_restored(self) -> None:
        """Forget the indexes of which a file has changed since they could not be read."""
        for vid, (state, _) in list(self._found.items()):
            if self._indexes.state(vid) != state:
                self._found.pop(vid, None)

    def has_changed(self, catalogue: Catalogue | None) -> bool:
        """Return whether an index that a catalogue names as damaged has changed since."""
        states: Mapping[str, str] = {} if catalogue is None else catalogue.states
        return any(self._indexes.state(vid) != state for vid, state in states.items())

    def reasons(self, catalogue: Catalogue | None) -> dict[str, str]:
        """Return why each index cannot be read, by video id."""
        known = {} if catalogue is None else catalogue.damaged
        found = {vid: reason for vid, (_, reason) in list(self._found.items())}
        return found | {vid: reason for vid, (_, reason) in known.items()}
