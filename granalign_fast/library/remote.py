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
from granalign_fast.storage.claims import claimed

from .catalogue import Catalogue, Progress, open_catalogue, update_catalogue
from .jobs.output import index_name
from .jobs.records import PARTS
from .locks import locked_copy
from .remote_library import RemoteLibrary
from .tags import FILE as TAGS
from .tags import read_tags, write_tags
from .upkeep import find_video, tag_videos

_log = logging.getLogger(__name__)

_CATALOGUE, _TAGS = "the catalogue", "the tags"
"""The name that a machine claims while it replaces the published file."""

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

    Several machines may do so at once: the last one to publish has seen the indexes of all.

    Args:
        address: of the library.
        rebuild: forget what the catalogue holds, and read all indexes.
        progress: called while indexes are read.

    Raises:
        GranAlignError: the store cannot be read or written, another process of this machine is at
            work on the same library, or another machine publishes it for too long.
    """
    remote = RemoteLibrary(address)
    with locked_copy(remote.folder):
        content, catalogue = _update(remote, rebuild=rebuild, progress=progress)
        with claimed(remote.store, [_CATALOGUE]) as claim:
            if remote.read_pointer() != content:
                # Another machine has published since, and may know indexes that came after the look
                # at them here. Nobody does so from now on: what is still missing is little.
                _log.info("%s: another machine has published its catalogue; once more", address)
                _, catalogue = _update(remote, extend=not rebuild, progress=progress)
            remote.push(catalogue, claim)
    return remote.named(catalogue)


def _update(
    remote: RemoteLibrary,
    *,
    rebuild: bool = False,
    extend: bool = True,
    progress: Progress | None = None,
) -> tuple[bytes | None, Catalogue]:
    """Bring the catalogue of this machine up to date; return it with the published pointer before.

    Args:
        remote: the library.
        rebuild: forget what the catalogue holds, and read all indexes.
        extend: begin with the published catalogue, and not with that of this machine.
        progress: called while indexes are read.
    """
    if rebuild or not extend:
        content = remote.read_pointer()
    elif (content := remote.pull()) is not None:
        remote.install(content)
    folder = remote.folder
    return content, update_catalogue(folder, indexes=remote, rebuild=rebuild, progress=progress)


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
    with claimed(remote.store, [index_name(vid) for vid in vids]):
        remote.store.remove(f"{vid}/{MANIFEST}" for vid in vids)
        for vid in vids:
            remote.store.remove_folder(vid)
            remote.store.remove_folder(f"{PARTS}/{vid}")  # of a job that was killed
    with claimed(remote.store, [_TAGS]) as claim:
        remote.pull_tags()
        tags = read_tags(remote.folder)
        if tags.keys() & set(vids):
            write_tags(remote.folder, {vid: tags[vid] for vid in tags.keys() - set(vids)})
            claim.check()
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
    with claimed(remote.store, [_TAGS]) as claim:
        remote.pull_tags()
        tags = tag_videos(remote.folder, vids, add, remove)
        claim.check()
        remote.store.put(TAGS, remote.folder / TAGS)
    return tags
