"""What every encoder shares: its folder opened, distinct texts, their tokens, batches, threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.runtime.device import Device

from .exported_graph import open_session
from .manifest import FrameEncoderManifest, SentenceManifest, fingerprint

_BATCH_TOKENS = {"cpu": 512}
_GPU_BATCH_TOKENS = 32768
"""Tokens in one run. On a CPU a batch's activations must stay in a core's cache: measured on all of
128 to 8192, 512 was fastest, 8192 was 15 % slower. On a GPU a run must be worth its launches."""

_Manifest = TypeVar("_Manifest", bound=SentenceManifest | FrameEncoderManifest)


class ExportedEncoder(Generic[_Manifest]):
    """An exported encoder, opened: its tokenizer, its graphs, and how many threads run them.

    On a CPU each run has one thread, and several runs go on at once: the threads never wait for
    each other, which is faster than sharing each product, and much faster when the machine has
    other work.

    Args:
        folder: the exported model.
        manifest: its manifest.
        graphs: files to load, into `sessions`.
        device: as for `Session`.
        threads: CPU threads; None for all that this process may use.

    Raises:
        GranAlignError: a file is damaged, or the device cannot be had.
    """

    def __init__(
        self,
        folder: Path,
        manifest: _Manifest,
        graphs: Sequence[str],
        *,
        device: str,
        threads: int | None,
    ) -> None:
        self.manifest = manifest
        wanted = Device.parse(device)
        self._kind = wanted.kind
        self._gpu = None if wanted.kind == "cpu" else wanted.index or 0
        self._workers = cpu_threads(threads)
        self._tokenizer = load_tokenizer(folder)
        self._batch_tokens = _BATCH_TOKENS.get(self._kind, _GPU_BATCH_TOKENS)
        own = 1 if self._kind == "cpu" else None
        self._sessions = [
            open_session(folder / name, device=device, threads=own) for name in graphs
        ]

    @property
    def dim(self) -> int:
        """Columns of an embedding."""
        return self.manifest.dim

    @property
    def fingerprint(self) -> str:
        """Names the embeddings: equal for equal weights, settings, precision and format."""
        precision = self._sessions[0].precision or self.manifest.precision
        return fingerprint(self.manifest.source_sha256, precision, self.manifest.format_version)


def distinct(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct texts in order of appearance, and for each given text the index of its equal."""
    if isinstance(texts, str):
        raise GranAlignError(f"texts: got the string {texts[:80]!r}, expected a list of strings")
    index: dict[str, int] = {}
    row_of = np.empty(len(texts), np.int64)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise GranAlignError(f"texts[{i}]: got {type(text).__name__}, expected str")
        row_of[i] = index.setdefault(text, len(index))
    return list(index), row_of


def load_tokenizer(folder: Path, remedy: str = "export the model again") -> Any:
    """The `tokenizers.Tokenizer` of a folder; `remedy` is what to do about a torn one."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("embedding sentences", "cpu") from None
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise GranAlignError(f"{path}: not a tokenizer ({one_line(error)}); {remedy}") from None


def tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text."""
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    except (UnicodeEncodeError, TypeError):
        # Half of a surrogate pair: no UTF-8 for it, and the tokenizer does not say where.
        bad = next((text for text in texts if _lacks_utf8(text)), texts[0])
        raise GranAlignError(
            f"text {bad[:80]!r} is not valid Unicode; decode the bytes it came from as UTF-8"
        ) from None


def equal_length_batches(tokens: list[list[int]], budget: int) -> list[npt.NDArray[np.int64]]:
    """Indices of token lists, each batch of one length and, if it can be, within `budget` tokens.

    The longest come first, so that the last batches to run are short.
    """
    lengths = np.array([len(ids) for ids in tokens])
    order = np.argsort(-lengths, kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        size = max(1, budget // max(1, int(lengths[group[0]])))
        batches.extend(group[i : i + size] for i in range(0, len(group), size))
    return batches


def cpu_threads(threads: int | None) -> int:
    """The number of threads that was asked for; for None, all that this process may use."""
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if threads < 1:
        raise GranAlignError(f"threads: got {threads}, expected at least 1, or None for all")
    return threads


def check_finite(rows: npt.NDArray[np.float32], name: Callable[[int], str]) -> None:
    """Raise if a row holds NaN or infinity; `name` says what the row of an index is of."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise GranAlignError(f"the embedding of {name(int(bad[0]))} is not finite; check the model")


def _lacks_utf8(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
