"""The upkeep of a library: removing videos, and checking that all its files are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from granalign_fast.errors import GranAlignError, listed
from granalign_fast.index import VideoIndex
from granalign_fast.index.naming import is_named
from granalign_fast.index.own_folders import check_own_folder
from granalign_fast.index.work_folder import FolderBusyError, WorkFolder, lock_folder
from granalign_fast.storage.address import path_text

from .catalogue import Catalogue, open_catalogue, update_catalogue
from .locks import locked_catalogue
from .pointer import FOLDER
from .records import CataloguedVideo, index_stamps
from .tags import check_tags, read_tags, write_tags

_REMOVED = ".removed"
"""Where the indexes of removed videos lie until they are deleted."""


def find_video(catalogue: Catalogue, name: str) -> CataloguedVideo:
    """Return the video of a name: its id, its file's name, or the end of its file's path.

    Raises:
        GranAlignError: there is none of this name, or several; the message lists some.
    """
    videos = {video.vid: video for video in catalogue.videos()}
    if name in videos:
        return videos[name]
    matches = [video for video in videos.values() if is_named(video.path, video.vid, name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = listed([f"{video.vid!r} of {path_text(video.path or Path())}" for video in matches])
        raise GranAlignError(
            f"{catalogue.name}: has {len(matches)} videos {name!r}; name one by its id: {ids}"
        )
    known = f", such as {listed(list(map(repr, videos)))}" if videos else ""
    raise GranAlignError(
        f"{catalogue.name}: has no video {name!r}; expected one of its {len(videos)}{known}"
    )


def remove_videos(library: Path, names: Sequence[str]) -> list[str]:
    """Remove videos from a library: their indexes, their rows and their tags. Video files stay.

    The index of a video leaves its place by one rename. From then on the video is gone, whatever
    happens to this process: no catalogue that is read or rebuilt later has it. Another process may
    be indexing into the library; a video that it indexes anew at this moment comes back.

    Args:
        library: a folder of indexes.
        names: as for `find_video`.

    Returns:
        The ids of the videos.

    Raises:
        GranAlignError: there is no such video, and then none is removed; or a folder cannot be
            changed.
    """
    index_stamps(library)  # raises if there is no such folder, which the lock would make
    _undo_interruption(library)
    catalogue = open_catalogue(library)
    vids = list(dict.fromkeys(_removable(catalogue, name) for name in names))
    removed = library / _REMOVED
    with locked_catalogue(library):
        check_own_folder(removed)
        if gone := [vid for vid in vids if not (library / vid).is_dir()]:
            raise GranAlignError(
                f"{library}: another process has removed or moved {listed(list(map(repr, gone)))}; "
                f"try again"
            )
        try:
            shutil.rmtree(removed, ignore_errors=True)  # of a process that was killed
            removed.mkdir()
            for vid in vids:
                (library / vid).rename(removed / vid)
        except OSError as error:
            raise GranAlignError(
                f"{error.filename}: cannot be removed ({error.strerror or error}); correct the "
                f"permissions"
            ) from None
        # Of all that have no index, for a process that was killed here.
        if (tags := read_tags(library)).keys() - (left := index_stamps(library)).keys():
            write_tags(library, {vid: words for vid, words in tags.items() if vid in left})
        shutil.rmtree(removed, ignore_errors=True)
    _forget_rows(library, vids)
    update_catalogue(library)
    return vids


def _undo_interruption(library: Path) -> None:
    """Put an index back that a killed run has out of its place: it must not come back later.

    A run that is at work has done so when it began.

    Raises:
        GranAlignError: a folder cannot be changed.
    """
    with suppress(FolderBusyError), lock_folder(library):
        WorkFolder(library).recover()


def _forget_rows(library: Path, vids: Sequence[str]) -> None:
    """Delete the rows of videos that a killed run was indexing anew; one at work needs its rows.

    Raises:
        GranAlignError: a folder cannot be changed.
    """
    with suppress(FolderBusyError), lock_folder(library):
        for vid in vids:
            WorkFolder(library).forget_rows(vid)


def _removable(catalogue: Catalogue, name: str) -> str:
    """Return the id of a video that is removed by name; a damaged index has no other name."""
    return name if name in catalogue.damaged else find_video(catalogue, name).vid


def tag_videos(
    library: Path, vids: Sequence[str], add: Sequence[str] = (), remove: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Add tags to videos and remove others.

    Args:
        library: a folder of indexes.
        vids: ids of the videos.
        add: tags that they get.
        remove: tags that they lose.

    Returns:
        The tags of these videos.

    Raises:
        GranAlignError: a tag is blank, or the library cannot be written.
    """
    added, removed = check_tags(add), set(check_tags(remove))
    index_stamps(library)
    with locked_catalogue(library):
        tags = read_tags(library)
        for vid in vids:
            words = dict.fromkeys((*tags.get(vid, ()), *added))
            tags[vid] = tuple(word for word in words if word not in removed)
        write_tags(library, tags)
    return {vid: tags[vid] for vid in vids}


@dataclass(frozen=True, slots=True)
class Verification:
    """The findings of a check of a library.

    Attributes:
        videos: how many indexes were read.
        problems: the reason for each video, by id, that its index or its file is not as it was.
        catalogue: what is wrong with the catalogue; `granalign library rebuild` mends it.
    """

    videos: int
    problems: dict[str, str]
    catalogue: tuple[str, ...]


def verify_library(library: Path, *, files: bool = False) -> Verification:
    """Read every file of a library, and compare it with its hash.

    Args:
        library: a folder of indexes.
        files: also read the video files.

    Raises:
        GranAlignError: there is no such folder, or it cannot be read.
    """
    catalogue = open_catalogue(library)
    problems = {}
    vids = sorted(index_stamps(library))
    for vid in vids:
        try:
            index = VideoIndex.load(library / vid)
            source = None if index.frames is None else index.frames.source
            if files and source is not None:
                source.check(again=True)
        except GranAlignError as error:
            problems[vid] = str(error)
    # What the catalogue on disk lacks is in temporary segments, whose files are gone by now.
    kept = (one for one in catalogue.segments if one.folder.parent == library / FOLDER)
    damage = [segment.find_damage() for segment in kept]
    return Verification(len(vids), problems, tuple(text for text in damage if text))


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:  # a writer deleted it meanwhile
                continue
    return total
