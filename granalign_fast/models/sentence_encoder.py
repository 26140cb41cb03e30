"""The sentence encoder: texts to embeddings, without torch.

Equal texts are embedded once. On a CPU, texts are not padded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, listed, short_repr
from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK
from granalign_fast.runtime.device import Device

from .encoder import (
    ExportedEncoder,
    check_finite,
    checked_rows,
    distinct,
    equal_length_batches,
    tokenise,
)
from .graph_contract import (
    ATTENTION_MASK,
    EMBEDDINGS,
    ENCODER_DEVICES,
    INPUT_IDS,
    PACKED_GRAPH,
    PADDED_IDS,
    POOL,
    SENTENCE_GRAPH,
    TOKEN_TYPE_IDS,
)
from .manifest import SentenceManifest
from .text_packing import batches as packed_batches
from .text_packing import pack
from .text_padding import batches as padded_batches
from .text_padding import pad

_WINDOW = 16384
"""Texts tokenised at a time for a CPU. This bounds memory, and a window of this size has enough
texts of each length to fill batches."""

_GPU_WINDOW = 4096
"""Texts tokenised at a time for a GPU, while it embeds the window before. Both take about as long.
"""


class OnnxSentenceEncoder(ExportedEncoder[SentenceManifest]):
    """A sentence encoder: an exported sentence-transformers model. Threads may share one.

    Args:
        folder: the model that `export_sentence_encoder` wrote.
        precision: the precision that the folder must have; None for any.
        device: as for `open_session`.
        threads: CPU threads; None for all that this process may use.
        graph: a file of the folder; None for the one that suits the device.
        manifest: of a folder that has none yet, as an export checks it; None to read it.

    Raises:
        GranAlignError: the folder, precision or device cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        precision: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        graph: str | None = None,
        manifest: SentenceManifest | None = None,
    ) -> None:
        parsed = Device.parse(device)
        manifest = manifest or SentenceManifest.read(folder)
        if precision not in (None, manifest.precision):
            raise GranAlignError(
                f"{folder}: got precision {manifest.precision!r}, expected {precision!r}; "
                f"export the model again in {precision!r}, or use the folder's precision"
            )
        _check_device(manifest.precision, parsed)
        if graph is None:
            packs = parsed.kind == "cpu" and PACKED_GRAPH in manifest.files
            graph = PACKED_GRAPH if packs else SENTENCE_GRAPH
        super().__init__(folder, manifest, [graph], device=device, threads=threads)
        (self._session,) = self._sessions
        self._tokenizer  # noqa: B018 - a damaged one is found here, not in the first text
        self._packs = POOL in self._session.inputs
        self._pads = self._session.inputs == (PADDED_IDS,)
        if parsed.kind != "cpu":
            self._workers = 1
        self._prompt = manifest.prompt
        self._asks = False

    @property
    def for_queries(self) -> Self:
        """The same model behind its prompt for queries; itself if that is the same prompt."""
        prompt = self.manifest.query_prompt
        if prompt is None or self._asks:
            return self
        asking = copy.copy(self)
        asking._prompt, asking._asks = prompt, True
        return asking

    @property
    def content_key(self) -> str:
        """Name of the results in a cache: those for queries have a name of their own."""
        return super().content_key + "-queries" * self._asks

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings (texts, dim), float32, C-contiguous, rows of unit length.

        The texts are those that are searched; `for_queries` embeds queries. Other texts of the
        call change a text's embedding by no more than rounding.

        Args:
            texts: any strings; text over the model's length is cut off.
            progress: called with the number of texts finished since the last call.

        Raises:
            GranAlignError: a text is not a string, or an embedding is not finite.
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
        """Return the same embeddings as `encode`, as an array on a device.

        If the model runs on the same GPU, embeddings never leave it. Otherwise they are copied.

        Args:
            texts: as for `encode`.
            device: of the result. On a GPU, use the result on the device's stream, or after it.

        Raises:
            GranAlignError: a text is not a string. On a GPU, embeddings are not checked for NaN, as
                that would copy them to the host.
        """
        if device.index is None or device.index != self._gpu or not len(texts):
            embeddings = self.encode(texts)
            with CAPTURE_LOCK.shared():
                return device.put(embeddings)
        unique, row_of = distinct(texts)
        tokens = self._tokenise(unique)
        batches = self._batches(tokens)
        with device.activate():
            # Allocations must not coincide with a capture, so they hold the lock. Runs take the
            # lock themselves.
            with CAPTURE_LOCK.shared():
                ids = [device.put(self._ids([tokens[i] for i in batch])) for batch in batches]
            parts = [self._run(batch) for batch in ids]
            with CAPTURE_LOCK.shared():
                rows = device.xp.concatenate(parts).astype(np.float32, copy=False)
                if not self.manifest.normalise:
                    lengths = device.xp.linalg.norm(rows, axis=1, keepdims=True)
                    rows = rows / device.xp.maximum(lengths, 1e-12)
                # From the order of batches to the order of texts, with equal texts repeated.
                embeddings = rows[device.put(np.argsort(np.concatenate(batches))[row_of])]
                # `parts` borrow ONNX Runtime's memory; wait for the copy before freeing them.
                device.xp.cuda.get_current_stream().synchronize()
        return embeddings

    def _embed(
        self, texts: list[str], rows: npt.NDArray[np.float32]
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Fill `rows` with the embeddings of `texts`.

        Yields:
            The row indices of each batch when it is finished.
        """

        def run(batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            selected = [tokens[i - start] for i in batch]
            found = self._run_packed(selected) if self._packs else self._run(self._ids(selected))
            rows[batch] = checked_rows(found, (len(batch), self.dim), self._folder)
            return batch

        with ThreadPoolExecutor(self._workers) as pool:
            for start, tokens in self._token_windows(texts):
                batches = [batch + start for batch in self._batches(tokens)]
                yield from pool.map(run, batches) if len(batches) > 1 else map(run, batches)

    def _token_windows(self, texts: list[str]) -> Iterator[tuple[int, list[list[int]]]]:
        """Tokenise texts window by window.

        Yields:
            The index of a window's first text, and the token ids of its texts.
        """
        size = _WINDOW if self._gpu is None else _GPU_WINDOW
        starts = range(0, len(texts), size)

        def read(start: int) -> list[list[int]]:
            return self._tokenise(texts[start : start + size])

        # On a CPU there is no second device to overlap with.
        if self._gpu is None or len(starts) < 2:
            yield from ((start, read(start)) for start in starts)
            return
        # Tokenise the next window on another thread while the GPU embeds this one.
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(read, 0)
            for start in starts:
                tokens = upcoming.result()
                if start != starts[-1]:
                    upcoming = pool.submit(read, start + size)
                yield start, tokens

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, behind the model's prompt."""
        if self._prompt:
            texts = [self._prompt + text for text in texts]
        return tokenise(self._tokenizer, texts)

    def _batches(self, tokens: list[list[int]]) -> list[npt.NDArray[np.int64]]:
        """Group token lists into batches that suit the graph; return their indices."""
        if self._packs:
            return packed_batches(tokens, self._batch_tokens, self._workers)
        if self._pads:
            lengths = [len(ids) for ids in tokens]
            return padded_batches(lengths, self._batch_tokens, self.manifest.max_tokens)
        return equal_length_batches(tokens, self._batch_tokens)

    def _ids(self, tokens: list[list[int]]) -> npt.NDArray[np.int32]:
        """Return the token ids of one batch for a graph without packing: (texts, tokens)."""
        if self._pads:
            return pad(tokens, self.manifest.max_tokens)
        return np.array(tokens, np.int32)

    def _run_packed(self, tokens: list[list[int]]) -> Array:
        return self._session(**pack(tokens, self.manifest.pooling))[EMBEDDINGS]

    def _run(self, ids: Array) -> Array:
        if len(self._session.inputs) == 1:
            return self._session(**{self._session.inputs[0]: ids})[EMBEDDINGS]
        # A graph that optimum exported has further inputs. Without padding they are constant.
        with CAPTURE_LOCK.shared():
            wide = ids.astype(np.int64)
            arrays = {
                INPUT_IDS: wide,
                ATTENTION_MASK: np.ones_like(wide),
                TOKEN_TYPE_IDS: np.zeros_like(wide),
            }
        return self._session(**{name: arrays[name] for name in self._session.inputs})[EMBEDDINGS]


def _check_device(precision: str, device: Device) -> None:
    """Raise an error if a device cannot run a precision."""
    allowed = ENCODER_DEVICES.get(precision)
    if allowed is None:
        raise GranAlignError(
            f"precision: got {short_repr(precision)}, expected one of {listed(ENCODER_DEVICES)}; "
            f"export the model again"
        )
    if device.kind not in allowed:
        raise GranAlignError(
            f"precision {precision!r}: got device {device.kind!r}, expected one of {allowed}; "
            f"use fp16 on a GPU"
        )
