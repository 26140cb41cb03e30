"""The manifest of an index folder."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.files import replacing

from .records import VideoSource

FORMAT_VERSION = 1
"""Of index folders: rises whenever an older reader would misunderstand a newer folder."""


KIND = "video-index"


MANIFEST, CLIPS, EMBEDDINGS = "manifest.json", "clips.parquet", "embeddings.safetensors"


AGAIN = "delete the folder and index the video again"


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What ``manifest.json`` of an index says.

    Attributes:
        source: the video file; None where the captions were given without one.
        clips: rows of the table and of the embeddings.
        models: fingerprints of what made it, by kind.
        files: SHA-256 of the other files.
    """

    format_version: int = FORMAT_VERSION
    kind: str = KIND
    vid: str
    source: VideoSource | None
    clip_seconds: float
    duration: float | None
    clips: int
    models: dict[str, str]
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        record = asdict(self)
        if self.source is not None:
            path = self.source.path
            record["source"] |= {"name": path.name, "path": str(path)}
        put(folder / MANIFEST, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> IndexManifest:
        """Read the manifest; the other files are not looked at.

        Raises:
            GranAlignError: no manifest, another kind or format version, or a field is wrong.
        """
        path, record = folder / MANIFEST, read_record(folder)
        version = record.get("format_version")
        if isinstance(version, bool) or version != FORMAT_VERSION:
            raise GranAlignError(
                f"{path}: got format version {version!r}, expected {FORMAT_VERSION}; {AGAIN}"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        if set(record) != names:
            raise GranAlignError(
                f"{path}: keys {sorted(set(record) ^ names)} are missing or unknown; {AGAIN}"
            )
        try:
            return cls(**record | {"source": _source(record["source"])})._checked()
        except GranAlignError as error:
            raise GranAlignError(f"{path}: {error}; {AGAIN}") from None

    def _checked(self) -> IndexManifest:
        if isinstance(self.clips, bool) or not isinstance(self.clips, int) or self.clips < 1:
            raise GranAlignError(f"got clips {self.clips!r}, expected an integer from 1")
        for name, texts in (("models", self.models), ("files", self.files)):
            if not isinstance(texts, dict) or not all(isinstance(t, str) for t in texts.values()):
                raise GranAlignError(f"got {name} {texts!r}, expected an object of texts")
        if set(self.files) != {CLIPS, EMBEDDINGS}:
            raise GranAlignError(f"got files {sorted(self.files)}, expected {CLIPS}, {EMBEDDINGS}")
        return self


def read_record(folder: Path) -> dict[str, Any]:
    """The manifest of an index, of whatever format version and not yet checked.

    Raises:
        GranAlignError: there is none, or it is of something else.
    """
    path = folder / MANIFEST
    wanted = "name a folder that `granalign index` wrote"
    if not folder.is_dir():
        raise GranAlignError(f"{folder}: no such folder; {wanted}")
    if not path.is_file():
        raise GranAlignError(f"{folder}: got no {MANIFEST}, expected an index; {wanted}")
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise GranAlignError(f"{path}: not JSON ({one_line(error)}); {AGAIN}") from None
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind != KIND:
        raise GranAlignError(f"{path}: got kind {kind!r}, expected {KIND!r}; {wanted}")
    return dict(record)


def _source(record: Any) -> VideoSource | None:
    if record is None:
        return None
    if not isinstance(record, dict) or set(record) != {"name", "path", "bytes", "sha256"}:
        raise GranAlignError(f"got source {record!r}, expected name, path, bytes and sha256")
    if not isinstance(record["path"], str):
        raise GranAlignError(f"source: got path {record['path']!r}, expected a text")
    return VideoSource(Path(record["path"]), record["bytes"], record["sha256"])


def put(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and wait until the disk has it.

    Raises:
        GranAlignError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the name without the content
