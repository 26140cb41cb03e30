"""A library in an object store: its catalogue is copied to this machine, an index when needed.

The indexes are the truth here too. A job derives the catalogue from them and publishes it in the
folder ``.catalogue`` of the store: segments first, then the pointer that names them. A reader
copies the segments that the pointer names, and lists nothing. So it sees the catalogue of before or
of after a job, and opens a large library as fast as a small one once it has the segments.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from granalign_fast.config import MOST_INDEX_BYTES, MOST_JSON_BYTES
from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import CLIPS, EMBEDDINGS, MANIFEST, write_durably
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.runtime.cache_folder import LIBRARIES, cache_limit, mark_used, usable_cache
from granalign_fast.storage import Address, Store

from .catalogue import (
    FOLDER,
    POINTER,
    Catalogue,
    Progress,
    open_catalogue,
    parse_pointer,
    pointer_content,
    update_catalogue,
)
from .jobs.output import list_manifests
from .records import CataloguedVideo, VideoRows, read_rows
from .segment import Segment, SegmentRecord
from .tags import FILE as TAGS
from .tags import read_tags, write_tags
from .upkeep import find_video, tag_videos

_log = logging.getLogger(__name__)

_REQUESTS = 16
"""Indexes that are copied at a time."""
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
    address: Address, vids: Iterable[str], add: Sequence[str] = (), remove: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Add tags to videos of a library in an object store, and remove others.

    Arguments, result and errors are those of `tag_videos`.
    """
    remote = RemoteLibrary(address)
    remote.pull_tags()
    tags = tag_videos(remote.folder, vids, add, remove)
    remote.store.put(TAGS, remote.folder / TAGS)
    return tags


