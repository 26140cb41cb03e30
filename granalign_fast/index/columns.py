"""The data files of an index folder: the clip table in Parquet, the embeddings in safetensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.parsing.limits import MOST_CLIPS
from granalign_fast.parsing.parquet import Table
from granalign_fast.parsing.tensors import read_tensors

from .manifest import REINDEX
from .records import FrameTable, IndexedVideo


def _clip_schema(*, captioned: bool) -> Any:
    import pyarrow

    fields = [
        pyarrow.field("clip", pyarrow.int64(), nullable=False),
        pyarrow.field("time", pyarrow.float64()),  # null if the index has no frames
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
    columns: Mapping[str, Any] = {
        "clip": range(video.clips),
        "time": [None] * video.clips if frames is None else frames.times,
        "caption": captions,
        "frame_hash": [None] * video.clips if frames is None else frames.hashes,
    }
    schema = _clip_schema(captioned=captions is not None)
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


def read_clip_table(
    path: Path, content: bytes, *, captioned: bool
) -> tuple[tuple[str, ...] | None, npt.NDArray[np.float64], tuple[str, ...] | None]:
    """Read the content of a clip table.

    Args:
        path: the file's path, for error messages.
        content: the file's bytes.
        captioned: whether the table has a column of captions.

    Returns:
        The captions, and the times and hashes of the frames. The captions are None if the table has
        no column of them. The hashes are None, and the times NaN, if the index has no frames.

    Raises:
        GranAlignError: the content is not a clip table, or its rows do not fit together.
    """
    try:
        columns = Table(content, _clip_schema(captioned=captioned), MOST_CLIPS).read()
    except ValueError as error:
        raise GranAlignError(f"{path}: not a table of clips ({error}); {REINDEX}") from None
    captions = tuple(columns["caption"]) if captioned else None
    times, hashes = np.array(columns["time"], np.float64), tuple(columns["frame_hash"])
    if not np.array_equal(columns["clip"], np.arange(len(times))):
        raise GranAlignError(f"{path}: expected clips 0, 1, 2, ... in order; {REINDEX}")
    # Either every clip has a time and a hash, or none has.
    present = {*(~np.isnan(times)).tolist(), *(value is not None for value in hashes)}
    if present == {True, False}:
        raise GranAlignError(f"{path}: got frames of some clips, expected of all; {REINDEX}")
    return captions, times, hashes if present == {True} else None


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
