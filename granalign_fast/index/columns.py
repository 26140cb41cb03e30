"""The data files of an index folder: the clip table in Parquet, the embeddings in safetensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.parsing.limits import MOST_CLIPS
from granalign_fast.parsing.parquet import Table
from granalign_fast.parsing.tensors import read_tensors

from .manifest import REINDEX
from .records import FrameTable, IndexedVideo


def _later_names(frames_per_clip: int) -> list[str]:
    """Return the columns of the times of a clip's second frame and of those after it."""
    return [f"time_{number}" for number in range(2, frames_per_clip + 1)]


def _clip_schema(*, captioned: bool, frames_per_clip: int = 1) -> Any:
    import pyarrow

    fields = [
        pyarrow.field("clip", pyarrow.int64(), nullable=False),
        pyarrow.field("time", pyarrow.float64()),  # null if the index has no frames
        *(pyarrow.field(name, pyarrow.float64()) for name in _later_names(frames_per_clip)),
        pyarrow.field("caption", pyarrow.string(), nullable=False),
        pyarrow.field("frame_hash", pyarrow.string()),
    ]
    return pyarrow.schema([field for field in fields if captioned or field.name != "caption"])


def write_clip_table(video: IndexedVideo, frames: FrameTable | None) -> bytes:
    """Return the content of a Parquet file with a row for each clip.

    Raises:
        GranAlignError: a caption is not Unicode.
    """
    import pyarrow
    from pyarrow import parquet

    captions = video.captions
    per_clip = 1 if frames is None else frames.frames_per_clip
    columns: Mapping[str, Any] = {
        "clip": range(video.clips),
        "time": [None] * video.clips if frames is None else frames.times,
        "caption": captions,
        "frame_hash": [None] * video.clips if frames is None else frames.hashes,
    }
    if frames is not None and frames.later is not None:
        columns = {**columns, **dict(zip(_later_names(per_clip), frames.later.T, strict=True))}
    schema = _clip_schema(captioned=captions is not None, frames_per_clip=per_clip)
    try:
        arrays = {name: pyarrow.array(columns[name]) for name in schema.names}
        table = pyarrow.table(arrays, schema=schema)
    except UnicodeEncodeError:
        texts = captions or ()
        clip = next(i for i, text in enumerate(texts) if not is_text(text))
        raise GranAlignError(
            f"caption {clip} of {video.vid!r}: got {texts[clip]!r}, expected Unicode "
            f"text; remove the surrogates"
        ) from None
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def is_text(value: object) -> bool:
    """Return True for a string that can be encoded as UTF-8; a lone surrogate cannot."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


class ClipTable(NamedTuple):
    """The columns of a clip table, each with a value for every clip."""

    captions: tuple[str, ...] | None
    """None if the table has no column of them."""
    times: npt.NDArray[np.float64]
    """`(clips,)`, of the first frames; NaN if the index has no frames."""
    later: npt.NDArray[np.float64] | None
    """`(clips, frames - 1)`, of the other frames; None for one frame per clip."""
    hashes: tuple[str, ...] | None
    """None if the index has no frames."""


def read_clip_table(
    path: Path, content: bytes, *, captioned: bool, frames_per_clip: int = 1
) -> ClipTable:
    """Read the content of a clip table.

    Args:
        path: the file's path, for error messages.
        content: the file's bytes.
        captioned: whether the table has a column of captions.
        frames_per_clip: the number of columns of times.

    Raises:
        GranAlignError: the content is not a clip table, or its rows do not fit together.
    """
    try:
        schema = _clip_schema(captioned=captioned, frames_per_clip=frames_per_clip)
        columns = Table(content, schema, MOST_CLIPS).read()
    except ValueError as error:
        raise GranAlignError(f"{path}: not a table of clips ({error}); {REINDEX}") from None
    captions = tuple(columns["caption"]) if captioned else None
    times, hashes = np.array(columns["time"], np.float64), tuple(columns["frame_hash"])
    every_time = np.column_stack(
        [times, *(np.array(columns[name]) for name in _later_names(frames_per_clip))]
    )
    if not np.array_equal(columns["clip"], np.arange(len(times))):
        raise GranAlignError(f"{path}: expected clips 0, 1, 2, ... in order; {REINDEX}")
    # Either every clip has a time and a hash, or none has.
    present = {
        *(~np.isnan(every_time)).reshape(-1).tolist(),
        *(value is not None for value in hashes),
    }
    if present == {True, False}:
        raise GranAlignError(f"{path}: got frames of some clips, expected of all; {REINDEX}")
    later = every_time[:, 1:].copy() if frames_per_clip > 1 else None
    return ClipTable(captions, times, later, hashes if present == {True} else None)


def read_embeddings(path: Path, content: bytes, *, captioned: bool) -> dict[str, npt.NDArray[Any]]:
    """Read the content of a safetensors file with ``captions`` and, optionally, ``frames``.

    Args:
        path: the file's path, for error messages.
        content: the file's bytes.
        captioned: whether the index has captions; without, ``frames`` is the only tensor.

    Raises:
        GranAlignError: the content is not safetensors, or has other tensors.
    """
    try:
        tensors = read_tensors(content)
    except ValueError as error:
        raise GranAlignError(f"{path}: not safetensors ({one_line(error)}); {REINDEX}") from None
    if set(tensors) not in ([{"captions"}, {"captions", "frames"}] if captioned else [{"frames"}]):
        expected = "captions and optionally frames" if captioned else "frames alone"
        raise GranAlignError(f"{path}: got {sorted(tensors)}, expected {expected}; {REINDEX}")
    return tensors
