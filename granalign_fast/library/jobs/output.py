"""The output of a job: index folders below a folder or a prefix, each whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from granalign_fast.config import MOST_JSON_BYTES
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex, VideoSource
from granalign_fast.index.manifest import (
    CLIPS,
    EMBEDDINGS,
    MANIFEST,
    IndexManifest,
    read_manifest_record,
)
from granalign_fast.index.video_index import write_index
from granalign_fast.index.work_folder import WorkFolder
from granalign_fast.storage import Store, StoredFile

_REQUESTS = 32
"""Requests to an object store at a time: each of them takes some 20 ms, mostly of waiting."""
_DISTINCT = 2.0
"""Seconds between two manifests of one video. Object stores keep whole seconds, and readers tell
two manifests of equal size by their times."""


def put_index(out: Store, index: VideoIndex) -> None:
    """Write the index of a video; one of this id is replaced.

    In a folder, one rename puts it into its place. In an object store the manifest is written last,
    and that of an older index is deleted first: what has no manifest is no index.

    Raises:
        GranAlignError: the index cannot be written.
    """
    vid = index.video.vid
    if isinstance(out.place, Path):
        # A worker that was killed may have left a draft; nobody else writes this video.
        shutil.rmtree(out.place / ".indexing" / "draft" / vid, ignore_errors=True)
        WorkFolder(out.place).publish(index)
        return
    old = out.find(f"{vid}/{MANIFEST}")
    if old is not None:
        out.remove([f"{vid}/{MANIFEST}"])
        # The clock of the store may differ from this one: no wait is longer than that.
        left = old.modified_ns / 1e9 + _DISTINCT - time.time()
        time.sleep(min(max(left, 0.0), _DISTINCT))
    with tempfile.TemporaryDirectory(prefix="granalign-") as name:
        write_index(index, Path(name))
        for file in (CLIPS, EMBEDDINGS, MANIFEST):
            out.put(f"{vid}/{file}", Path(name, file))


def update_source(out: Store, vid: str, source: VideoSource) -> None:
    """Record the new place of a video file that was moved, in the manifest of its index.

    Raises:
        GranAlignError: the manifest cannot be read or written.
    """
    if isinstance(out.place, Path):
        WorkFolder(out.place).update_source(vid, source)
        return
    with tempfile.TemporaryDirectory(prefix="granalign-") as name:
        out.fetch(f"{vid}/{MANIFEST}", Path(name, MANIFEST), MOST_JSON_BYTES)
        replace(IndexManifest.read(Path(name)), source=source).write(Path(name))
        out.put(f"{vid}/{MANIFEST}", Path(name, MANIFEST))


def list_manifests(out: Store) -> dict[str, StoredFile]:
    """Return size and time of each manifest, by video id.

    Raises:
        GranAlignError: the output cannot be read.
    """
    if isinstance(out.place, Path):
        vids = [path.name for path in out.place.iterdir()] if out.place.is_dir() else []
        found = {vid: out.find(f"{vid}/{MANIFEST}") for vid in sorted(vids) if vid[0] != "."}
        return {vid: file for vid, file in found.items() if file is not None}
    names = ((name.split("/"), file) for name, file in out.list().items())
    return {
        parts[0]: file
        for parts, file in names
        if len(parts) == 2 and parts[1] == MANIFEST and parts[0][0] != "."
    }


def find_manifests(out: Store, vids: Iterable[str]) -> dict[str, StoredFile]:
    """Return size and time of the manifests of some videos in an object store, of those there are.

    Raises:
        GranAlignError: the store cannot be read.
    """
    wanted = list(vids)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        found = list(pool.map(lambda vid: out.find(f"{vid}/{MANIFEST}"), wanted))
    pairs = zip(wanted, found, strict=True)
    return {vid: file for vid, file in pairs if file is not None}


def index_name(vid: str) -> str:
    """Return the name by which the index of a video is claimed in an object store."""
    return f"the index of {vid!r}"


def check_replaceable(out: Store, vid: str, manifests: Container[str]) -> None:
    """Check that a folder of this name may be replaced: that it is an index, or not there.

    Args:
        out: the output.
        vid: the id of a video.
        manifests: the ids of `list_manifests`.

    Raises:
        GranAlignError: the folder is something else.
    """
    if not isinstance(out.place, Path) or not (out.place / vid).exists():
        return
    reason = "it has no manifest"
    if vid in manifests:
        try:
            read_manifest_record(out.place / vid)
            return
        except GranAlignError as error:
            reason = str(error)
    raise GranAlignError(
        f"{out.place / vid}: got something else, expected the index of a video or nothing; move it "
        f"away, or index into another folder ({reason})"
    )


def read_manifests(out: Store, vids: Iterable[str]) -> Mapping[str, IndexManifest | None]:
    """Return the manifests of indexes, by video id; None for one that cannot be read.

    Raises:
        GranAlignError: the disk of temporary files is full.
    """
    if isinstance(out.place, Path):
        return {vid: _read(out.place / vid) for vid in vids}
    listed = list(vids)
    with (
        tempfile.TemporaryDirectory(prefix="granalign-") as name,
        ThreadPoolExecutor(_REQUESTS) as pool,
    ):

        def fetch(number: int, vid: str) -> IndexManifest | None:
            folder = Path(name, str(number))
            folder.mkdir()
            try:
                out.fetch(f"{vid}/{MANIFEST}", folder / MANIFEST, MOST_JSON_BYTES)
            except GranAlignError:
                return None
            manifest = _read(folder)
            shutil.rmtree(folder)
            return manifest

        return dict(zip(listed, pool.map(fetch, range(len(listed)), listed), strict=True))


def _read(folder: Path) -> IndexManifest | None:
    try:
        return IndexManifest.read(folder)
    except GranAlignError:
        return None
