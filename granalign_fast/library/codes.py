"""Codes of 8 bits beside the embeddings of a segment: the first stage reads half the bytes."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.kernels import Codes, Top, code_blocks, code_range, corpus
from granalign_fast.runtime.array_device import ArrayDevice

from .approximate import ApproximateIndex, open_approximate_index
from .durable import Sink

_log = logging.getLogger(__name__)

CODED = {f"{name}.f16": (f"{name}.u8", f"{name}-scale.f32") for name in ("captions", "frames")}
"""The files of the codes and of what they stand for, by the file of the embeddings."""


class CodedRows:
    """The embeddings of a segment on the host, their codes, and a copy on a GPU that searches them.

    Args:
        rows: `(clips, dim)`.
        codes: of the rows.
        path: where their approximate index lies, if there is one.
        sha256: of the file of the rows.
    """

    def __init__(
        self, rows: npt.NDArray[np.float16], codes: Codes, path: Path, sha256: str
    ) -> None:
        self.rows, self.codes = rows, codes
        self.path, self.sha256 = path, sha256
        self._copies: dict[int, Any] = {}
        """By the number of the GPU; None where they do not fit."""

    def top(self, queries: npt.NDArray[np.float16], some: Any, k: int, device: ArrayDevice) -> Top:
        """Return the `k` best of some rows for each query, on the host.

        Args:
            queries: `(queries, dim)`.
            some: a slice, or numbers of rows.
            k: as for `corpus`.
            device: where they are compared. Rows that do not fit on a GPU are compared on the host.
        """
        if device.index is None or (rows := self._on(device)) is None:
            return corpus(queries, self.rows[some], k=k, codes=self.codes.part(some))
        asked = device.put(queries)
        with device.guarded():
            part = rows[some] if isinstance(some, slice) else rows[device.xp.asarray(some)]
            found = corpus(asked, part, k=k)
        return Top(device.to_host(found.scores), device.to_host(found.rows))

    @cached_property
    def approximate(self) -> ApproximateIndex | None:
        """The approximate index of the rows; None, and a warning, if none can be used."""
        try:
            return self.open_approximate()
        except GranAlignError as error:
            _log.warning("all clips of a segment are compared: %s", error)
            return None

    def open_approximate(self, *, again: bool = False) -> ApproximateIndex:
        """Open the approximate index; arguments and errors as of `open_approximate_index`."""
        return open_approximate_index(self.path, self.rows, self.sha256, again=again)

    def _on(self, device: ArrayDevice) -> Any:
        """Return the rows on a GPU, where they stay for later searches; None if they do not fit."""
        number = device.index or 0
        if number not in self._copies:
            try:
                self._copies[number] = device.put(np.asarray(self.rows))
            except GranAlignError as error:
                _log.warning("the first stage runs on the CPU: %s", error)
                self._copies[number] = None
        return self._copies[number]


def open_codes(rows: npt.NDArray[np.uint8], scale: npt.NDArray[Any]) -> Codes:
    """Return the codes of embeddings.

    Args:
        rows: `(clips, dim)`.
        scale: `(2 * dim + 2,)`: least values, steps, greatest error and greatest length.

    Raises:
        GranAlignError: `scale` is that of embeddings of another length.
    """
    dim = rows.shape[1]
    if len(scale) != 2 * dim + 2:
        raise GranAlignError(f"scale of codes: got {len(scale)} numbers, expected {2 * dim + 2}")
    low, step, (error, length) = np.split(np.asarray(scale), [dim, 2 * dim])
    return Codes(rows, low, step, float(error), float(length))


def write_codes(folder: Path, name: str, dim: int) -> dict[str, Sink]:
    """Write the codes of the embeddings in a file.

    Args:
        folder: of the segment.
        name: of the file, which is complete.
        dim: numbers of an embedding; 0 if there are none.

    Returns:
        The new files by name.

    Raises:
        OSError: the disk is full.
    """
    codes_name, scale_name = CODED[name]
    path = folder / name
    shape = (path.stat().st_size // (2 * dim) if dim else 0, dim)
    # An empty file cannot be mapped.
    clips = np.memmap(path, np.float16, "r", shape=shape) if shape[0] else np.empty(shape, "f2")
    low, step = code_range(clips)
    error = length = 0.0
    with Sink(folder / codes_name) as codes_sink:
        for _, codes, off, size in code_blocks(clips, low, step):
            codes_sink.write(codes.data.cast("B"))
            error, length = max(error, off), max(length, size)
    # Rounded up: they are bounds.
    bounds = np.nextafter(np.array([error, length], np.float32), np.float32(np.inf))
    with Sink(folder / scale_name) as scale_sink:
        scale_sink.write(np.concatenate([low, step, bounds]).astype(np.float32).tobytes())
    return {codes_name: codes_sink, scale_name: scale_sink}
