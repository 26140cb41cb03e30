"""The frame encoder: CLIP or SigLIP embeds frames and texts, without torch or transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line, short_repr
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.runtime.session import Session
from granalign_fast.types import Image, check_frames
from granalign_fast.video.images import resize

from .encoder import (
    ExportedEncoder,
    check_finite,
    checked_rows,
    distinct,
    equal_length_batches,
    tokenise,
)
from .graph_contract import EMBEDDINGS, IMAGE_GRAPH, TEXT_GRAPH
from .manifest import FrameEncoderManifest

_BATCH_FRAMES = {"cpu": 4}
"""Frames in one run on a CPU. Runs of 4, 8 and 16 frames of ViT-B/32 took equally long per frame,
and 4 take the least memory."""

_GPU_BATCH_FRAMES = 64
"""Frames in one run on a GPU. A run must be long enough to outweigh its kernel launches."""

Frames = npt.NDArray[np.uint8] | Sequence[Image]
"""uint8 RGB (frames, height, width, 3), or a sequence of (height, width, 3) of any sizes."""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of the image tower: resize a frame and crop its centre.

    The result equals that of the Pillow-based ``CLIPImageProcessor`` and ``SiglipImageProcessor``
    of transformers 4.57 and 5 in every bit, for frames of any size (tested). Their variants with
    torchvision differ from both. The processors' further steps, which rescale and normalise the
    bytes, are part of the tower's graph.

    Attributes:
        resize: the length of the shorter edge in pixels, or height and width.
        crop: height and width of the centre to crop from the resized frame.
        resample: Pillow's number of the filter, such as 3 for bicubic.
    """

    resize: tuple[int, ...]
    crop: tuple[int, int]
    resample: int

    def __call__(self, frame: Image) -> Image:
        """Return the cropped frame (crop height, crop width, 3), of a frame of any size."""
        height, width = self._resized(*frame.shape[:2])
        image = resize(frame, height, width, self.resample)
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        return image[top : top + self.crop[0], left : left + self.crop[1]]

    def is_possible(self) -> bool:
        """Return whether the crop lies in the resized frame, and the filter is one of Pillow's."""
        from PIL.Image import Resampling

        return (
            len(self.resize) in (1, 2)
            and len(self.crop) == 2
            and 0 < min(self.crop) <= max(self.crop) <= min(self.resize)
            and self.resample in {entry.value for entry in Resampling}
        )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        (edge,) = self.resize
        # The longer edge is truncated to an integer, not rounded, as in the processor.
        if width <= height:
            return int(edge * height / width), edge
        return edge, int(edge * width / height)


