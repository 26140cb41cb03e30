"""Open and read files that somebody else may have made: without blocking, and within a limit."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from .errors import GranAlignError, MissingFileError

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""To open a pipe without O_NONBLOCK waits for a writer, and a terminal could become this process's
own without O_NOCTTY."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(
    path: str | os.PathLike[str],
    most: int | None = None,
    *,
    inside: Path | None = None,
    buffering: int = io.DEFAULT_BUFFER_SIZE,
    remedy: str = "",
) -> io.BufferedReader:
    """Open a regular file for reading in binary mode.

    Args:
        path: of the file.
        most: bytes that the file may have; None for a file that is read in pieces or mapped.
        inside: the folder to which the file belongs, such as an index. The path, once its links are
            followed, must lie in it; for a folder of the hub's cache, in the model's folder there.
        buffering: bytes that are read at once.
        remedy: ends every error message.

    Raises:
        MissingFileError: there is no such file.
        GranAlignError: the file cannot be opened, is a folder, a pipe, a socket or a device, is
            larger than `most`, or is reached by a link that leaves `inside`.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        target = os.fspath(path) if inside is None else _resolve(path, inside, end)
        # Looked at first: to open a device can change it. Looked at again once it is open: the
        # file could have been replaced.
        _check(path, os.stat(target), most, end)  # noqa: PTH116
        descriptor = os.open(target, _FLAGS | (0 if inside is None else os.O_NOFOLLOW))
        try:
            _check(path, os.fstat(descriptor), most, end)
            raw = io.FileIO(path, "rb", opener=lambda *_: descriptor)
            return io.BufferedReader(raw, buffering)
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: cannot be read ({error.strerror}){end}") from None
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error}){end}") from None
    except ValueError as error:
        if isinstance(error, GranAlignError):
            raise
        # A null character, or half of a surrogate pair.
        raise GranAlignError(f"{str(path)!r}: not a file name ({error}){end}") from None


def read_file(
    path: str | os.PathLike[str], most: int, *, inside: Path | None = None, remedy: str = ""
) -> bytes:
    """Return the content of a regular file.

    Args:
        path: of the file.
        most: bytes that the file may have.
        inside: as for `open_file`.
        remedy: ends every error message.

    Raises:
        GranAlignError: as for `open_file`; or the file cannot be read, or has grown beyond `most`.
    """
    with open_file(path, most, inside=inside, remedy=remedy) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            parts = []
            # The first read takes the file, the second finds its end.
            while part := file.read(max(size, 1 << 12)):
                parts.append(part)
                if sum(map(len, parts)) > most:
                    raise _too_large(path, sum(map(len, parts)), most, remedy and f"; {remedy}")
        except OSError as error:
            end = f"; {remedy}" if remedy else ""
            raise GranAlignError(
                f"{path}: cannot be read ({error.strerror or error}){end}"
            ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text(
    path: str | os.PathLike[str], most: int, *, inside: Path | None = None, remedy: str = ""
) -> str:
    """Return a file's UTF-8 text; every end of a line is ``\\n``.

    Args:
        path: of the file.
        most: bytes that the file may have.
        inside: as for `open_file`.
        remedy: ends every error message.

    Raises:
        GranAlignError: as for `read_file`, or the content is not UTF-8.
    """
    content = read_file(path, most, inside=inside, remedy=remedy)
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        end = f"; {remedy}" if remedy else ""
        raise GranAlignError(f"{path}: not UTF-8 text ({error.reason}){end}") from None


def checked_file(
    path: Path, most: int | None = None, *, inside: Path | None = None, remedy: str = ""
) -> Path:
    """Return a path after the checks of `open_file`, for a library that opens files by name.

    Raises:
        GranAlignError: as for `open_file`.
    """
    open_file(path, most, inside=inside, remedy=remedy).close()
    return path


def _resolve(path: str | os.PathLike[str], inside: Path, end: str) -> str:
    """Return the path without links; raise if it is not in the folder."""
    # Nearly always it names a file of the folder itself, which is a link or not.
    name = os.fspath(path)
    if os.path.dirname(name) == os.fspath(inside) and not os.path.islink(name):  # noqa: PTH114, PTH120
        return name
    target, folder = os.path.realpath(path), os.path.realpath(inside)
    # In the hub's cache a folder of a model's commit has links to the files in ``blobs`` above it.
    parent, commits = os.path.split(os.path.dirname(folder))  # noqa: PTH120
    if commits == "snapshots" and os.path.basename(parent).startswith("models--"):  # noqa: PTH119
        folder = parent
    if os.path.commonpath([target, folder]) != folder:
        raise GranAlignError(
            f"{path}: got a link to {target}, expected a file in {inside}; copy the file to its "
            f"place{end}"
        )
    return target


def _check(
    path: str | os.PathLike[str], status: os.stat_result, most: int | None, end: str
) -> None:
    """Raise unless the status is that of a regular file of at most so many bytes."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
        raise GranAlignError(f"{path}: got {kind}, expected a file{end}")
    if most is not None and status.st_size > most:
        raise _too_large(path, status.st_size, most, end)


def _too_large(path: str | os.PathLike[str], size: int, most: int, end: str) -> GranAlignError:
    return GranAlignError(f"{path}: got {size:,} bytes, expected at most {most:,}{end}")
