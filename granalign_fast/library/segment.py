"""Segments: the files of the catalogue that hold rows, written once and never changed.

A segment is a folder of the catalogue:

==================  ==========================================================
file                content
==================  ==========================================================
``videos.json``     the videos, in the order of their rows
``clips.parquet``   a row for each clip: video, start, end, caption
``captions.f16``    embeddings of the captions, float16 `(clips, dim)`; empty without captions
``captions.u8``     their codes of 8 bits, and ``captions-scale.f32`` what the codes stand for
``frames.f16``      embeddings of the frames, if a frame encoder made them
``frames.u8``       their codes, with ``frames-scale.f32``
``words.parquet``   the words of the inverted index, and their numbers of postings
``postings.i32``    the stretches of each word, int32
``counts.u16``      how often each of them holds the word, uint16
``lengths.i32``     words of each stretch, int32
==================  ==========================================================

An approximate index of the embeddings (``captions.ivf``, ``frames.ivf``) can be added later.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_INDEX_BYTES
from granalign_fast.parsing.parquet import Table
from granalign_fast.reading import checked_file, open_file, read_file

from .approximate import FILE_SUFFIX
from .codes import CODED, CodedRows, open_codes, write_codes
from .durable import Sink, sync_folder
from .records import CataloguedVideo, VideoRows, is_plain_name
from .stretches import Stretches, stretch_edges, stretches_of
from .words import Postings, PostingsBuilder

VIDEOS, CLIPS, CAPTIONS, FRAMES = "videos.json", "clips.parquet", "captions.f16", "frames.f16"
WORDS, POSTINGS, COUNTS, LENGTHS = "words.parquet", "postings.i32", "counts.u16", "lengths.i32"

Halves = npt.NDArray[np.float16]

_MOST_ROWS = 1 << 26
"""Rows of a table: more words and clips than a segment can have by far."""


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A segment as the catalogue names it.

    Attributes:
        name: of its folder.
        clips: its rows.
        dim: numbers of a caption's embedding; 0 without captions.
        frame_dim: numbers of a frame's embedding; 0 without frames.
        files: size in bytes and SHA-256 of each file.
    """

    name: str
    clips: int
    dim: int
    frame_dim: int
    files: dict[str, tuple[int, str]]

    def to_record(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> SegmentRecord:
        """Read what `to_record` returned; another record raises exceptions of many types."""
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in record["files"].items()}
        for name in (record["name"], *files):
            if not is_plain_name(name):
                raise ValueError(f"got {name!r}, expected a name without folders")
        clips, dim, frame_dim = (int(record[name]) for name in ("clips", "dim", "frame_dim"))
        return cls(str(record["name"]), clips, dim, frame_dim, files)


def clip_schema() -> Any:
    """Return the columns of `CLIPS`."""
    import pyarrow

    fields = {"video": pyarrow.string(), "start": pyarrow.float64(), "end": pyarrow.float64()}
    return pyarrow.schema(fields | {"caption": pyarrow.string()})


def word_schema() -> Any:
    """Return the columns of `WORDS`."""
    import pyarrow

    return pyarrow.schema({"word": pyarrow.string(), "stretches": pyarrow.int64()})


