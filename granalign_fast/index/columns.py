"""The two data files of an index folder: a table of clips in Parquet, embeddings in safetensors."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line

from .manifest import AGAIN
from .records import FrameTable


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


def pack_clips(vid: str, captions: Sequence[str], frames: FrameTable | None) -> bytes:
    """The table of clips as Parquet."""
    import pyarrow
    from pyarrow import parquet

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
            f"caption {clip} of {vid!r}: got {captions[clip]!r}, expected Unicode "
            f"text; remove the surrogates"
        ) from None
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def is_text(value: object) -> bool:
    """Whether something is a text that can be written: half of a surrogate pair cannot."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


def unpack_clips(
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
        raise GranAlignError(f"{path}: not a table of clips ({one_line(error)}); {AGAIN}") from None
    if not table.schema.equals(_schema()):
        raise GranAlignError(
            f"{path}: got columns {table.column_names}, expected {_schema().names}; {AGAIN}"
        )
    captions, times, hashes = (tuple(columns[name]) for name in ("caption", "time", "frame_hash"))
    if columns["clip"] != list(range(len(captions))):
        raise GranAlignError(f"{path}: expected clips 0, 1, 2, ... in order; {AGAIN}")
    known = {value is not None for value in (*times, *hashes)}
    if known == {True, False}:
        raise GranAlignError(f"{path}: got frames of some clips, expected of all; {AGAIN}")
    return captions, np.array(times, np.float64), hashes if known == {True} else None


def unpack_tensors(path: Path, content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Embeddings of captions and, where there are any, of frames."""
    from safetensors.numpy import load as unpack

    try:
        tensors = unpack(content)
    except Exception as error:  # whatever safetensors makes of a file of another making
        raise GranAlignError(f"{path}: not safetensors ({one_line(error)}); {AGAIN}") from None
    if set(tensors) not in ({"captions"}, {"captions", "frames"}):
        raise GranAlignError(
            f"{path}: got {sorted(tensors)}, expected captions and perhaps frames; {AGAIN}"
        )
    return tensors
