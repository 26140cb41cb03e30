"""Approximate indexes beside the embeddings of a segment: inverted file indexes (IVF), by Faiss.

k-means sorts the clips into lists. A search reads the lists whose centres are nearest to the query,
8 bits for each number, and scores the best clips that it finds there by their embeddings. So each
score is exact, but a clip in another list is missed.

Faiss trusts what it reads. A file is opened only if this user made it, which its mark proves.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError, foreign_errors
from granalign_fast.files import known_sha256
from granalign_fast.index.manifest import write_durably
from granalign_fast.kernels.corpus_host import Asked, key_rows, some_keys
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_JSON_BYTES
from granalign_fast.reading import checked_file, read_file
from granalign_fast.runtime.own_mark import is_own_mark, make_mark

FILE_SUFFIX = ".ivf"
"""The suffix of an approximate index; the rest of its name is that of the embeddings."""

Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]

_REMEDY = "run `granalign library approximate` on the library"
_FORMAT = 1
"""Version of the stamp."""
_TRAINING = 40
"""Clips of the training sample for each list; Faiss wants 39 at least."""
_ADDED = 1 << 16
"""Clips that are added at a time, which bounds the copy in float32."""
_SECOND_LOOK = 2
"""So many times the wanted clips are found by 8 bits, and then scored by their embeddings."""


class ApproximateIndex:
    """An inverted file index of embeddings.

    Args:
        index: of Faiss.
        rows: `(clips, dim)`: the embeddings, in the same order.
    """

    def __init__(self, index: Any, rows: Halves) -> None:
        self._index, self._rows = index, rows

    @classmethod
    def of(cls, rows: Halves) -> ApproximateIndex:
        """Make the index of embeddings: as many lists as the square root of the clips.

        Args:
            rows: `(clips, dim)`, finite; it may be a memory map.

        Raises:
            MissingExtraError: Faiss is not installed.
        """
        faiss = _faiss()
        total, dim = rows.shape
        lists = max(min(math.isqrt(total), total // _TRAINING), 1)
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim),
            dim,
            lists,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
        )
        # 1. The centres of the lists, and the ranges of the 8-bit codes, from a sample.
        sample = np.random.default_rng(0).permutation(total)[: lists * _TRAINING]
        index.train(rows[np.sort(sample)].astype(np.float32))
        # 2. Each clip goes into the list of the nearest centre.
        for first in range(0, total, _ADDED):
            index.add(rows[first : first + _ADDED].astype(np.float32))
        return cls(index, rows)

    def nearest(
        self, queries: Halves, k: int, share: float, some: npt.NDArray[np.bool_] | None = None
    ) -> Ints:
        """Return the rows of the nearest clips, by exact scores, `(queries, k)`; -1 for none.

        Args:
            queries: `(queries, dim)`.
            k: how many clips of each query.
            share: of the lists that are read, above 0 and at most 1.
            some: `(clips,)`: which clips count; None for all.
        """
        faiss, index = _faiss(), self._index
        options = {"nprobe": math.ceil(share * index.nlist)}
        if some is not None:
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(some, bitorder="little"))
        # By its arguments: what is set later, Faiss 1.12 uses and does not keep alive.
        parameters = faiss.SearchParametersIVF(**options)
        wanted = min(_SECOND_LOOK * k, len(self._rows))
        _, found = index.search(queries.astype(np.float32), wanted, params=parameters)
        asked, best = Asked(queries, self._rows.dtype), np.full((len(queries), k), -1, np.int64)
        for number, (near, out) in enumerate(zip(found, best, strict=True)):
            keys = some_keys(asked, number, self._rows, np.sort(near[near >= 0]))
            kept = key_rows(np.sort(keys)[: -k - 1 : -1])
            out[: len(kept)] = kept
        return best

    def write(self, path: Path, rows_sha256: str) -> None:
        """Write the index, and then its stamp; either file appears whole or not at all.

        Args:
            path: of the index.
            rows_sha256: SHA-256 of the file of the embeddings.

        Raises:
            GranAlignError: a file cannot be written.
        """
        content = memoryview(_faiss().serialize_index(self._index))
        write_durably(path, content)
        record = _record(rows_sha256, content.nbytes, hashlib.sha256(content).hexdigest())
        record["mark"] = make_mark(_marked(record))
        write_durably(_stamp_path(path), (json.dumps(record, indent=1) + "\n").encode())


def open_approximate_index(
    path: Path, rows: Halves, rows_sha256: str, *, again: bool = False
) -> ApproximateIndex:
    """Open the approximate index of embeddings; its lists are mapped into memory.

    Args:
        path: of the index, in the folder of a segment.
        rows: `(clips, dim)`: the embeddings.
        rows_sha256: SHA-256 of their file.
        again: read the file even if its hash is remembered.

    Raises:
        GranAlignError: there is none, this user has not made it, it is damaged, or it is that of
            other embeddings.
        MissingExtraError: Faiss is not installed.
    """
    root = path.parent.parent
    if not path.exists():
        raise GranAlignError(f"{path}: there is no approximate index; {_REMEDY}")
    checked_file(path, inside=root, remedy=_REMEDY)
    # 1. Its stamp must be of this user: nothing else is known about the file yet.
    content = read_file(_stamp_path(path), MOST_JSON_BYTES, inside=root, remedy=_REMEDY)
    try:
        stamp = parse_json(content)
        record = _record(stamp["rows"], stamp["bytes"], stamp["sha256"])
        mark, version = str(stamp["mark"]), stamp["format"]
    except (KeyError, TypeError, ValueError):
        raise GranAlignError(f"{_stamp_path(path)}: got no stamp; {_REMEDY}") from None
    if version != _FORMAT or not is_own_mark(mark, _marked(record)):
        raise GranAlignError(
            f"{path}: got an approximate index of somebody else or of another version, expected "
            f"one that this user made; {_REMEDY}"
        )
    # 2. The file must be the one that was written, of these embeddings.
    if record["rows"] != rows_sha256:
        raise GranAlignError(f"{path}: got an index of other embeddings; {_REMEDY}")
    sha256 = str(record["sha256"])
    if path.stat().st_size != record["bytes"] or known_sha256(path, sha256, again=again) != sha256:
        raise GranAlignError(f"{path}: got another content than was written; {_REMEDY}")
    faiss = _faiss()
    with foreign_errors(f"{path}: cannot be read", _REMEDY):
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    return ApproximateIndex(index, rows)


def _record(rows_sha256: str, size: int, sha256: str) -> dict[str, Any]:
    """Return a stamp without its mark."""
    return {"format": _FORMAT, "rows": rows_sha256, "bytes": size, "sha256": sha256}


def _marked(record: dict[str, Any]) -> bytes:
    """Return what the mark stands for; no other kind of file has a stamp like it."""
    return b"approximate index " + json.dumps(record, sort_keys=True).encode()


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("an approximate index", "approximate") from None
    return faiss