class FrameEncoder(ExportedEncoder[FrameEncoderManifest]):
    """A frame encoder: embeds frames and texts with an exported CLIP or SigLIP model.

    The cosine of a frame and a text is the dot product of their rows. Threads may share an encoder.

    Args:
        folder: the model that ``granalign export clip`` wrote.
        device: as for `open_session`.
        threads: CPU threads; None for all that this process may use.
        manifest: of a folder that has none yet, as an export checks it; None to read it.

    Attributes:
        preprocessing: what it does to each frame before the image tower.

    Raises:
        GranAlignError: the folder is of another kind or altered, or the device is not available.
    """

    _lean = True  # a run of frames takes 70 MB, and other models need them next

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        manifest: FrameEncoderManifest | None = None,
    ) -> None:
        folder = Path(folder)
        manifest = manifest or FrameEncoderManifest.read(folder)
        self.preprocessing = _read_preprocessing(manifest, folder)
        super().__init__(folder, manifest, [IMAGE_GRAPH], device=device, threads=threads)
        (self._image,) = self._sessions
        self._device = ArrayDevice.of(device)
        self._batch_frames = _BATCH_FRAMES.get(self._kind, _GPU_BATCH_FRAMES)
        # On a GPU runs take turns; on a CPU several runs work at the same time.
        on_cpu = self._kind == "cpu"
        self._run_lock: AbstractContextManager[Any] = nullcontext() if on_cpu else Lock()

    @cached_property
    def _text(self) -> Session:
        """The text tower, opened when it is first used: to index a video takes no text.

        SigLIP's tower and tokenizer take 240 MB of memory.
        """
        self._tokenizer  # noqa: B018 - loaded first: opening the tower returns what loading took
        return self._open(TEXT_GRAPH)

    def encode_frames(
        self,
        frames: Frames,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return embeddings (frames, dim), float32, rows of unit length, in the order of `frames`.

        Only a few batches of preprocessed frames are in memory at a time.

        Args:
            frames: uint8 RGB (frames, height, width, 3), or a sequence of uint8 RGB
                (height, width, 3), which may differ in size.
            progress: called with the number of frames finished since the last call.

        Raises:
            GranAlignError: there is no frame, a frame has another shape or type, or an embedding
                is not finite.
        """
        check_frames(frames)
        rows = np.empty((len(frames), self.dim), np.float32)
        embed = self._embed_on_cpu if self._kind == "cpu" else self._embed_on_gpu
        with ThreadPoolExecutor(self._workers) as pool:
            for done in embed(frames, rows, pool):
                if progress:
                    progress(done)
        check_finite(rows, lambda i: f"frames[{i}]")
        return rows

    def _embed_on_cpu(
        self, frames: Frames, rows: npt.NDArray[np.float32], pool: Executor
    ) -> Iterator[int]:
        """Fill `rows`: each worker preprocesses and embeds whole batches.

        Returns:
            An iterator over the numbers of rows of the batches.
        """

        def run(start: int) -> int:
            batch, pending = self._start_batch(frames, start, map)
            return self._embed_batch(batch, pending, rows[start:])

        return pool.map(run, range(0, len(frames), self._batch_frames))

    def _embed_on_gpu(
        self, frames: Frames, rows: npt.NDArray[np.float32], pool: Executor
    ) -> Iterator[int]:
        """Fill `rows`: all workers preprocess the next batch while the GPU runs this one.

        Yields:
            The number of rows of each batch.
        """
        starts = range(0, len(frames), self._batch_frames)
        upcoming = self._start_batch(frames, 0, pool.map)
        for start in starts:
            batch, pending = upcoming
            if start + self._batch_frames < len(frames):
                upcoming = self._start_batch(frames, start + self._batch_frames, pool.map)
            yield self._embed_batch(batch, pending, rows[start:])

    def _start_batch(
        self, frames: Frames, start: int, each: Callable[..., Iterator[None]]
    ) -> tuple[npt.NDArray[np.uint8], Iterator[None]]:
        """Allocate the batch that begins at frame `start`, and start to preprocess its frames.

        Args:
            frames: all frames.
            start: the index of the batch's first frame.
            each: `map`, or a pool's.

        Returns:
            The batch, and an iterator. The batch is full when the iterator is exhausted.
        """
        selected = frames[start : start + self._batch_frames]
        batch = self._device.staging((len(selected), *self.preprocessing.crop, 3), np.uint8)

        def fill(i: int) -> None:
            batch[i] = self.preprocessing(selected[i])

        return batch, each(fill, range(len(selected)))

    def _embed_batch(
        self,
        batch: npt.NDArray[np.uint8],
        pending: Iterator[None],
        rows: npt.NDArray[np.float32],
    ) -> int:
        """Wait for a batch's frames, embed them into the first of `rows`, return their number."""
        for _ in pending:
            pass
        with self._run_lock:
            found = self._image(frames=batch)[EMBEDDINGS]
            rows[: len(batch)] = checked_rows(found, (len(batch), self.dim), self._folder)
        return len(batch)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return embeddings (texts, dim), float32, rows of unit length, in the order of `texts`.

        Text over the model's length (77 tokens for CLIP, 64 for SigLIP) is cut off.

        Raises:
            GranAlignError: there is no text, a text is not a string, or an embedding is not finite.
        """
        unique, row_of = distinct(texts)
        if not unique:
            raise GranAlignError("texts: got none, expected at least one")
        text_tower = self._text
        tokens = tokenise(self._tokenizer, unique)
        rows = np.empty((len(unique), self.dim), np.float32)

        def run(batch: npt.NDArray[np.int64]) -> None:
            ids = np.array([tokens[i] for i in batch], np.int32)
            with self._run_lock:
                found = text_tower(input_ids=ids)[EMBEDDINGS]
                rows[batch] = checked_rows(found, (len(batch), self.dim), self._folder)

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(run, equal_length_batches(tokens, self._batch_tokens)))
        check_finite(rows, lambda i: repr(unique[i][:80]))
        return rows[row_of]


def _read_preprocessing(manifest: FrameEncoderManifest, folder: Path) -> Preprocessing:
    """Return the preprocessing that a manifest describes."""
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest.preprocessing.items()
    }
    try:
        preprocessing = Preprocessing(**settings)
        if not preprocessing.is_possible():
            raise TypeError(f"got {short_repr(manifest.preprocessing)}")
        return preprocessing
    except TypeError as error:
        raise GranAlignError(
            f"{folder / 'manifest.json'}: unusable preprocessing ({one_line(error)}); export the "
            f"model again"
        ) from None
