"""Read and write the manifest of an index folder."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from granalign_fast.errors import GranAlignError, one_line, short_repr
from granalign_fast.files import escape_undecodable, replacing
from granalign_fast.models.manifest import VIDEO_INDEX
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import FRAMES_PER_CLIP, MOST_JSON_BYTES, MOST_NAME
from granalign_fast.reading import read_file
from granalign_fast.storage.address import Address, path_text

from .records import VideoSource

FORMAT_VERSION = 2
"""Format version of index folders; it rises whenever an older reader would misread a new folder.
Since version 2, times count from the container's start; before, from the first frame."""

CLOCK = "container start"
"""The meaning of second 0 in an index."""

MANIFEST, CLIPS, EMBEDDINGS = "manifest.json", "clips.parquet", "embeddings.safetensors"
"""The names of the three files of an index folder."""

REINDEX = "delete the folder and index the video again"
"""The remedy in the error messages about a damaged index."""

_DEFAULTS: Mapping[str, Any] = {"frames_per_clip": 1, "captions": True}
"""The values of keys that a manifest may lack."""

_REMEDY = "name a folder that `granalign index` wrote"


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """The content of an index folder's ``manifest.json``.

    Attributes:
        source: the video file; None for an index of captions without a video file.
        clock: what second 0 of all times is, `CLOCK`.
        missing: stretches in seconds whose picture the file lacks.
        clips: number of rows of the clip table and of the embeddings.
        frames_per_clip: the number of frames of each clip. The file says it only if it is not 1.
        captions: whether the clips have captions. The file says it only if they have none.
        models: fingerprints of the models that made the index, by kind.
        files: SHA-256 of the other files, by name.
    """

    format_version: int = FORMAT_VERSION
    kind: str = VIDEO_INDEX
    vid: str
    source: VideoSource | None
    clip_seconds: float
    duration: float | None
    clock: str = CLOCK
    missing: list[list[float]] = dataclasses.field(default_factory=list)
    clips: int
    frames_per_clip: int = 1
    captions: bool = True
    models: dict[str, str]
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` completely or not at all."""
        record = asdict(self)
        if self.source is not None:
            record["source"] |= path_record(self.source.path)
            del record["source"]["store"]  # the user's, not the index's
        # A default is left out: older versions read such an index, and refuse any other.
        for name, default in _DEFAULTS.items():
            if record[name] == default:
                del record[name]
        content = json.dumps(record, indent=2, sort_keys=True) + "\n"
        write_durably(folder / MANIFEST, content.encode())

    @classmethod
    def read(cls, folder: Path) -> IndexManifest:
        """Read and check the manifest; the other files are not opened.

        Raises:
            GranAlignError: the manifest is missing, has another kind or format version, or a field
                is wrong.
        """
        path, record = folder / MANIFEST, read_manifest_record(folder)
        version = record.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise GranAlignError(
                f"{path}: got format version {short_repr(version)}, expected {FORMAT_VERSION}; "
                f"{REINDEX}"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        record = {**_DEFAULTS, **record}
        if set(record) != names:
            raise GranAlignError(
                f"{path}: keys {short_repr(sorted(set(record) ^ names))} are missing or unknown; "
                f"{REINDEX}"
            )
        try:
            return cls(**record | {"source": _read_source(record["source"])})._checked()
        except GranAlignError as error:
            raise GranAlignError(f"{path}: {error}; {REINDEX}") from None

    def _checked(self) -> IndexManifest:
        """Return the manifest, or raise if a field is wrong that no record class checks."""
        if isinstance(self.clips, bool) or not isinstance(self.clips, int) or self.clips < 1:
            raise GranAlignError(f"got clips {short_repr(self.clips)}, expected an integer from 1")
        if type(self.frames_per_clip) is not int or self.frames_per_clip not in FRAMES_PER_CLIP:
            raise GranAlignError(
                f"got frames_per_clip {short_repr(self.frames_per_clip)}, expected one of "
                f"{', '.join(map(str, FRAMES_PER_CLIP))}"
            )
        if not isinstance(self.captions, bool):
            raise GranAlignError(
                f"got captions {short_repr(self.captions)}, expected true or false"
            )
        for name, texts in (("models", self.models), ("files", self.files)):
            if not isinstance(texts, dict) or not all(
                isinstance(text, str) and len(text) <= MOST_NAME for text in texts.values()
            ):
                raise GranAlignError(
                    f"got {name} {short_repr(texts)}, expected an object of short strings"
                )
        if self.clock != CLOCK:
            raise GranAlignError(f"got clock {short_repr(self.clock)}, expected {CLOCK!r}")
        if not isinstance(self.missing, list) or not all(map(_is_stretch, self.missing)):
            raise GranAlignError(
                f"got missing {short_repr(self.missing)}, expected pairs of seconds"
            )
        if set(self.files) != {CLIPS, EMBEDDINGS}:
            raise GranAlignError(
                f"got files {short_repr(sorted(self.files))}, expected {CLIPS}, {EMBEDDINGS}"
            )
        return self


def _is_stretch(value: object) -> bool:
    return isinstance(value, list) and all(
        type(edge) in (int, float) and 0 <= edge <= 1e9 for edge in value
    )


def check_holds_indexes(folder: Path) -> None:
    """Raise if a folder of indexes is itself the index of one video.

    Raises:
        GranAlignError: it is one.
    """
    if all((folder / name).is_file() for name in (MANIFEST, CLIPS)):
        raise GranAlignError(
            f"{folder}: got the index of one video, expected a folder of indexes; name the folder "
            f"that this index lies in"
        )


def read_manifest_record(folder: Path) -> dict[str, Any]:
    """Read the manifest of an index as JSON, in any format version; only its kind is checked.

    Raises:
        GranAlignError: the folder has no manifest, or the manifest has another kind.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise GranAlignError(f"{folder}: no such folder; {_REMEDY}")
    if not path.is_file():
        raise GranAlignError(f"{folder}: got no {MANIFEST}, expected an index; {_REMEDY}")
    content = read_file(path, MOST_JSON_BYTES, inside=folder)
    try:
        record = parse_json(content)
    except ValueError as error:
        raise GranAlignError(f"{path}: not JSON ({one_line(error)}); {REINDEX}") from None
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind != VIDEO_INDEX:
        raise GranAlignError(
            f"{path}: got kind {short_repr(kind)}, expected {VIDEO_INDEX!r}; {_REMEDY}"
        )
    return dict(record)


def read_manifest_source(folder: Path) -> VideoSource | None:
    """Return the video file of an index of any format version; None for an index of captions.

    Raises:
        GranAlignError: as `read_manifest_record`, or the file is not described as it should be.
    """
    return _read_source(read_manifest_record(folder).get("source"))


_PERCENT = "percent"
"""The value of ``source.encoding`` in a manifest whose path is percent-encoded."""


def path_record(path: Path) -> dict[str, str]:
    """Return the JSON keys that hold a path: ``name``, ``path`` and, if needed, ``encoding``.

    JSON holds Unicode alone. A path with other bytes is percent-encoded, and marked as such. For a
    path that stands for an address, ``path`` is the address.
    """
    text = path_text(path)
    if escape_undecodable(text) == text:
        return {"name": path.name, "path": text}
    encoded = escape_undecodable(text.replace("%", "%25"))
    return {"name": encoded.rpartition("/")[2], "path": encoded, "encoding": _PERCENT}


def _read_source(record: Any) -> VideoSource | None:
    if record is None:
        return None
    keys = {"name", "path", "bytes", "sha256"}
    if not isinstance(record, dict) or set(record) - {"encoding"} != keys:
        raise GranAlignError(
            f"got source {short_repr(record)}, expected name, path, bytes and sha256"
        )
    return VideoSource(read_path(record), record["bytes"], record["sha256"])


def read_path(record: Mapping[str, Any]) -> Path:
    """Return the path of a record that holds the keys of `path_record`.

    Raises:
        GranAlignError: the path is not a string, or its encoding is unknown.
    """
    path = record["path"]
    if not isinstance(path, str):
        raise GranAlignError(f"source: got path {short_repr(path)}, expected a string")
    if (encoding := record.get("encoding", _PERCENT)) != _PERCENT:
        raise GranAlignError(f"source: got encoding {short_repr(encoding)}, expected {_PERCENT!r}")
    if (address := Address.find(path)) is not None:
        return address.to_path()
    return Path(os.fsdecode(unquote_to_bytes(path)) if "encoding" in record else path)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file completely or not at all, and wait until it is on disk.

    Raises:
        GranAlignError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(content)
        file.flush()
        # Without fsync, a power cut could leave a file of this name without its content.
        os.fsync(file.fileno())
