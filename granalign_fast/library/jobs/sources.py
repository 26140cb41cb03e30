"""The sources of a job: which videos there are, their ids, and which of them need work."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import IndexManifest
from granalign_fast.index.naming import assign_ids, folded, video_name
from granalign_fast.index.records import VideoSource
from granalign_fast.index.walk import VIDEO_SUFFIXES, find_videos
from granalign_fast.models.manifest import VLM
from granalign_fast.storage import Address, Store, StoredFile
from granalign_fast.storage.address import path_text

from .output import check_replaceable, list_manifests, read_manifests
from .records import Job, SourceVideo

OnFailure = Callable[[str, GranAlignError], None]
"""Called with the name of a video that could not be indexed, and the reason."""

Hasher = Callable[[Sequence[str]], Iterable[str | GranAlignError]]
"""Returns the SHA-256 of each of the named files, or the reason why it cannot be read."""

_GLOB = frozenset("*[")
"""Signs of a pattern; in an address, a question mark begins the options."""


def find_sources(
    names: Sequence[str],
    *,
    recursive: bool = True,
    include: Sequence[str] = (),
    on_error: OnFailure,
) -> dict[str, StoredFile]:
    """Return size and time of each video file that is named, by its absolute path or address.

    Args:
        names: files and folders, as for `find_videos`, and addresses: of an object, of a prefix, or
            with a pattern such as ``s3://bucket/videos/*.mp4``. In a pattern, ``*`` also stands for
            slashes.
        recursive: also walk the folders inside the named ones.
        include: as for `find_videos`.
        on_error: called with each name that stands for no video.
    """
    found: dict[str, StoredFile] = {}
    local: list[str] = []
    for name in names:
        try:
            if (address := Address.find(name)) is None:
                local.append(name)
            else:
                found |= _list_address(address, recursive, include)
        except GranAlignError as error:
            on_error(name, error)
    if local:
        paths = find_videos(
            local,
            recursive=recursive,
            include=include,
            on_error=lambda path, error: on_error(str(path), error),
        )
        for path in paths:
            file = Store.at(path).find()
            if file is None:
                on_error(str(path), GranAlignError(f"{path}: no such file"))
            else:
                found[str(path)] = file
    return found


def _list_address(
    address: Address, recursive: bool, include: Sequence[str]
) -> dict[str, StoredFile]:
    """Return the objects that an address stands for.

    Raises:
        GranAlignError: there are none, or the store cannot be read.
    """
    if not (_GLOB & set(address.path)) and (file := Store(address).find()) is not None:
        return {address.full: file}
    parts = address.path.split("/")
    plain = next((n for n, part in enumerate(parts) if _GLOB & set(part)), len(parts))
    if plain == 0:
        raise GranAlignError(f"{address}: expected the name of a bucket before the pattern")
    root = Address(address.scheme, "/".join(parts[:plain]), address.options)
    pattern = "/".join(parts[plain:])
    objects = Store(root).list(recursive=recursive or "/" in pattern)
    chosen = {
        root.child(name).full: file
        for name, file in objects.items()
        if not any(part.startswith(".") for part in name.split("/"))
        and (fnmatchcase(name, pattern) if pattern else _matches(name, include))
    }
    if not chosen:
        raise GranAlignError(
            f"{address}: got no video there; expected objects with the suffix of a video, or of "
            f"the pattern; list the bucket, and name another prefix"
        )
    return chosen


def _matches(name: str, include: Sequence[str]) -> bool:
    path = PurePosixPath(name.lower())
    if not include:
        return path.suffix in VIDEO_SUFFIXES
    return any(
        fnmatchcase(str(path) if "/" in pattern else path.name, pattern.lower())
        for pattern in include
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of a job.

    Attributes:
        pending: the videos to index.
        current: ids of those whose index is up to date.
        moved: those whose index only has to learn their new place.
        order: ids of all videos, in the order of their files.
        manifests: size and time of each manifest that was there.
    """

    pending: list[SourceVideo] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    moved: list[tuple[str, VideoSource]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    manifests: Mapping[str, StoredFile] = field(default_factory=dict)


def plan(job: Job, files: Mapping[str, StoredFile], hasher: Hasher, on_error: OnFailure) -> Plan:
    """Give each video its id, and find those whose index is missing or out of date.

    A file is read for its hash only if its name is that of another file, of this job or of an index
    that is there: the hash then tells copies, moved files and other videos apart.

    Args:
        job: the job.
        files: as `find_sources` returns them.
        hasher: reads files.
        on_error: called with each file that cannot be read.

    Raises:
        GranAlignError: the output cannot be read.
    """
    times = list_manifests(job.out)
    manifests = read_manifests(job.out, times)
    library = {vid: one.source for vid, one in manifests.items() if one is not None and one.source}
    sources, hashed = _sources(files, library, times, hasher, on_error)
    ids = assign_ids(list(sources.values()), library)
    done = Plan(manifests=times)
    seen: set[str] = set()
    for name, source in sources.items():
        vid = ids[source.path]
        if vid in seen:  # a copy shares the index
            continue
        seen.add(vid)
        done.order.append(vid)
        try:
            check_replaceable(job.out, vid, times)
            state = _state(job, source, name in hashed, files[name], manifests.get(vid), times, vid)
        except GranAlignError as error:
            on_error(name, error)
            continue
        if state == "pending":
            file = files[name]
            done.pending.append(SourceVideo(vid, name, file.bytes, file.modified_ns))
            continue
        done.current.append(vid)
        if state == "moved":
            done.moved.append((vid, source))
    return done


def _sources(
    files: Mapping[str, StoredFile],
    library: Mapping[str, VideoSource],
    times: Mapping[str, StoredFile],
    hasher: Hasher,
    on_error: OnFailure,
) -> tuple[dict[str, VideoSource], set[str]]:
    """Return the source of each file, and the names of those whose hash is a true one.

    The name of a file stands in for its hash where the hash makes no difference to its id.
    """
    paths = {name: _path(name) for name in files}
    known = {source.path for source in library.values()}
    taken = Counter(folded(video_name(path)) for path in paths.values())
    taken.update(folded(vid) for vid in times)
    unclear = [
        name
        for name, path in paths.items()
        if path not in known and taken[folded(video_name(path))] > 1
    ]
    hashes: dict[str, str] = {}
    for name, sha256 in zip(unclear, hasher(unclear), strict=True):
        if isinstance(sha256, GranAlignError):
            on_error(name, sha256)
        else:
            hashes[name] = sha256
    failed = set(unclear) - hashes.keys()
    sources = {
        name: VideoSource(path, files[name].bytes, hashes.get(name) or _stand_in(name))
        for name, path in paths.items()
        if name not in failed
    }
    return sources, set(hashes)


def _path(name: str) -> Path:
    address = Address.find(name)
    return Path(name) if address is None else address.to_path()


def _stand_in(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def _state(
    job: Job,
    source: VideoSource,
    hashed: bool,
    file: StoredFile,
    manifest: IndexManifest | None,
    times: Mapping[str, StoredFile],
    vid: str,
) -> str:
    """Return ``pending``, ``current`` or ``moved``.

    Raises:
        GranAlignError: the index has captions, which the models of the job would lose.
    """
    if manifest is None or manifest.source is None:
        if vid in times and manifest is not None:
            raise GranAlignError(
                f"{job.out}/{vid}: got an index of captions without a video file, expected one of "
                f"a video; move it away, or index elsewhere"
            )
        return "pending"
    before = manifest.source
    if hashed:
        same = before.sha256 == source.sha256 and before.bytes == source.bytes
    else:
        # Without reading the file: it was last changed before its index was written.
        same = before.bytes == file.bytes and file.modified_ns < times[vid].modified_ns
    if not same:
        return "pending"
    made, wanted = dict(manifest.models), dict(job.fingerprints)
    fits = made == wanted if VLM in wanted else made == made | wanted
    same = (manifest.clip_seconds, manifest.frames_per_clip) == (
        job.clip_seconds,
        job.frames_per_clip,
    )
    if not same or not fits:
        if manifest.captions and VLM not in wanted:
            raise GranAlignError(
                f"{job.out}/{vid}: got an index with captions, which these models would lose; give "
                f"the models that made it, or index elsewhere"
            )
        return "pending"
    return "current" if before.path == source.path else "moved"


def shown(name: str) -> str:
    """Return the name of a source as people write it, without the options of its address."""
    return path_text(_path(name))