class Segment:
    """An open segment. Its arrays are memory maps, which outlive the deletion of their files.

    Args:
        folder: of the segment.
        record: of the segment.
        library: as its user names it, for error messages; None for that of the folder.

    Raises:
        OSError: a file is missing.
        GranAlignError: a file has another size or another content than it should.
    """

    def __init__(self, folder: Path, record: SegmentRecord, library: object = None) -> None:
        self.folder, self.record = folder, record
        name = shlex.quote(str(library or folder.parent.parent))
        self._remedy = f"run granalign library rebuild {name}"
        for name, (size, _) in record.files.items():
            if (got := (folder / name).stat().st_size) != size:
                raise GranAlignError(f"{folder / name}: got {got} bytes, expected {size}")
        try:
            records = parse_json(read_file(folder / VIDEOS, MOST_INDEX_BYTES, inside=folder.parent))
            self.videos = tuple(map(CataloguedVideo.from_record, records))
        except (ValueError, KeyError, TypeError) as error:
            raise GranAlignError(f"{folder / VIDEOS}: damaged ({one_line(error)})") from None
        self.offsets = np.cumsum([0, *(video.clips for video in self.videos)])
        if self.offsets[-1] != record.clips:
            raise GranAlignError(
                f"{folder / VIDEOS}: got {self.offsets[-1]} clips, expected {record.clips}"
            )
        self.captions: Halves = self._map(CAPTIONS, np.float16, record.dim)
        self.frames: Halves | None = (
            self._map(FRAMES, np.float16, record.frame_dim) if record.frame_dim else None
        )
        self.coded_captions = self._coded(CAPTIONS, self.captions)
        self.coded_frames = None if self.frames is None else self._coded(FRAMES, self.frames)
        self.stretches: Stretches = stretches_of(
            (video.clips, video.clip_seconds) for video in self.videos
        )
        self._postings = self._map(POSTINGS, np.int32), self._map(COUNTS, np.uint16)
        self._lengths = self._map(LENGTHS, np.int32)
        # Opened now: the file may be deleted by the time that it is read.
        self._words = self._open_table(WORDS, word_schema())
        self._clips = self._open_table(CLIPS, clip_schema())

    def _map(self, name: str, dtype: Any, dim: int | None = None) -> npt.NDArray[Any]:
        size, width = self.record.files[name][0], np.dtype(dtype).itemsize
        shape = (size // width,) if dim is None else (self.record.clips, dim)
        if size != math.prod(shape) * width:
            raise GranAlignError(
                f"{self.folder / name}: got {size} bytes, expected {shape} numbers"
            )
        if not size:
            return np.empty(shape, dtype)  # an empty file cannot be mapped
        with open_file(self.folder / name, inside=self.folder.parent) as file:
            return np.memmap(file, dtype, "r", shape=shape)

    def _coded(self, name: str, rows: Halves) -> CodedRows:
        codes, scale = CODED[name]
        mapped = self._map(codes, np.uint8, rows.shape[1])
        approximate = (self.folder / name).with_suffix(FILE_SUFFIX)
        codes_of_rows = open_codes(mapped, self._map(scale, np.float32))
        return CodedRows(rows, codes_of_rows, approximate, self.record.files[name][1])

    @property
    def coded(self) -> tuple[CodedRows, ...]:
        """The embeddings that the segment has: of captions, of frames, or of both."""
        every = (self.coded_captions, self.coded_frames)
        return tuple(one for one in every if one is not None and one.rows.size)

    def _open_table(self, name: str, schema: Any) -> Table:
        import pyarrow

        path = checked_file(self.folder / name, inside=self.folder.parent)
        try:
            return Table(pyarrow.memory_map(str(path)), schema, _MOST_ROWS)
        except (ValueError, pyarrow.ArrowException) as error:
            raise GranAlignError(f"{self.folder / name}: damaged ({one_line(error)})") from None

    @cached_property
    def postings(self) -> Postings:
        """The inverted index of the segment's stretches.

        Raises:
            GranAlignError: its table is damaged.
        """
        table = self._read_table(self._words, WORDS)
        sizes = np.asarray(table["stretches"])
        # Empty cells make it floats; so does a table without rows, of videos without captions.
        if None in table["word"] or (len(sizes) and sizes.dtype.kind not in "iu"):
            raise self._damaged(WORDS, "a cell is empty")
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        found = Postings(table["word"], offsets, *self._postings, self._lengths, self._remedy)
        if not found.is_whole(len(self.stretches.videos)):
            raise self._damaged(WORDS, "its counts are not those of the other files")
        return found

    def read_captions(self) -> list[str | None]:
        """Return the captions of all clips; None for a clip without one.

        Raises:
            GranAlignError: the table of clips is damaged.
        """
        captions: list[str | None] = self._read_table(self._clips, CLIPS, ["caption"])["caption"]
        return captions

    def _read_table(
        self, table: Table, name: str, columns: list[str] | None = None
    ) -> dict[str, Any]:
        try:
            return table.read(columns)
        except ValueError as error:
            raise self._damaged(name, one_line(error)) from None

    def _damaged(self, name: str, reason: str) -> GranAlignError:
        return GranAlignError(f"{self.folder / name}: damaged ({reason}); {self._remedy}")

    def rows(self, numbers: Iterable[int]) -> Iterator[VideoRows]:
        """Yield the rows of some videos, by their numbers in the segment."""
        captions = self.read_captions()
        for number in numbers:
            part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
            yield VideoRows(
                self.videos[number],
                tuple(caption for caption in captions[part] if caption is not None),
                self.captions[part],
                None if self.frames is None else self.frames[part],
            )

    def find_altered(self) -> str | None:
        """Compare all files with their hashes; return the reason why one is damaged, or None."""
        for name, (_, expected) in self.record.files.items():
            try:
                with open_file(self.folder / name, inside=self.folder.parent) as file:
                    got = hashlib.file_digest(file, "sha256").hexdigest()
            except (OSError, GranAlignError) as error:
                return f"{self.folder / name}: cannot be read ({one_line(error)})"
            if got != expected:
                return f"{self.folder / name}: got SHA-256 {got}, expected {expected}"
        return None

    def check(self) -> None:
        """Compare all files with their hashes.

        Raises:
            GranAlignError: a file is damaged.
        """
        if reason := self.find_altered():
            raise GranAlignError(f"{reason}; {self._remedy}")

    def find_damage(self) -> str | None:
        """Read all files; return the reason why the segment is damaged, or None."""
        if reason := self.find_altered():
            return reason
        for coded in self.coded:
            if coded.path.exists():
                try:
                    coded.open_approximate(again=True)
                except MissingExtraError:
                    continue  # its content is right, which is known before Faiss is needed
                except GranAlignError as error:
                    return str(error)
        return None


class SegmentWriter:
    """Writes a segment as a new folder; nothing refers to it before the catalogue does.

    Args:
        folder: to make. After an error it is to be deleted, whatever it holds.

    Raises:
        OSError: here and in every method, if the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.clips = 0
        self._videos: list[CataloguedVideo] = []
        self._builder = PostingsBuilder()
        self._dim = self._frame_dim = 0
        self._open = ExitStack()
        self._sinks: dict[str, Sink] = {}
        for name in (CLIPS, CAPTIONS, FRAMES):
            self._sinks[name] = self._open.enter_context(Sink(folder / name))
        self._table = self._open.enter_context(_ClipTable(self._sinks[CLIPS]))

    def add(self, rows: VideoRows) -> None:
        """Add a video; its embeddings must have as many numbers as those of the other videos."""
        video = rows.video
        self._videos.append(video)
        if rows.captions:
            self._sinks[CAPTIONS].write(np.ascontiguousarray(rows.embeddings).data.cast("B"))
        self._dim = rows.embeddings.shape[1]
        if rows.frames is not None:
            self._sinks[FRAMES].write(np.ascontiguousarray(rows.frames).data.cast("B"))
            self._frame_dim = rows.frames.shape[1]
        self._table.add(rows)
        for begin, end in pairwise(stretch_edges(video.clips, video.clip_seconds)):
            self._builder.add(rows.captions[begin:end])
        self.clips += video.clips

    def close(self) -> SegmentRecord:
        """Write the rest, wait until all of it is on disk, and return the segment's record."""
        self._open.close()
        for name, width in ((CAPTIONS, self._dim), (FRAMES, self._frame_dim)):
            self._sinks |= write_codes(self.folder, name, width)
        postings = self._builder.build()
        contents = {
            VIDEOS: json.dumps([video.to_record() for video in self._videos]).encode(),
            WORDS: _word_table(postings),
            POSTINGS: postings.documents.tobytes(),
            COUNTS: postings.counts.tobytes(),
            LENGTHS: postings.lengths.tobytes(),
        }
        for name, content in contents.items():
            with Sink(self.folder / name) as sink:
                self._sinks[name] = sink
                sink.write(content)
        sync_folder(self.folder)
        files = {name: (sink.bytes, sink.digest.hexdigest()) for name, sink in self._sinks.items()}
        return SegmentRecord(self.folder.name, self.clips, self._dim, self._frame_dim, files)

    def abandon(self) -> None:
        """Close the files; the folder can then be deleted."""
        with suppress(Exception):  # the disk may be full: the first error is the one to report
            self._open.close()


class _ClipTable:
    """Writes ``clips.parquet``, a row group for each so many clips."""

    _GROUP = 1 << 16

    def __init__(self, sink: Sink) -> None:
        from pyarrow import parquet

        self._schema = clip_schema()
        self._writer = parquet.ParquetWriter(sink, self._schema, compression="zstd")
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}

    def __enter__(self) -> _ClipTable:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._write()
            self._writer.close()
            return
        with suppress(Exception):  # the disk may be full: the first error is the one to report
            self._writer.close()

    def add(self, rows: VideoRows) -> None:
        """Add the clips of a video."""
        edges = [rows.video.second(clip) for clip in range(rows.video.clips + 1)]
        columns = self._columns
        columns["video"] += [rows.video.vid] * rows.video.clips
        columns["start"] += edges[:-1]
        columns["end"] += edges[1:]
        columns["caption"] += rows.captions or [None] * rows.video.clips
        if len(columns["video"]) >= self._GROUP:
            self._write()

    def _write(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.table(self._columns, schema=self._schema))
        for values in self._columns.values():
            values.clear()


def _word_table(postings: Postings) -> bytes:
    import io

    import pyarrow
    from pyarrow import parquet

    columns = {"word": postings.words, "stretches": np.diff(postings.offsets)}
    table = pyarrow.table(columns, schema=word_schema())
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()
