"""Frames and texts to embeddings of one space, with CLIP or SigLIP: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.types import Image, check_frames
from granalign_fast.video.images import resize

from .encoder import ExportedEncoder, check_finite, distinct, equal_length_batches, tokenise
from .manifest import FrameEncoderManifest

# Frames in one run. On a CPU 4, 8 and 16 frames of ViT-B/32 took equally long, and fewer
# take less memory; on a GPU a run must be worth its launches.
_BATCH_FRAMES = {"cpu": 4}
_GPU_BATCH_FRAMES = 64

Frames = npt.NDArray[np.uint8] | Sequence[Image]
"""uint8 RGB (frames, height, width, 3), or (height, width, 3) of each, in any size."""


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes what the image tower takes: resize, and crop the centre.

    Equal to the Pillow-based ``CLIPImageProcessor`` and ``SiglipImageProcessor`` of transformers
    4.57 in every bit, for frames of any size (tested); their torchvision-based "fast" variants
    differ from both. What they do to the bytes then is in the tower.

    Attributes:
        resize: the length of the shorter edge, in pixels, or height and width.
        crop: height and width of the centre that is kept, within what `resize` gives.
        resample: Pillow's number of the filter, such as 3 for bicubic.
    """

    resize: tuple[int, ...]
    crop: tuple[int, int]
    resample: int

    def __call__(self, frame: Image) -> Image:
        """What is kept, (crop height, crop width, 3), of a frame (any height, any width, 3)."""
        height, width = self._resized(*frame.shape[:2])
        image = resize(frame, height, width, self.resample)
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        return image[top : top + self.crop[0], left : left + self.crop[1]]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        (edge,) = self.resize
        # The longer edge is cut off, not rounded, as in the processor.
        if width <= height:
            return int(edge * height / width), edge
        return edge, int(edge * width / height)


class FrameEncoder(ExportedEncoder[FrameEncoderManifest]):
    """Embeds frames and texts with a CLIP or SigLIP model that `export_clip` wrote.

    The cosine of a frame and a text is the product of their rows. Threads may share an encoder.

    Args:
        folder: what ``granalign export clip`` wrote.
        device: as for `Session`.
        threads: CPU threads; None for all that this process may use.

    Raises:
        GranAlignError: the folder is of another kind or altered, or the device cannot be had.
    """

    def __init__(
        self, folder: str | Path, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        folder = Path(folder)
        manifest = FrameEncoderManifest.read(folder)
        self._prepare = _preprocessing(manifest, folder)
        graphs = ["image.onnx", "text.onnx"]
        super().__init__(folder, manifest, graphs, device=device, threads=threads)
        self._image, self._text = self._sessions
        self._device = ArrayDevice.of(device)
        self._batch_frames = _BATCH_FRAMES.get(self._kind, _GPU_BATCH_FRAMES)
        # On a GPU one run at a time.
        on_cpu = self._kind == "cpu"
        self._turn: AbstractContextManager[Any] = nullcontext() if on_cpu else Lock()

    def encode_frames(
        self,
        frames: Frames,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embeddings (frames, dim), float32, rows of unit length, in the given order.

        What frames become is held for a few batches at a time, however many frames there are.

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
        embed = self._in_workers if self._kind == "cpu" else self._in_turn
        with ThreadPoolExecutor(self._workers) as pool:
            for done in embed(frames, rows, pool):
                if progress:
                    progress(done)
        check_finite(rows, lambda i: f"frames[{i}]")
        return rows

    def _in_workers(
        self, frames: Frames, rows: npt.NDArray[np.float32], pool: Executor
    ) -> Iterator[int]:
        """Fill `rows`, each worker with batches of its own; how many rows of each."""

        def run(start: int) -> int:
            batch, filling = self._begin(frames, start, map)
            return self._embed(batch, filling, rows[start:])

        return pool.map(run, range(0, len(frames), self._batch_frames))

    def _in_turn(
        self, frames: Frames, rows: npt.NDArray[np.float32], pool: Executor
    ) -> Iterator[int]:
        """The same for a GPU: all workers prepare one batch, and the next while it runs."""
        starts = range(0, len(frames), self._batch_frames)
        following = self._begin(frames, 0, pool.map)
        for start in starts:
            batch, filling = following
            if start + self._batch_frames < len(frames):
                following = self._begin(frames, start + self._batch_frames, pool.map)
            yield self._embed(batch, filling, rows[start:])

    def _begin(
        self, frames: Frames, start: int, each: Callable[..., Iterator[None]]
    ) -> tuple[npt.NDArray[np.uint8], Iterator[None]]:
        """A batch, and what fills it while it is gone through."""
        chosen = frames[start : start + self._batch_frames]
        batch = self._device.staging((len(chosen), *self._prepare.crop, 3), np.uint8)

        def fill(i: int) -> None:
            batch[i] = self._prepare(chosen[i])

        return batch, each(fill, range(len(chosen)))

    def _embed(
        self,
        batch: npt.NDArray[np.uint8],
        filling: Iterator[None],
        rows: npt.NDArray[np.float32],
    ) -> int:
        for _ in filling:
            pass
        with self._turn:
            rows[: len(batch)] = self._image(frames=batch)["embeddings"]
        return len(batch)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings (texts, dim), float32, rows of unit length, in the given order.

        What is over the model's length (77 tokens for CLIP, 64 for SigLIP) is cut off.

        Raises:
            GranAlignError: there is no text, something is not a string, or an embedding is not
                finite.
        """
        unique, row_of = distinct(texts)
        if not unique:
            raise GranAlignError("texts: got none, expected at least one")
        tokens = tokenise(self._tokenizer, unique)
        rows = np.empty((len(unique), self.dim), np.float32)

        def run(batch: npt.NDArray[np.int64]) -> None:
            ids = np.array([tokens[i] for i in batch], np.int32)
            with self._turn:
                rows[batch] = self._text(input_ids=ids)["embeddings"]

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(run, equal_length_batches(tokens, self._batch_tokens)))
        check_finite(rows, lambda i: repr(unique[i][:80]))
        return rows[row_of]


def _preprocessing(manifest: FrameEncoderManifest, folder: Path) -> Preprocessing:
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest.preprocessing.items()
    }
    try:
        return Preprocessing(**settings)
    except TypeError as error:
        raise GranAlignError(
            f"{folder / 'manifest.json'}: unusable preprocessing ({error}); export the model again"
        ) from None
