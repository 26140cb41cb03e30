"""Find the video files of a request that names files and folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.video.container import ffmpeg_reason

OnError = Callable[[Path, GranAlignError], None]
"""Called with the path of a file that could not be indexed, and the reason."""

VIDEO_SUFFIXES = frozenset(
    {
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv"),
        *(".gif", ".insv", ".ismv", ".lrv", ".m2t", ".m2ts", ".m2v", ".m4v"),
        *(".mj2", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts"),
        *(".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts"),
        *(".vob", ".webm", ".wmv", ".wtv", ".y4m"),
    }
)
"""Suffixes by which a walk knows a video file; upper and lower case are the same."""


def find_videos(
    paths: Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = True,
    include: Sequence[str] = (),
    on_error: OnError | None = None,
) -> list[Path]:
    """Return the named files, and the video files in the named folders, each once.

    A walk skips hidden files and folders, and does not enter folders that are symbolic links. A
    named file or folder is taken whatever its name is.

    Args:
        paths: files and folders. The files of a folder are sorted by path.
        recursive: also walk the folders inside the named ones.
        include: patterns such as ``"*.mp4"``, of which a file's name must match one; a pattern
            with a slash is matched against the path from the named folder on. Upper and lower case
            are the same. Without patterns, a file needs one of `VIDEO_SUFFIXES`.
        on_error: as for `index_videos`; here it is called for folders.

    Raises:
        GranAlignError: without `on_error`, a folder cannot be read or holds no video file, or a
            path is a URL or no regular file.
    """
    found: dict[Path, None] = {}
    for path in paths:
        try:
            check_is_file_name(path)
            folder = Path(path)
            if not folder.is_dir():
                found[folder.absolute()] = None
                continue
            files, errors = _walk(folder, recursive, [pattern.lower() for pattern in include])
            found |= dict.fromkeys(files)
            for error in errors:
                _report(Path(error.filename or folder), _unreadable(error), on_error)
            if not files and not errors:
                _report(folder, _no_videos(folder, recursive, include), on_error)
        except GranAlignError as error:
            _report(Path(path), error, on_error)
    return list(found)


def check_is_file_name(path: str | os.PathLike[str]) -> None:
    """Check that a path is not a URL, a pipe or a device, which are no video files.

    Raises:
        GranAlignError: it is one of them.
    """
    name = os.fspath(path)
    scheme, colon, rest = name.partition(":")
    # A Path holds "https:/host", with one slash. A file of such a name counts as a file.
    is_url = colon and rest.startswith("/") and len(scheme) > 1 and scheme.isalnum()
    try:
        mode = Path(name).stat().st_mode
    except FileNotFoundError:
        if is_url:
            raise GranAlignError(
                f"{name}: got a URL, expected a file; download the video, then name the file"
            ) from None
        if name == "-":
            raise GranAlignError(
                "-: got the standard input, expected a file; save the video to a file, then name it"
            ) from None
        return  # reported when it is opened
    except (OSError, ValueError):  # the latter of a null character
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise GranAlignError(
            f"{name}: got {what}, expected a regular file; save the video to a file, then name it"
        )


def _walk(
    folder: Path, recursive: bool, patterns: Sequence[str]
) -> tuple[list[Path], list[OSError]]:
    """Return the sorted video files below a folder, and the errors of folders in it."""
    top = folder.absolute()
    errors: list[OSError] = []
    files: list[Path] = []
    for parent, folders, names in os.walk(top, onerror=errors.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        files += [path for path in paths if _matches(path, top, patterns)]
    return sorted(files), errors


def _matches(path: Path, top: Path, patterns: Sequence[str]) -> bool:
    if not patterns:
        return path.suffix.lower() in VIDEO_SUFFIXES
    relative = path.relative_to(top).as_posix().lower()
    return any(
        fnmatchcase(relative if "/" in pattern else path.name.lower(), pattern)
        for pattern in patterns
    )


def _no_videos(folder: Path, recursive: bool, include: Sequence[str]) -> GranAlignError:
    deeper = "" if recursive else ", not counting the folders in it"
    if include:
        patterns = ", ".join(include)
        return GranAlignError(f"{folder}: holds no file that matches {patterns}{deeper}")
    return GranAlignError(
        f"{folder}: holds no file with the suffix of a video{deeper}; name the files, or give "
        f"--include a pattern"
    )


def _unreadable(error: OSError) -> GranAlignError:
    return GranAlignError(f"{error.filename}: cannot be read ({ffmpeg_reason(error)})")


def _report(path: Path, error: GranAlignError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(path, error)
