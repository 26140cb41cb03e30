"""Write the new paths of video files that were moved into their indexes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from granalign_fast.errors import GranAlignError, listed
from granalign_fast.files import sha256_of
from granalign_fast.video.container import ffmpeg_reason

from .known_files import FILE_NAME, KnownFiles
from .manifest import MANIFEST, read_manifest_source
from .naming import read_library
from .records import VideoSource
from .video_files import Reading, reporting
from .walk import OnError
from .work_folder import WorkFolder, lock_folder


def relocate_videos(
    out: str | os.PathLike[str],
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    on_error: OnError | None = None,
    reading: Reading | None = None,
) -> list[Path]:
    """Write the new paths of videos that were moved from `old` to `new` into their indexes.

    No model is needed, and no video is decoded. Each file is read at its new path, and its index is
    changed only if size and SHA-256 are those of the file that was indexed. The manifest of each
    index is replaced whole or not at all.

    Args:
        out: a folder of indexes, or one index.
        old: the folder in which the files were, at any depth, or the path of one file. It need not
            exist any more.
        new: the folder or the file that it is now.
        on_error: called with the new path of each file whose index cannot be changed, and the
            reason. None raises the first such error.
        reading: called while files are read to find their hashes.

    Returns:
        The folders of the indexes whose files are at their new paths, sorted by id.

    Raises:
        GranAlignError: there is no index, or none of a file in `old`; another process is indexing
            into the folder; or the disk is full. Without `on_error`, also if a file is not at its
            new path, is another one, or is the file of another index.
    """
    out, old, new = Path(out), _normal(old), _normal(new)
    single = (out / MANIFEST).is_file()
    library_folder = out.absolute().parent if single else out
    if not library_folder.is_dir():
        raise GranAlignError(f"{out}: no such folder; name a folder that `granalign index` wrote")
    with lock_folder(library_folder):
        work = WorkFolder(library_folder)
        work.recover()
        library = read_library(library_folder)
        chosen = _read_single(out) if single else library
        moved = _moved_sources(chosen, old, new)
        if not moved:
            _raise_not_found(out, chosen, old)
        known = KnownFiles(library_folder)
        folders = []
        progress = _Progress([chosen[vid] for vid in moved], reading)
        for vid, path in moved.items():
            with reporting(path, on_error):
                source = replace(chosen[vid], path=path)
                _check_is_free(source, {k: s for k, s in library.items() if k not in moved})
                _check_content(source, known, progress)
                if source != chosen[vid]:
                    work.update_source(vid, source)
                library[vid] = source
                folders.append(library_folder / vid)
        # An index on its own has no list of known files beside it.
        if not single or (library_folder / FILE_NAME).exists():
            known.write({source.path for source in library.values()})
    return [out] if single and folders else folders


def _normal(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path without ``..``; symbolic links stay."""
    return Path(os.path.normpath(Path(path).absolute()))


def _read_single(folder: Path) -> dict[str, VideoSource]:
    source = read_manifest_source(folder)
    return {} if source is None else {folder.absolute().name: source}


def _moved_sources(library: Mapping[str, VideoSource], old: Path, new: Path) -> dict[str, Path]:
    """Return the new path of each file that was in `old`, by the id of its index."""
    moved = {}
    for vid, source in sorted(library.items()):
        path = _normal(source.path)
        if path.is_relative_to(old):
            # As with the command mv, a file can be moved into a folder that is named alone.
            is_into = path == old and new.is_dir()
            moved[vid] = new / old.name if is_into else new / path.relative_to(old)
    return moved


def _raise_not_found(out: Path, library: Mapping[str, VideoSource], old: Path) -> None:
    folders = sorted({str(source.path.parent) for source in library.values()})
    if not folders:
        raise GranAlignError(
            f"{out}: holds no index of a video file; name a folder that `granalign index` wrote"
        )
    raise GranAlignError(
        f"{old}: no index of {out} has a file at this path or in this folder; expected a part of "
        f"{listed(folders)}"
    )


def _check_is_free(source: VideoSource, others: Mapping[str, VideoSource]) -> None:
    """Raise if the file at the new path already has an index of its own."""
    for vid, other in others.items():
        if _normal(other.path) == source.path:
            raise GranAlignError(
                f"{source.path}: is the file of the index {vid!r} already; delete one of the two "
                f"indexes"
            )


class _Progress:
    """Counts the bytes that are read, of all that are to be read."""

    def __init__(self, sources: Sequence[VideoSource], reading: Reading | None) -> None:
        self._done, self._total = 0, sum(source.bytes for source in sources)
        self._reading = reading

    def advance(self, more: int) -> None:
        """Report that more bytes were read."""
        self._done += more
        if self._reading is not None:
            self._reading(self._done, max(self._done, self._total))


def _check_content(source: VideoSource, known: KnownFiles, progress: _Progress) -> None:
    """Raise unless the file has the size and the content that the source describes."""
    path = source.path
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise GranAlignError(f"{path}: cannot be read ({ffmpeg_reason(error)})") from None
    if not path.is_file():
        raise GranAlignError(f"{path}: got a folder or a device, expected the video file")
    if status.st_size != source.bytes:
        raise GranAlignError(
            f"{path}: got {status.st_size} bytes, expected the {source.bytes} of the file that was "
            f"indexed; index this file instead"
        )
    sha256 = known.sha256(path, status)
    if sha256 is None:
        sha256 = sha256_of(path, progress.advance)
        known.add(path, status, sha256)
    if sha256 != source.sha256:
        raise GranAlignError(
            f"{path}: has another content than the file that was indexed; index this file instead"
        )
