"""The catalogue of a library: derived from its indexes, written whole or not at all.

It lies in the folder ``.catalogue`` of the library: segments, and the pointer ``catalogue.json``,
which names those that count. A writer makes new segments beside the old ones, then replaces the
pointer by one rename, and only then deletes what the pointer no longer names. So a reader sees the
catalogue of before or of after, and a writer that is killed leaves folders that nothing names.

The indexes are the truth. Whoever opens a catalogue compares it with them: it leaves out what has
no index any more, and adds what it lacks. No model is needed for that.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import write_durably
from granalign_fast.index.own_folders import check_own_folder
from granalign_fast.parsing.limits import MOST_INDEX_BYTES
from granalign_fast.reading import read_file
from granalign_fast.storage import Address

from .durable import sync_folder
from .indexes import FolderIndexes, Indexes
from .locks import explaining, locked_catalogue
from .merging import Group, find_damaged, grouped, merge_plan, write_segments
from .pointer import FOLDER, POINTER, Pointer, parse_pointer
from .records import CataloguedVideo, VideoRows
from .segment import Segment

_log = logging.getLogger(__name__)

_ATTEMPTS = 20
"""How often a reader looks again where a writer has replaced the catalogue in the meantime."""
Progress = Callable[[int, int], None]
"""Called with the number of indexes that were read, and of all that are to be."""


class RemoteIndexes(Indexes, Protocol):
    """The indexes of a library in an object store."""

    @property
    def address(self) -> Address:
        """The address of the library."""
        ...

    def index_folder(self, vid: str, stamp: str) -> Path:
        """Return a local copy of an index."""
        ...


@dataclass(frozen=True, slots=True)
class Catalogue:
    """An open catalogue.

    Attributes:
        folder: of the library.
        segments: their rows are mapped into memory.
        live: the numbers of the videos in each segment that count; the others have been replaced
            or removed.
        damaged: stamp and error of each index that cannot be read, by video id.
        states: of the files of these indexes, see `Indexes.state`.
        missing: the stamps of indexes that no segment has, by video id.
        remote: the indexes, if they lie in an object store; `folder` is then a copy of the
            catalogue on this machine.
    """

    folder: Path
    segments: tuple[Segment, ...] = ()
    live: tuple[tuple[int, ...], ...] = ()
    damaged: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    remote: RemoteIndexes | None = None

    @property
    def name(self) -> str:
        """The library as its user names it: the folder, or the address in an object store."""
        return str(self.folder if self.remote is None else self.remote)

    def index_folder(self, video: CataloguedVideo) -> Path:
        """Return the folder of a video's index; from an object store it is copied first.

        Raises:
            GranAlignError: it cannot be copied.
        """
        if self.remote is not None:
            return self.remote.index_folder(video.vid, video.stamp)
        return self.folder / video.vid

    def videos(self) -> list[CataloguedVideo]:
        """Return all videos, sorted by id."""
        pairs = zip(self.segments, self.live, strict=True)
        found = (segment.videos[number] for segment, numbers in pairs for number in numbers)
        return sorted(found, key=lambda video: video.vid)


def open_catalogue(
    library: Path, *, indexes: Indexes | None = None, progress: Progress | None = None
) -> Catalogue:
    """Open the catalogue of a library; it is brought up to date first if it is not.

    Where another process is writing it, or the folder cannot be written, what the catalogue lacks
    is put into temporary files, which last as long as this process needs them.

    Args:
        library: a folder of indexes.
        indexes: the indexes, if they do not lie in the folder.
        progress: called while indexes are read.

    Raises:
        GranAlignError: there is no such folder, or it cannot be read.
    """
    indexes = FolderIndexes(library) if indexes is None else indexes
    catalogue = _read(library, indexes)
    if not catalogue.missing:
        return catalogue
    try:
        return update_catalogue(library, indexes=indexes, progress=progress)
    except GranAlignError as error:
        _log.info("the catalogue of %s is not written: %s", library, error)
    catalogue = _read(library, indexes)
    damage = _Damage(catalogue)
    rows = _read_indexes(indexes, catalogue.missing, _known(catalogue), damage, progress)
    added = temporary_catalogue(library, rows)
    return Catalogue(
        library,
        (*catalogue.segments, *added.segments),
        (*catalogue.live, *added.live),
        damage.reasons,
        damage.states,
    )


def temporary_catalogue(library: Path, rows: Iterable[VideoRows]) -> Catalogue:
    """Return a catalogue of rows in files that last as long as this process needs them.

    Args:
        library: the folder that the catalogue names.
        rows: of videos.

    Raises:
        GranAlignError: the disk of temporary files is full.
    """
    with tempfile.TemporaryDirectory(prefix="granalign-") as name, explaining(library):
        records = write_segments(Path(name), rows)
        # The files are mapped from here on, and stay until the maps go.
        segments = tuple(Segment(Path(name) / record.name, record) for record in records)
    live = tuple(tuple(range(len(segment.videos))) for segment in segments)
    return Catalogue(library, segments, live)


def update_catalogue(
    library: Path,
    *,
    indexes: Indexes | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Catalogue:
    """Bring the catalogue on disk up to date, and open it.

    A new video costs what its rows cost: they become a segment, and segments are merged when they
    are of like size, so that a row is written again as often as the library has doubled.

    Args:
        library: a folder of indexes.
        indexes: the indexes, if they do not lie in the folder.
        rebuild: forget what the catalogue holds, and read all indexes.
        progress: called while indexes are read.

    Raises:
        GranAlignError: the folder cannot be read or written, the disk is full, or another process
            is writing the catalogue.
    """
    indexes = FolderIndexes(library) if indexes is None else indexes
    stamps = indexes.stamps()  # also of a folder that is no library: before anything is made
    with locked_catalogue(library):
        # 1. Read what there is, and find out what it lacks.
        before = _read(library, indexes)
        old = [segment.folder.name for segment in before.segments]
        if rebuild:
            none = ((),) * len(before.segments)
            before = Catalogue(library, before.segments, none, missing=stamps)
        damage = _Damage(before)
        root = library / FOLDER
        _remove_others(root, old)
        # 2. Write new segments beside the old ones. A failure leaves the catalogue as it was.
        kept = [
            Group(segment, numbers)
            for segment, numbers in zip(before.segments, before.live, strict=True)
            if numbers
        ]
        try:
            with explaining(library):
                plan = _write_missing(root, indexes, before, kept, damage, progress)
                segments = [
                    groups[0].segment if whole else _merged(root, groups) for groups, whole in plan
                ]
                sync_folder(root)
                # 3. One rename makes them the catalogue.
                named = tuple(segment.record for segment in segments)
                pointer = Pointer(named, damage.reasons, damage.states)
                write_durably(root / POINTER, pointer.to_json())
                sync_folder(root)
        except BaseException:
            _remove_others(root, old)
            raise
        _remove_others(root, [segment.folder.name for segment in segments])
        return _read(library, indexes)


def _write_missing(
    root: Path,
    indexes: Indexes,
    catalogue: Catalogue,
    kept: list[Group],
    damage: _Damage,
    progress: Progress | None,
) -> list[tuple[list[Group], bool]]:
    """Write the rows that a catalogue lacks as new segments, and plan which segments are merged.

    A segment that is to be merged and is damaged on disk is left out: the rows of its videos are
    read from their indexes again.

    Args:
        root: the folder of the segments.
        indexes: of the library.
        catalogue: what there is.
        kept: the segments of the catalogue whose videos count; the new ones are added.
        damage: gets the indexes that cannot be read.
        progress: called while indexes are read.
    """
    missing = catalogue.missing
    new: list[Segment] = []
    while True:
        rows = _read_indexes(indexes, missing, _known(catalogue), damage, progress)
        written = [Segment(root / one.name, one) for one in write_segments(root, rows)]
        kept += [Group(segment, tuple(range(len(segment.videos)))) for segment in written]
        new += written
        plan = list(merge_plan(kept))
        damaged = find_damaged(plan, new)
        if not damaged:
            return plan
        for reason in damaged.values():
            _log.warning("%s; the rows of its videos are read again from their indexes", reason)
        gone = [group for group in kept if group.segment.folder.name in damaged]
        kept[:] = [group for group in kept if group.segment.folder.name not in damaged]
        lost = (group.segment.videos[number] for group in gone for number in group.numbers)
        missing = {video.vid: video.stamp for video in lost}


def _known(catalogue: Catalogue) -> dict[str, CataloguedVideo]:
    """Return what a catalogue says about videos, also about those that do not count any more."""
    return {video.vid: video for segment in catalogue.segments for video in segment.videos}


def _merged(root: Path, groups: list[Group]) -> Segment:
    """Write the videos of several segments that count as one segment."""
    (record,) = write_segments(root, grouped(groups))
    return Segment(root / record.name, record)


def _read(library: Path, indexes: Indexes | None = None) -> Catalogue:
    """Read the catalogue as it is on disk, and compare it with the indexes."""
    indexes = FolderIndexes(library) if indexes is None else indexes
    root = library / FOLDER
    for _ in range(_ATTEMPTS):
        content = _pointer_bytes(root)
        pointer = parse_pointer(root / POINTER, content) or Pointer()
        segments = []
        for record in pointer.segments:
            try:
                segments.append(Segment(root / record.name, record))
            except (OSError, GranAlignError, LookupError, ValueError, ArithmeticError) as error:
                _log.info("%s: a part of the catalogue cannot be read: %s", library, error)
        # A part can be missing because a writer has replaced the catalogue since.
        if len(segments) == len(pointer.segments) or _pointer_bytes(root) == content:
            break
    stamps = indexes.stamps()
    seen: set[str] = set()
    live = []
    for segment in segments:
        numbers = tuple(
            number
            for number, video in enumerate(segment.videos)
            if stamps.get(video.vid) == video.stamp and video.vid not in seen
        )
        seen.update(segment.videos[number].vid for number in numbers)
        live.append(numbers)
    # A damaged index is read again when one of its files has changed, such as by a backup.
    states = {
        vid: state
        for vid, state in pointer.states.items()
        if vid in pointer.damaged
        and stamps.get(vid) == pointer.damaged[vid][0]
        and indexes.state(vid) == state
    }
    damaged = {vid: pointer.damaged[vid] for vid in states}
    missing = {vid: stamp for vid, stamp in stamps.items() if vid not in seen | states.keys()}
    return Catalogue(library, tuple(segments), tuple(live), damaged, states, missing)


def _pointer_bytes(root: Path) -> bytes:
    """Return the content of the pointer; nothing if there is none."""
    try:
        check_own_folder(root)
        return read_file(root / POINTER, MOST_INDEX_BYTES, inside=root)
    except GranAlignError:
        return b""


class _Damage:
    """The indexes that cannot be read: those that a catalogue knows, and others that are found."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.reasons, self.states = dict(catalogue.damaged), dict(catalogue.states)


def _read_indexes(
    indexes: Indexes,
    missing: Mapping[str, str],
    known: Mapping[str, CataloguedVideo],
    damage: _Damage,
    progress: Progress | None,
) -> Iterator[VideoRows]:
    """Yield the rows of the indexes that a catalogue lacks; note those that cannot be read."""
    for number, (vid, rows) in enumerate(indexes.rows(missing, known), 1):
        if isinstance(rows, GranAlignError):
            damage.reasons[vid] = missing[vid], str(rows)
            damage.states[vid] = indexes.state(vid)
        else:
            yield rows
        if progress:
            progress(number, len(missing))


def _remove_others(root: Path, names: list[str]) -> None:
    """Delete what is neither the pointer nor a named segment, such as what a killed writer left."""
    with os.scandir(root) as entries:
        others = [entry for entry in entries if entry.name not in (POINTER, *names)]
    for other in others:
        if other.is_dir(follow_symlinks=False):
            shutil.rmtree(other.path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(other.path)
