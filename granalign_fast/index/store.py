"""A `VideoIndex` as a folder: a manifest, a table of clips, and embeddings. Nothing is pickled.

``manifest.json`` says what the index is of and names the SHA-256 of the two other files;
``clips.parquet`` has a row for each clip; ``embeddings.safetensors`` holds ``captions`` and, where
CLIP has seen the frames, ``frames``. Equal indexes make equal files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.folders import appearing
from granalign_fast.jsonl import replacing
from granalign_fast.models import one_line

from .records import CaptionedVideo, FrameTable, VideoIndex, VideoSource

FORMAT_VERSION = 1
"""Of index folders: rises whenever an older reader would misunderstand a newer folder."""

KIND = "video-index"
MANIFEST, CLIPS, EMBEDDINGS = "manifest.json", "clips.parquet", "embeddings.safetensors"
_AGAIN = "delete the folder and index the video again"


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
                f"{path}: got format version {version!r}, expected {FORMAT_VERSION}; {_AGAIN}"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        if set(record) != names:
            raise GranAlignError(
                f"{path}: keys {sorted(set(record) ^ names)} are missing or unknown; {_AGAIN}"
            )
        try:
            return cls(**record | {"source": _source(record["source"])})._checked()
        except GranAlignError as error:
            raise GranAlignError(f"{path}: {error}; {_AGAIN}") from None

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
        raise GranAlignError(f"{path}: not JSON ({one_line(error)}); {_AGAIN}") from None
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind != KIND:
        raise GranAlignError(f"{path}: got kind {kind!r}, expected {KIND!r}; {wanted}")
    return dict(record)


def save(index: VideoIndex, folder: Path) -> None:
    """Write an index as a new folder, whole or not at all.

    Raises:
        GranAlignError: the folder exists or cannot be written, or a caption is not Unicode.
    """
    with appearing(folder) as draft:
        write(index, draft)


def write(index: VideoIndex, folder: Path) -> None:
    """Write an index into a folder that is there and empty; the manifest comes last.

    Raises:
        GranAlignError: a caption is not Unicode.
    """
    from safetensors.numpy import save as pack

    video, frames = index.video, index.frames
    tensors = {"captions": np.ascontiguousarray(index.embeddings)}
    if frames is not None and frames.embeddings is not None:
        tensors["frames"] = np.ascontiguousarray(frames.embeddings)
    contents = {CLIPS: _pack_clips(index), EMBEDDINGS: pack(tensors)}
    for name, content in contents.items():
        put(folder / name, content)
    IndexManifest(
        vid=video.vid,
        source=None if frames is None else frames.source,
        clip_seconds=video.clip_seconds,
        duration=video.duration,
        clips=len(video.captions),
        models=dict(index.models),
        files={name: _sha256(content) for name, content in contents.items()},
    ).write(folder)


def load(folder: Path) -> VideoIndex:
    """Read an index, and check every file of it.

    Raises:
        GranAlignError: the folder is missing, torn, altered, or of another kind or format.
    """
    manifest = IndexManifest.read(folder)
    contents = {name: _get(folder / name, digest) for name, digest in manifest.files.items()}
    captions, times, hashes = _unpack_clips(folder / CLIPS, contents[CLIPS])
    tensors = _unpack_tensors(folder / EMBEDDINGS, contents[EMBEDDINGS])
    if len(captions) != manifest.clips:
        raise GranAlignError(
            f"{folder / CLIPS}: got {len(captions)} clips, expected {manifest.clips} as "
            f"{MANIFEST} says; {_AGAIN}"
        )
    if hashes is None and ("frames" in tensors or manifest.source is not None):
        raise GranAlignError(
            f"{folder / CLIPS}: got no frames, expected those of {EMBEDDINGS} and {MANIFEST}; "
            f"{_AGAIN}"
        )
    try:
        video = CaptionedVideo(manifest.vid, captions, manifest.clip_seconds, manifest.duration)
        frames = None
        if hashes is not None:
            frames = FrameTable(times, hashes, tensors.get("frames"), manifest.source)
        return VideoIndex(video, tensors["captions"], frames, manifest.models)
    except GranAlignError as error:
        raise GranAlignError(f"{folder}: {error}; {_AGAIN}") from None


def put(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and wait until the disk has it.

    Raises:
        GranAlignError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the name without the content


def _get(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GranAlignError(
            f"{path}: cannot be read ({error.strerror or error}); {_AGAIN}"
        ) from None
    if (got := _sha256(content)) != digest:
        raise GranAlignError(f"{path}: altered, got SHA-256 {got}, expected {digest}; {_AGAIN}")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _source(record: Any) -> VideoSource | None:
    if record is None:
        return None
    if not isinstance(record, dict) or set(record) != {"name", "path", "bytes", "sha256"}:
        raise GranAlignError(f"got source {record!r}, expected name, path, bytes and sha256")
    if not isinstance(record["path"], str):
        raise GranAlignError(f"source: got path {record['path']!r}, expected a text")
    return VideoSource(Path(record["path"]), record["bytes"], record["sha256"])


def _schema() -> Any:
    import pyarrow

    return pyarrow.schema(
        [
            pyarrow.field("clip", pyarrow.int64(), nullable=False),
            pyarrow.field("time", pyarrow.float64()),  # null where no frames are known
            pyarrow.field("caption", pyarrow.string(), nullable=False),
            pyarrow.field("frame_hash", pyarrow.string()),
        ]
    )


def _pack_clips(index: VideoIndex) -> bytes:
    import pyarrow
    from pyarrow import parquet

    captions, frames = index.video.captions, index.frames
    columns: Mapping[str, Any] = {
        "clip": range(len(captions)),
        "time": [None] * len(captions) if frames is None else frames.times,
        "caption": captions,
        "frame_hash": [None] * len(captions) if frames is None else frames.hashes,
    }
    try:
        table = pyarrow.table(
            {name: pyarrow.array(values) for name, values in columns.items()}, schema=_schema()
        )
    except UnicodeEncodeError:
        clip = next(i for i, text in enumerate(captions) if not is_text(text))
        raise GranAlignError(
            f"caption {clip} of {index.video.vid!r}: got {captions[clip]!r}, expected Unicode "
            f"text; remove the surrogates"
        ) from None
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def is_text(value: object) -> bool:
    """Whether something is a text that can be written: half of a surrogate pair cannot."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


