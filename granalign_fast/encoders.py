"""Sentences to embeddings: no torch, no padding, every text embedded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import GranAlignError, MissingExtraError
from .models import SentenceManifest, fingerprint, one_line, resolve_model
from .session import Device, Session

# Tokens in one run. On a CPU a batch's activations must stay in a core's cache: measured on all of
# 128 to 8192, 512 was fastest, 8192 was 15 % slower. On a GPU a run must be worth its launches.
_BATCH_TOKENS = {"cpu": 512}
_GPU_BATCH_TOKENS = 16384

# Texts tokenised at a time: bounds memory, and leaves enough of each length to fill batches.
_WINDOW = 16384


class SentenceEncoder:
    """Embeds sentences with a sentence-transformers model that was exported to ONNX.

    A raw model is exported once, checked against its source, and kept in the cache.

    Args:
        source: None for all-MiniLM-L6-v2, a sentence-transformers folder, a hub id
            ``org/name@<revision>``, or a folder that `export_sentence_encoder` wrote.
        precision: ``"fp32"``; ``"int8"``, the fastest on a CPU; ``"fp16"``, for a GPU. None takes
            an exported folder's own, and fp32 otherwise.
        device: as for `Session`.
        threads: CPU threads; None for all that this process may use.
        cache_dir: where exports are kept; None for ``granalign-fast`` in the user's cache folder.

    Raises:
        GranAlignError: the source, precision or device cannot be used; the message says why.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        precision: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise GranAlignError(f"threads: got {threads}, expected at least 1, or None for all")
        wanted = Device.parse(device)
        folder = resolve_model(source)
        if not (folder / "manifest.json").is_file():
            folder = _exported(folder, source, precision or "fp32", cache_dir)
        self.manifest = SentenceManifest.read(folder)
        if precision not in (None, self.manifest.precision):
            raise GranAlignError(
                f"{folder}: got precision {self.manifest.precision!r}, expected {precision!r}; "
                f"export the model again in {precision!r}, or ask for what the folder holds"
            )
        _check_device(self.manifest.precision, wanted)
        self._tokenizer = _load_tokenizer(folder)
        # One thread a run and several runs at once: the threads never wait for each other, which
        # is faster than sharing each product, and much faster when the machine has other work.
        on_cpu = wanted.kind == "cpu"
        self._workers = (threads or _usable_cores()) if on_cpu else 1
        self._batch_tokens = _BATCH_TOKENS.get(wanted.kind, _GPU_BATCH_TOKENS)
        self._session = Session(folder / "model.onnx", device=device, threads=1 if on_cpu else None)

    @property
    def dim(self) -> int:
        """Columns of an embedding."""
        return self.manifest.dim

    @property
    def fingerprint(self) -> str:
        """Names the embeddings: equal for equal weights, settings, precision and format."""
        return fingerprint(self.manifest.source_sha256, self.manifest.precision)

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeddings (texts, dim), float32, C-contiguous, rows of unit length, in the given order.

        A text's embedding does not depend on the other texts. Threads may share an encoder.

        Args:
            texts: any strings; what is over the model's length is cut off.
            progress: called with the number of texts finished since the last call.

        Raises:
            GranAlignError: something is not a string, or an embedding is not finite.
        """
        unique, row_of = _distinct(texts)
        rows = np.empty((len(unique), self.dim), np.float32)
        copies = np.bincount(row_of, minlength=len(unique))
        for done in self._embed(unique, rows):
            if progress:
                progress(int(copies[done].sum()))
        if not self.manifest.normalise:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        if not np.isfinite(rows).all():
            bad = unique[int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
            raise GranAlignError(f"the embedding of {bad[:80]!r} is not finite; check the model")
        return rows if len(unique) == len(texts) else rows[row_of]

    def _embed(
        self, texts: list[str], rows: npt.NDArray[np.float32]
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Fill `rows`, yielding the indices of each batch that is finished."""

        def run(batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            ids = np.array([tokens[i - start] for i in batch], np.int32)
            rows[batch] = self._run(ids)
            return batch

        with ThreadPoolExecutor(self._workers) as pool:
            for start in range(0, len(texts), _WINDOW):
                tokens = self._tokenise(texts[start : start + _WINDOW])
                batches = _equal_length_batches(tokens, self._batch_tokens)
                todo = [batch + start for batch in batches]
                yield from pool.map(run, todo) if len(todo) > 1 else map(run, todo)

    def _run(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        if self._session.inputs == ("input_ids",):
            return self._session(input_ids=ids)["embeddings"]
        # A graph of optimum's wants more, which for texts without padding is always the same.
        wide = ids.astype(np.int64)
        arrays = {
            "input_ids": wide,
            "attention_mask": np.ones_like(wide),
            "token_type_ids": np.zeros_like(wide),
        }
        return self._session(**{name: arrays[name] for name in self._session.inputs})["embeddings"]

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        except (UnicodeEncodeError, TypeError):
            # Half of a surrogate pair: no UTF-8 for it, and the tokenizer does not say where.
            bad = next((text for text in texts if _lacks_utf8(text)), texts[0])
            raise GranAlignError(
                f"text {bad[:80]!r} is not valid Unicode; decode the bytes it came from as UTF-8"
            ) from None


def _distinct(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
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


def _equal_length_batches(tokens: list[list[int]], budget: int) -> list[npt.NDArray[np.int64]]:
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


def _exported(
    folder: Path, source: str | Path | None, precision: str, cache_dir: str | Path | None
) -> Path:
    """The cached export of a raw model, made now if there is none."""
    from .cache import default_cache
    from .export.sentence_encoder import SentenceModel, export_sentence_encoder

    model = SentenceModel.read(folder)
    cache = Path(cache_dir) if cache_dir is not None else default_cache()
    out = cache / fingerprint(model.sha256, precision)
    if not (out / "manifest.json").is_file():
        try:
            export_sentence_encoder(source, out, precision=precision)
        except GranAlignError:
            if not (out / "manifest.json").is_file():  # else another process was quicker
                raise
    return out


def _check_device(precision: str, device: Device) -> None:
    from .export.specs import PRECISIONS

    allowed = PRECISIONS[precision].devices
    if device.kind not in allowed:
        raise GranAlignError(
            f"precision {precision!r}: got device {device.kind!r}, expected one of {allowed}; "
            f"use fp16 on a GPU"
        )


def _load_tokenizer(folder: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("embedding sentences", "cpu") from None
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise GranAlignError(
            f"{path}: not a tokenizer ({one_line(error)}); export the model again"
        ) from None


def _lacks_utf8(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
