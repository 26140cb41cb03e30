"""The copy on this machine of a library in an object store, and the publishing of its catalogue."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from granalign_fast.config import MOST_INDEX_BYTES, MOST_JSON_BYTES
from granalign_fast.errors import GranAlignError, one_line, short_repr
from granalign_fast.index.manifest import write_durably
from granalign_fast.runtime.cache_folder import LIBRARIES, cache_limit, mark_used, usable_cache
from granalign_fast.storage import Address, Store
from granalign_fast.storage.claims import Claim

from .catalogue import Catalogue
from .indexes import INDEX_FILES
from .jobs.output import list_manifests
from .pointer import FOLDER, POINTER, Pointer, parse_pointer
from .records import CataloguedVideo, VideoRows, is_plain_name, read_rows
from .segment import Segment, SegmentRecord
from .tags import FILE as TAGS

_log = logging.getLogger(__name__)

_POINTER = f"{FOLDER}/{POINTER}"
_REQUESTS = 16
"""Indexes that are copied at a time."""
_IN_USE = 3600
"""Seconds within which the draft of a copy may belong to a process that is at work."""


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
        return replace(catalogue, folder=self.folder, remote=self)

    def stamps(self) -> dict[str, str]:
        """Return the stamp of each index, by video id; all objects of the library are listed."""
        return {vid: file.stamp for vid, file in list_manifests(self.store).items()}

    def state(self, vid: str) -> str:
        """Return a text that changes whenever a file of an index does."""
        return " ".join(f"{name} {file.stamp}" for name, file in self.store.list(vid).items())

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
            GranAlignError: it cannot be copied, or the id leads out of the folder of copies.
        """
        if not is_plain_name(vid):
            raise GranAlignError(
                f"{self.address}: got the video id {short_repr(vid)}, expected the name of a "
                f"folder; run granalign library rebuild {self.address}"
            )
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
        for file in INDEX_FILES:
            self.store.fetch(f"{vid}/{file}", folder / file, MOST_INDEX_BYTES)

    def read_pointer(self) -> bytes | None:
        """Return the content of the published pointer; None if no catalogue is published.

        Raises:
            GranAlignError: the store cannot be read.
        """
        if self.store.find(_POINTER) is None:
            return None
        return self.store.read(_POINTER, MOST_JSON_BYTES)

    def pull(self) -> bytes | None:
        """Copy the pointer of the published catalogue, its segments, and the tags.

        Returns:
            The content of the pointer; None if no catalogue is published.

        Raises:
            GranAlignError: the store cannot be read.
        """
        self.pull_tags()
        content = self.read_pointer()
        if content is None:
            return None
        if (parsed := parse_pointer(f"{self.address}/{_POINTER}", content)) is not None:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                list(pool.map(self._pull_segment, parsed.segments))
        return content

    def pull_tags(self) -> None:
        """Copy the tags of the videos; without a file of tags there is no copy of one."""
        if self.store.find(TAGS) is not None:
            self.store.fetch(TAGS, self.folder / TAGS, MOST_JSON_BYTES)
        else:
            (self.folder / TAGS).unlink(missing_ok=True)

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
        """Return the published catalogue, or None if it is damaged or a part was not copied.

        Args:
            content: of the pointer.
        """
        pointer = parse_pointer(self.address, content)
        if pointer is None:
            return None
        try:
            segments = [
                Segment(self._segments / one.name, one, self.address) for one in pointer.segments
            ]
        except (OSError, GranAlignError, LookupError, ValueError, ArithmeticError) as error:
            _log.info("%s: a part of the catalogue cannot be read: %s", self.address, error)
            return None
        dead = [set(pointer.dead.get(one.record.name, ())) for one in segments]
        live = tuple(
            tuple(number for number in range(len(one.videos)) if number not in left_out)
            for one, left_out in zip(segments, dead, strict=True)
        )
        self._forget_segments([one.name for one in pointer.segments])
        return Catalogue(
            self.folder, tuple(segments), live, pointer.damaged, pointer.states, remote=self
        )

    def _forget_segments(self, names: Collection[str]) -> None:
        """Delete the copies of segments that the published catalogue does not name any more.

        A process that is about to open one of them finds it missing, and copies the new ones.
        """
        for path in self._segments.iterdir():
            with suppress(OSError):
                is_draft = path.name.startswith(".")  # of a process that may be at work
                if is_draft and time.time() - path.stat().st_mtime < _IN_USE:
                    continue
                if path.name not in names:
                    shutil.rmtree(path, ignore_errors=True)

    def install(self, content: bytes) -> None:
        """Make the published catalogue the one of this machine, which a job then extends.

        Raises:
            GranAlignError: the cache cannot be written.
        """
        root = self.folder / FOLDER
        pointer = parse_pointer(self.address, content) or Pointer()
        for record in pointer.segments:
            source, target = self._segments / record.name, root / record.name
            if source.exists() and not target.exists():
                try:
                    shutil.copytree(source, target, copy_function=_link_or_copy)
                except FileExistsError:  # another process was quicker
                    continue
                except OSError as error:
                    raise GranAlignError(
                        f"{target}: cannot be written ({one_line(error)}); free disk space"
                    ) from None
        write_durably(root / POINTER, content)

    def push(self, catalogue: Catalogue, claim: Claim) -> None:
        """Publish a catalogue; what the one before names stays for readers that are under way.

        Args:
            catalogue: of this machine.
            claim: on the catalogue of the store, so that no other machine publishes meanwhile.

        Raises:
            GranAlignError: the store cannot be written, or a segment of this machine is damaged.
        """
        there = self.store.list(FOLDER)
        content = self.read_pointer()
        before = None if content is None else parse_pointer(self.address, content)
        for segment in catalogue.segments:
            for file, (size, sha256) in segment.record.files.items():
                name = f"{FOLDER}/{segment.record.name}/{file}"
                if name in there and there[name].bytes == size:
                    continue
                if (got := self.store.put(name, segment.folder / file)) != sha256:
                    raise GranAlignError(
                        f"{segment.folder / file}: got SHA-256 {got}, expected {sha256}; run "
                        f"granalign library rebuild {self.address}"
                    )
        records = tuple(segment.record for segment in catalogue.segments)
        dead = {
            segment.record.name: sorted(set(range(len(segment.videos))) - set(live))
            for segment, live in zip(catalogue.segments, catalogue.live, strict=True)
        }
        published = Pointer(
            records, catalogue.damaged, catalogue.states, dead, edition=os.urandom(8).hex()
        )
        claim.check()
        self.store.write(_POINTER, published.to_json())
        kept = {one.name for one in (*(before or Pointer()).segments, *records)}
        for name in {name.split("/")[1] for name in there if name != _POINTER} - kept:
            self.store.remove_folder(f"{FOLDER}/{name}")

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


def _link_or_copy(source: str, target: str) -> None:
    """Link a file that never changes; copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