def _unpack_clips(
    path: Path, content: bytes
) -> tuple[tuple[str, ...], npt.NDArray[np.float64], tuple[str, ...] | None]:
    """Captions, and times and hashes of the frames; None for hashes where none are known."""
    from pyarrow import parquet

    try:
        # Threads gain nothing here, and a process that ends soon after may abort over them.
        table = parquet.ParquetFile(io.BytesIO(content), pre_buffer=False).read(use_threads=False)
        table.validate(full=True)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:  # whatever pyarrow makes of a file of another making
        raise GranAlignError(
            f"{path}: not a table of clips ({one_line(error)}); {_AGAIN}"
        ) from None
    if not table.schema.equals(_schema()):
        raise GranAlignError(
            f"{path}: got columns {table.column_names}, expected {_schema().names}; {_AGAIN}"
        )
    captions, times, hashes = (tuple(columns[name]) for name in ("caption", "time", "frame_hash"))
    if columns["clip"] != list(range(len(captions))):
        raise GranAlignError(f"{path}: expected clips 0, 1, 2, ... in order; {_AGAIN}")
    known = {value is not None for value in (*times, *hashes)}
    if known == {True, False}:
        raise GranAlignError(f"{path}: got frames of some clips, expected of all; {_AGAIN}")
    return captions, np.array(times, np.float64), hashes if known == {True} else None


def _unpack_tensors(path: Path, content: bytes) -> dict[str, npt.NDArray[Any]]:
    from safetensors.numpy import load as unpack

    try:
        tensors = unpack(content)
    except Exception as error:  # whatever safetensors makes of a file of another making
        raise GranAlignError(f"{path}: not safetensors ({one_line(error)}); {_AGAIN}") from None
    if set(tensors) not in ({"captions"}, {"captions", "frames"}):
        raise GranAlignError(
            f"{path}: got {sorted(tensors)}, expected captions and perhaps frames; {_AGAIN}"
        )
    return tensors
