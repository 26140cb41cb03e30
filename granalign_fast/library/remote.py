"""A library in an object store: its catalogue is copied to this machine, an index when needed.

The indexes are the truth here too. A job derives the catalogue from them and publishes it in the
folder ``.catalogue`` of the store: segments first, then the pointer that names them. A reader
copies the segments that the pointer names, and lists nothing. So it sees the catalogue of before or
of after a job, and opens a large library as fast as a small one once it has the segments.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import MANIFEST
from granalign_fast.storage import Address, Store

from .catalogue import Catalogue, Progress, open_catalogue, update_catalogue
from .remote_library import RemoteLibrary
from .tags import FILE as TAGS
from .tags import read_tags, write_tags
from .upkeep import find_video, tag_videos

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
"""How often a reader begins again where a job has replaced the catalogue in the meantime."""


def open_remote(address: Address, progress: Progress | None = None) -> Catalogue:
    """Open the catalogue of a library in an object store.

    It is the one that is published there. Without one, it is made on this machine from the indexes.

    Args:
        address: of the library.
        progress: called while indexes are read, if there is no catalogue.

    Raises:
        GranAlignError: the store cannot be read.
    """
    remote = RemoteLibrary(address)
    for _ in range(_ATTEMPTS):
        content = remote.pull()
        if content is None:
            _log.info("%s: has no catalogue; it is made here from the indexes", address)
            return remote.named(open_catalogue(remote.folder, indexes=remote, progress=progress))
        if (catalogue := remote.published(content)) is not None:
            return catalogue
    raise GranAlignError(
        f"{address}: its catalogue is damaged or changes all the time; run granalign library "
        f"rebuild {address}"
    )


def publish_catalogue(
    address: Address, *, rebuild: bool = False, progress: Progress | None = None
) -> Catalogue:
    """Bring the catalogue in an object store up to date with its indexes, and open it.

    Args:
        address: of the library.
        rebuild: forget what the catalogue holds, and read all indexes.
        progress: called while indexes are read.

    Raises:
        GranAlignError: the store cannot be read or written, or another process of this machine is
            at work on the same library.
    """
    remote = RemoteLibrary(address)
    content = None if rebuild else remote.pull()
    if content is not None:
        remote.install(content)
    catalogue = update_catalogue(remote.folder, indexes=remote, rebuild=rebuild, progress=progress)
    remote.push(catalogue)
    return remote.named(catalogue)


def fetch_index(address: Address, name: str | None) -> Path | None:
    """Return a local copy of one index; None if an address is a library and no video is named.

    Args:
        address: of an index, or of a library.
        name: of a video of the library, as for `find_video`.

    Raises:
        GranAlignError: the store cannot be read, or has no such video.
    """
    parent, _, vid = address.path.rpartition("/")
    manifest = Store(address).find(MANIFEST) if parent else None
    if manifest is not None:
        if name is not None:
            raise GranAlignError(
                f"--vid {name}: got {address}, which is the index of one video; leave --vid out"
            )
        library = RemoteLibrary(replace(address, path=parent))
        return library.index_folder(vid, manifest.stamp)
    if name is None:
        return None
    catalogue = open_remote(address)
    return catalogue.index_folder(find_video(catalogue, name))


def remove_remote(address: Address, names: Sequence[str]) -> list[str]:
    """Remove videos from a library in an object store: indexes, rows and tags. Videos stay.

    The manifest of an index is deleted first. From then on the video is in no catalogue that is
    made later. If this process is killed, the same call removes the rest.

    Arguments, result and errors are those of `remove_videos`.
    """
    catalogue = publish_catalogue(address)
    remote = RemoteLibrary(address)
    damaged = catalogue.damaged.keys()
    vids = list(
        dict.fromkeys(
            name if name in damaged else find_video(catalogue, name).vid for name in names
        )
    )
    remote.store.remove(f"{vid}/{MANIFEST}" for vid in vids)
    for vid in vids:
        remote.store.remove_folder(vid)
    tags = read_tags(remote.folder)
    if tags.keys() & set(vids):
        write_tags(remote.folder, {vid: tags[vid] for vid in tags.keys() - set(vids)})
        remote.store.put(TAGS, remote.folder / TAGS)
    publish_catalogue(address)
    return vids


def tag_remote(
    address: Address, vids: Sequence[str], add: Sequence[str] = (), remove: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Add tags to videos of a library in an object store, and remove others.

    Arguments, result and errors are those of `tag_videos`.
    """
    remote = RemoteLibrary(address)
    remote.pull_tags()
    tags = tag_videos(remote.folder, vids, add, remove)
    remote.store.put(TAGS, remote.folder / TAGS)
    return tags
