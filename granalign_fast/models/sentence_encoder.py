"""Sentences to embeddings: no torch, every text embedded once, on a CPU without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK
from granalign_fast.runtime.device import Device

from .encoder import (
    ExportedEncoder,
    check_finite,
    distinct,
    equal_length_batches,
    tokenise,
)
from .graph_contract import ENCODER_DEVICES, PACKED_GRAPH, PADDED_IDS, POOL
from .manifest import SentenceManifest
from .text_packing import batches as packed_batches
from .text_packing import packed
from .text_padding import batches as padded_batches
from .text_padding import padded

# Texts tokenised at a time: bounds memory, and leaves enough of each length to fill batches.
_WINDOW = 16384
_GPU_WINDOW = 4096
"""On a GPU the texts of one window are tokenised while those of the one before are embedded, which
takes about as long."""


class OnnxSentenceEncoder(ExportedEncoder[SentenceManifest]):
    """Embeds sentences with an exported sentence-transformers model.

    Args:
        folder: what `export_sentence_encoder` wrote.
        precision: the one that the folder must hold; None takes any.
        device: as for `open_session`.
        threads: CPU threads; None for all that this process may use.
        graph: a file of the folder; None for the one that is made for the device.

    Raises:
        GranAlignError: the folder, precision or device cannot be used; the message says why.
    """

    def __init__(
        self,
        folder: Path,
        *,
        precision: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        graph: str | None = None,
    ) -> None:
        wanted = Device.parse(device)
        manifest = SentenceManifest.read(folder)
        if precision not in (None, manifest.precision):
            raise GranAlignError(
                f"{folder}: got precision {manifest.precision!r}, expected {precision!r}; "
                f"export the model again in {precision!r}, or ask for what the folder holds"
            )
        _check_device(manifest.precision, wanted)
        if graph is None:
            packs = wanted.kind == "cpu" and PACKED_GRAPH in manifest.files
            graph = PACKED_GRAPH if packs else "model.onnx"
        super().__init__(folder, manifest, [graph], device=device, threads=threads)
        (self._session,) = self._sessions
        self._packs = POOL in self._session.inputs
        self._pads = self._session.inputs == (PADDED_IDS,)
        if wanted.kind != "cpu":
            self._workers = 1

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeddings (texts, dim), float32, C-contiguous, rows of unit length, in the given order.

        A text's embedding depends on the other texts by no more than rounding. Threads may share an
        encoder.

        Args:
            texts: any strings; what is over the model's length is cut off.
            progress: called with the number of texts finished since the last call.

        Raises:
            GranAlignError: something is not a string, or an embedding is not finite.
        """
        unique, row_of = distinct(texts)
        rows = np.empty((len(unique), self.dim), np.float32)
        copies = np.bincount(row_of, minlength=len(unique))
        for done in self._embed(unique, rows):
            if progress:
                progress(int(copies[done].sum()))
        if not self.manifest.normalise:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        check_finite(rows, lambda i: repr(unique[i][:80]))
        return rows if len(unique) == len(texts) else rows[row_of]

    def encode_on(self, texts: Sequence[str], device: ArrayDevice) -> Array:
        """The same embeddings, left on the GPU where they were made, if that is the device's.

        Those of a model that runs elsewhere are brought to the device.

        Args:
            texts: as for `encode`.
            device: where they are wanted. Whoever uses them does it on its stream, or after it.

        Raises:
            GranAlignError: something is not a string. On a GPU nobody looks whether embeddings are
                finite, which would bring them to the host.
        """
        if device.index is None or device.index != self._gpu or not len(texts):
            found = self.encode(texts)
            with CAPTURE_LOCK.shared():
                return device.put(found)
        unique, row_of = distinct(texts)
        tokens = tokenise(self._tokenizer, unique)
        batches = self._batches(tokens)
        with device.activate():
            with (
                CAPTURE_LOCK.shared()
            ):  # what allocates must not meet a capture; runs see to that themselves
                ids = [device.put(self._ids([tokens[i] for i in batch])) for batch in batches]
            parts = [self._run(batch) for batch in ids]
            with CAPTURE_LOCK.shared():
                rows = device.xp.concatenate(parts).astype(np.float32, copy=False)
                if not self.manifest.normalise:
                    lengths = device.xp.linalg.norm(rows, axis=1, keepdims=True)
                    rows = rows / device.xp.maximum(lengths, 1e-12)
                found = rows[device.put(np.argsort(np.concatenate(batches))[row_of])]
                # ONNX Runtime has its memory back when `parts` go: not before they were read.
                device.xp.cuda.get_current_stream().synchronize()
        return found

    def _embed(
        self, texts: list[str], rows: npt.NDArray[np.float32]
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Fill `rows`, yielding the indices of each batch that is finished."""

        def run(batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            own = [tokens[i - start] for i in batch]
            rows[batch] = self._run_packed(own) if self._packs else self._run(self._ids(own))
            return batch

        with ThreadPoolExecutor(self._workers) as pool:
            for start, tokens in self._tokenised(texts):
                todo = [batch + start for batch in self._batches(tokens)]
                yield from pool.map(run, todo) if len(todo) > 1 else map(run, todo)

    def _tokenised(self, texts: list[str]) -> Iterator[tuple[int, list[list[int]]]]:
        """Window by window: where it starts, and its texts' tokens."""
        size = _WINDOW if self._gpu is None else _GPU_WINDOW
        starts = range(0, len(texts), size)

        def read(start: int) -> list[list[int]]:
            return tokenise(self._tokenizer, texts[start : start + size])

        if self._gpu is None or len(starts) < 2:  # a CPU has nothing to do it with beside
            yield from ((start, read(start)) for start in starts)
            return
        with ThreadPoolExecutor(1) as beside:
            coming = beside.submit(read, 0)
            for start in starts:
                tokens = coming.result()
                if start != starts[-1]:
                    coming = beside.submit(read, start + size)
                yield start, tokens

    def _batches(self, tokens: list[list[int]]) -> list[npt.NDArray[np.int64]]:
        if self._packs:
            return packed_batches(tokens, self._batch_tokens, self._workers)
        if self._pads:
            lengths = [len(ids) for ids in tokens]
            return padded_batches(lengths, self._batch_tokens, self.manifest.max_tokens)
        return equal_length_batches(tokens, self._batch_tokens)

    def _ids(self, tokens: list[list[int]]) -> npt.NDArray[np.int32]:
        """Texts of one batch as a graph without packing takes them."""
        if self._pads:
            return padded(tokens, self.manifest.max_tokens)
        return np.array(tokens, np.int32)

    def _run_packed(self, tokens: list[list[int]]) -> Array:
        return self._session(**packed(tokens, self.manifest.pooling))["embeddings"]

    def _run(self, ids: Array) -> Array:
        if len(self._session.inputs) == 1:
            return self._session(**{self._session.inputs[0]: ids})["embeddings"]
        # A graph of optimum's wants more, which for texts without padding is always the same.
        with CAPTURE_LOCK.shared():
            wide = ids.astype(np.int64)
            arrays = {
                "input_ids": wide,
                "attention_mask": np.ones_like(wide),
                "token_type_ids": np.zeros_like(wide),
            }
        return self._session(**{name: arrays[name] for name in self._session.inputs})["embeddings"]


def _check_device(precision: str, device: Device) -> None:
    allowed = ENCODER_DEVICES[precision]
    if device.kind not in allowed:
        raise GranAlignError(
            f"precision {precision!r}: got device {device.kind!r}, expected one of {allowed}; "
            f"use fp16 on a GPU"
        )
