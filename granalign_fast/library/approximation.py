"""Make the approximate indexes of a library: one for the embeddings of each large segment."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.index.work_folder import lock_folder

from .approximate import ApproximateIndex
from .catalogue import Progress
from .codes import CodedRows
from .first_stage import ALL_COMPARED
from .opening import open_library_catalogue


@dataclass(frozen=True, slots=True)
class Approximated:
    """The outcome of `approximate_library`: numbers of matrices of embeddings.

    Attributes:
        made: that have an approximate index now, and had none.
        kept: that had one before.
        compared: of segments so small that all their clips are compared.
    """

    made: int
    kept: int
    compared: int


def approximate_library(library: str | Path, *, progress: Progress | None = None) -> Approximated:
    """Make an approximate index of each segment that is large enough and has none of this user.

    Args:
        library: a folder of indexes; or an address in an object store, of whose catalogue the copy
            on this machine gets the indexes.
        progress: called with the number of matrices that are done, and of all.

    Raises:
        GranAlignError: there is no such library, it cannot be written, another process is at work
            on it, a segment is damaged, or Faiss is not installed.
    """
    catalogue = open_library_catalogue(library)
    every = [(segment, coded) for segment in catalogue.segments for coded in segment.coded]
    large = [(segment, coded) for segment, coded in every if len(coded.rows) > ALL_COMPARED]
    made = 0
    with lock_folder(catalogue.folder):
        for number, (segment, coded) in enumerate(large, 1):
            _remove_drafts(coded.path)
            if not _has_approximate(coded):
                segment.check()  # the index names the hash that the rows should have
                ApproximateIndex.of(coded.rows).write(coded.path, coded.sha256)
                made += 1
            if progress:
                progress(number, len(large))
    return Approximated(made, len(large) - made, len(every) - len(large))


def _remove_drafts(path: Path) -> None:
    """Delete what a killed process has left of an index; the lock says that none is at work."""
    for draft in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError):
            draft.unlink()


def _has_approximate(coded: CodedRows) -> bool:
    try:
        coded.open_approximate()
    except MissingExtraError:
        raise
    except GranAlignError:
        return False
    return True
