"""Open the catalogue of a library, wherever the library is."""

from __future__ import annotations

from pathlib import Path

from granalign_fast.storage import Address

from .catalogue import Catalogue, Progress, open_catalogue


def open_library_catalogue(place: str | Path, *, progress: Progress | None = None) -> Catalogue:
    """Open the catalogue of a library.

    Args:
        place: a folder of indexes, whose catalogue is brought up to date first; or the address of a
            prefix in an object store, of which the published catalogue counts.
        progress: called while indexes are read into the catalogue.

    Raises:
        GranAlignError: there is no such library, or it cannot be read.
    """
    if (address := Address.find(place)) is None:
        return open_catalogue(Path(place), progress=progress)
    from .remote import open_remote

    return open_remote(address, progress)
