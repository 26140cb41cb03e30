"""Code that all encoders share: open a folder, deduplicate texts, tokenise, make batches."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.device import Device
from granalign_fast.runtime.session import Session

from .exported_graph import open_session
from .exported_model import ExportedModel
from .manifest import FrameEncoderManifest, SentenceManifest, fingerprint
from .tokenizer_file import fit, load_tokenizer, tokenizing

_BATCH_TOKENS = {"cpu": 512}
"""Tokens in one run on a CPU, where a batch's activations must stay in a core's cache. Of 128 to
8192 tokens, 512 were fastest; 8192 were 15 % slower."""

_GPU_BATCH_TOKENS = 32768
"""Tokens in one run on a GPU. A run must be long enough to outweigh its kernel launches."""

_Manifest = TypeVar("_Manifest", bound=SentenceManifest | FrameEncoderManifest)


def checked_rows(rows: Any, shape: tuple[int, int], folder: Path) -> Any:
    """Return embeddings that a graph gave, if they have the shape that its manifest promises.

    Raises:
        GranAlignError: they have another one: the graph is not that of the manifest.
    """
    if rows.shape != shape:
        raise GranAlignError(
            f"{folder}: its graph gave an array {rows.shape}, expected {shape}; export it again"
        )
    return rows


class ExportedEncoder(ExportedModel, Generic[_Manifest]):
    """An opened encoder: its tokenizer, the sessions of its graphs, and its worker threads.

    On a CPU each run uses one thread, and several runs work at the same time. Their threads never
    wait for each other. This is faster than splitting each matrix product, and much faster when the
    machine is busy with other work.

    Args:
        folder: the exported model.
        manifest: its manifest.
        graphs: file names of the graphs to load, in the order of the sessions.
        device: as for `open_session`.
        threads: CPU threads; None for all that this process may use.

    Raises:
        GranAlignError: a file is damaged, or the device is not available.
    """

    _lean = False
    """Whether a CPU gives memory back after each run; see `open_session`."""

    def __init__(
        self,
        folder: Path,
        manifest: _Manifest,
        graphs: Sequence[str],
        *,
        device: str,
        threads: int | None,
    ) -> None:
        self.manifest: _Manifest = manifest
        parsed = Device.parse(device)
        self._kind = parsed.kind
        self._gpu = None if parsed.kind == "cpu" else parsed.index or 0
        self._workers = cpu_threads(threads)
        self._folder, self._device_name = folder, device
        self._batch_tokens = _BATCH_TOKENS.get(self._kind, _GPU_BATCH_TOKENS)
        self._sessions = [self._open(name) for name in graphs]

    def _open(self, graph: str) -> Session:
        """Open a graph of the folder."""
        threads = 1 if self._kind == "cpu" else None
        options = {"device": self._device_name, "threads": threads, "lean": self._lean}
        return open_session(self._folder / graph, **options)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        """The folder's tokenizer, loaded when it is first used."""
        return fit(load_tokenizer(self._folder), self.manifest.max_tokens)

    @property
    def dim(self) -> int:
        """Number of values in an embedding."""
        return self.manifest.dim

    @property
    def fingerprint(self) -> str:
        """Name of the embeddings: equal for equal weights, settings, precision and format."""
        precision = self._sessions[0].precision or self.manifest.precision
        return fingerprint(self.manifest.source_sha256, precision, self.manifest.format_version)


def distinct(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the distinct texts in order of appearance, and each text's index among them.

    Raises:
        GranAlignError: `texts` is a string, or one of them is not a string.
    """
    if isinstance(texts, str):
        raise GranAlignError(f"texts: got the string {texts[:80]!r}, expected a list of strings")
    index: dict[str, int] = {}
    row_of = np.empty(len(texts), np.int64)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise GranAlignError(f"texts[{i}]: got {type(text).__name__}, expected str")
        row_of[i] = index.setdefault(text, len(index))
    return list(index), row_of


def tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text.

    Raises:
        GranAlignError: a text is not valid Unicode.
    """
    try:
        with tokenizing(UnicodeEncodeError, TypeError):
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    except (UnicodeEncodeError, TypeError):
        # A lone surrogate has no UTF-8 form. The tokenizer's error does not name the text.
        bad = next((text for text in texts if _lacks_utf8(text)), texts[0])
        raise GranAlignError(
            f"text {bad[:80]!r} is not valid Unicode; decode the bytes it came from as UTF-8"
        ) from None


def equal_length_batches(tokens: list[list[int]], budget: int) -> list[npt.NDArray[np.int64]]:
    """Group token lists of equal length into batches, the longest first.

    Short batches run last, so workers finish at about the same time.

    Args:
        tokens: token ids of each text.
        budget: the greatest number of tokens in a batch. A longer text is a batch by itself.

    Returns:
        Indices into `tokens` of each batch.
    """
    lengths = np.array([len(ids) for ids in tokens])
    order = np.argsort(-lengths, kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        size = max(1, budget // max(1, int(lengths[group[0]])))
        batches.extend(group[i : i + size] for i in range(0, len(group), size))
    return batches


def cpu_threads(threads: int | None) -> int:
    """Return the number of CPU threads; None stands for all that this process may use.

    Raises:
        GranAlignError: the number is below 1.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if threads < 1:
        raise GranAlignError(f"threads: got {threads}, expected at least 1, or None for all")
    return threads


def check_finite(rows: npt.NDArray[np.float32], name: Callable[[int], str]) -> None:
    """Raise an error if a row holds NaN or infinity.

    Args:
        rows: embeddings (rows, dim).
        name: returns the name of a row's source for the error message, from the row's index.

    Raises:
        GranAlignError: a value is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise GranAlignError(f"the embedding of {name(int(bad[0]))} is not finite; check the model")


def _lacks_utf8(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