class RemoteLibrary:
    """The indexes of a library in an object store, and what this machine has copied of them.

    Args:
        address: of the library.

    Raises:
        GranAlignError: the copy cannot be made.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.store = Store(address)
        cache = usable_cache()
        if cache is None:
            self.folder = Path(tempfile.mkdtemp(prefix="granalign-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        else:
            name = hashlib.sha256(address.full.encode()).hexdigest()[:16]
            self.folder = cache / LIBRARIES / name
        try:
            for folder in (self._segments, self._copies, self.folder / FOLDER):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GranAlignError(
                f"{self.folder}: cannot be made ({error.strerror or error}); set XDG_CACHE_HOME to "
                f"a folder that can be written"
            ) from None
        mark_used(self.folder)
        self._prune()

    def __str__(self) -> str:
        return str(self.address)

    @property
    def _segments(self) -> Path:
        return self.folder / ".published"

    @property
    def _copies(self) -> Path:
        return self.folder / ".indexes"

    def named(self, catalogue: Catalogue) -> Catalogue:
        """Return a catalogue of this machine as that of the library."""
        return Catalogue(
            self.folder,
            catalogue.segments,
            catalogue.live,
            catalogue.damaged,
            catalogue.missing,
            remote=self,
        )

    def stamps(self) -> dict[str, str]:
        """Return the stamp of each index, by video id; all objects of the library are listed."""
        return {vid: file.stamp for vid, file in list_manifests(self.store).items()}

    def rows(
        self, stamps: Mapping[str, str], known: Mapping[str, CataloguedVideo]
    ) -> Iterator[tuple[str, VideoRows | GranAlignError]]:
        """Yield the rows of indexes, or why an index cannot be read; several are copied ahead."""
        with ThreadPoolExecutor(_REQUESTS) as pool:

            def read(vid: str) -> VideoRows | GranAlignError:
                try:
                    with tempfile.TemporaryDirectory(prefix="granalign-") as name:
                        folder = Path(name, vid)
                        self._copy_index(vid, folder)
                        return read_rows(folder, stamps[vid], known.get(vid))
                except GranAlignError as error:
                    return error

            vids = iter(stamps)
            running: deque[tuple[str, Future[VideoRows | GranAlignError]]] = deque(
                (vid, pool.submit(read, vid)) for vid in islice(vids, _REQUESTS)
            )
            while running:
                vid, future = running.popleft()
                yield vid, future.result()
                running.extend((vid, pool.submit(read, vid)) for vid in islice(vids, 1))

    def index_folder(self, vid: str, stamp: str) -> Path:
        """Return a local copy of an index, which is made unless there is one of this stamp.

        Raises:
            GranAlignError: it cannot be copied.
        """
        key = hashlib.sha256(json.dumps([vid, stamp]).encode()).hexdigest()[:16]
        folder = self._copies / key / vid
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix=".", dir=self._copies) as name:
                self._copy_index(vid, Path(name, "copy", vid))
                with suppress(OSError):  # another process was quicker
                    Path(name, "copy").rename(folder.parent)
        mark_used(folder.parent)
        return folder

    def _copy_index(self, vid: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        for file in (MANIFEST, CLIPS, EMBEDDINGS):
            self.store.fetch(f"{vid}/{file}", folder / file, MOST_INDEX_BYTES)

    def pull(self) -> bytes | None:
        """Copy the pointer of the published catalogue, its segments, and the tags.

        Returns:
            The content of the pointer; None if no catalogue is published.

        Raises:
            GranAlignError: the store cannot be read.
        """
        pointer = f"{FOLDER}/{POINTER}"
        if self.store.find(pointer) is None:
            return None
        content = self.store.read(pointer, MOST_JSON_BYTES)
        records, _ = parse_pointer(f"{self.address}/{pointer}", content)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(self._pull_segment, records))
        self.pull_tags()
        return content

    def pull_tags(self) -> None:
        """Copy the tags of the videos."""
        if self.store.find(TAGS) is not None:
            self.store.fetch(TAGS, self.folder / TAGS, MOST_JSON_BYTES)

    def _pull_segment(self, record: SegmentRecord) -> None:
        target = self._segments / record.name
        if target.exists():
            return
        with tempfile.TemporaryDirectory(prefix=".", dir=self._segments) as name:
            draft = Path(name, "segment")
            draft.mkdir()
            for file, (size, sha256) in record.files.items():
                try:
                    got = self.store.fetch(f"{FOLDER}/{record.name}/{file}", draft / file, size)
                except GranAlignError as error:  # a job may have replaced it since
                    _log.info("%s", error)
                    return
                if got != sha256:
                    _log.info("%s/%s: has another content than it should", record.name, file)
                    return
            with suppress(OSError):  # another process was quicker
                draft.rename(target)

    def published(self, content: bytes) -> Catalogue | None:
        """Return the published catalogue, or None if a part of it could not be copied.

        Args:
            content: of the pointer.
        """
        records, damaged = parse_pointer(self.address, content)
        try:
            dead = parse_json(content).get("dead", {})
            segments = [Segment(self._segments / one.name, one) for one in records]
        except (OSError, GranAlignError, LookupError, ValueError, ArithmeticError) as error:
            _log.info("%s: a part of the catalogue cannot be read: %s", self.address, error)
            return None
        live = tuple(
            tuple(n for n in range(len(one.videos)) if n not in set(dead.get(one.record.name, ())))
            for one in segments
        )
        return Catalogue(self.folder, tuple(segments), live, damaged, remote=self)

    def install(self, content: bytes) -> None:
        """Make the published catalogue the one of this machine, which a job then extends."""
        root = self.folder / FOLDER
        for record in parse_pointer(self.address, content)[0]:
            source, target = self._segments / record.name, root / record.name
            if source.exists() and not target.exists():
                shutil.copytree(source, target, copy_function=os.link)
        write_durably(root / POINTER, content)

    def push(self, catalogue: Catalogue) -> None:
        """Publish a catalogue; what the one before names stays for readers that are under way.

        Raises:
            GranAlignError: the store cannot be written.
        """
        pointer = f"{FOLDER}/{POINTER}"
        there = self.store.list(FOLDER)
        before: list[SegmentRecord] = []
        if pointer in there:
            before, _ = parse_pointer(self.address, self.store.read(pointer, MOST_JSON_BYTES))
        for segment in catalogue.segments:
            for file, (size, _) in segment.record.files.items():
                name = f"{FOLDER}/{segment.record.name}/{file}"
                if name not in there or there[name].bytes != size:
                    self.store.put(name, segment.folder / file)
        records = [segment.record for segment in catalogue.segments]
        dead = {
            segment.record.name: sorted(set(range(len(segment.videos))) - set(live))
            for segment, live in zip(catalogue.segments, catalogue.live, strict=True)
        }
        content = pointer_content(records, catalogue.damaged, dead=dead)
        self.store.write(pointer, content)
        kept = {one.name for one in (*before, *records)}
        self.store.remove(
            name for name in there if name != pointer and name.split("/")[1] not in kept
        )

    def _prune(self) -> None:
        """Delete the copies of indexes that were used least lately, above the cache's bound."""
        copies = []
        for path in self._copies.iterdir():
            with suppress(OSError):
                size = sum(file.stat().st_size for file in path.rglob("*"))
                copies.append((path.stat().st_mtime, size, path))
        total, limit = sum(size for _, size, _ in copies), cache_limit()
        for _, size, path in sorted(copies):
            if total <= limit:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= size
