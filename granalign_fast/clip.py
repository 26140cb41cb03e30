"""Frames and texts to embeddings of one space, with CLIP or SigLIP: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from .embedding import (
    ExportedEncoder,
    check_finite,
    distinct,
    equal_length_batches,
    tokenise,
)
from .errors import GranAlignError
from .images import Image, check_frames, resize
from .models import ClipManifest

# Frames in one run. On a CPU 4, 8 and 16 frames of ViT-B/32 took equally long, and fewer
# take less memory; on a GPU a run must be worth its launches.
_BATCH_FRAMES = {"cpu": 4}
_GPU_BATCH_FRAMES = 64


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes pixels: resize, crop the centre, rescale, normalise.

    Equal to the Pillow-based ``CLIPImageProcessor`` and ``SiglipImageProcessor`` of transformers
    4.57 in every bit, for frames of any size (tested); their torchvision-based "fast" variants
    differ from both.

    Attributes:
        resize: the length of the shorter edge, in pixels, or height and width.
        crop: height and width of the centre that is kept, within what `resize` gives.
        resample: Pillow's number of the filter, such as 3 for bicubic.
        rescale: factor of the values 0 to 255.
        mean: subtracted from each channel after rescaling.
        std: divides each channel after that.
    """

    resize: tuple[int, ...]
    crop: tuple[int, int]
    resample: int
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, frame: Image) -> npt.NDArray[np.float32]:
        """Pixels (3, height, width) of a frame (any height, any width, 3)."""
        height, width = self._resized(*frame.shape[:2])
        image = resize(frame, height, width, self.resample)
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        kept = image[top : top + self.crop[0], left : left + self.crop[1]]
        return np.stack([self._levels[channel][kept[..., channel]] for channel in range(3)])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        (edge,) = self.resize
        # The longer edge is cut off, not rounded, as in the processor.
        if width <= height:
            return int(edge * height / width), edge
        return edge, int(edge * width / height)

    @cached_property
    def _levels(self) -> npt.NDArray[np.float32]:
        """What each value of each channel becomes, (3, 256), in the processor's own precision."""
        scaled = (np.arange(256, dtype=np.float64) * self.rescale).astype(np.float32)
        mean, std = np.array([self.mean, self.std], np.float32)[..., None]
        levels: npt.NDArray[np.float32] = (scaled - mean) / std
        return levels


class ClipEncoder(ExportedEncoder[ClipManifest]):
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
        manifest = ClipManifest.read(folder)
        self._prepare = _preprocessing(manifest, folder)
        graphs = ["image.onnx", "text.onnx"]
        super().__init__(folder, manifest, graphs, device=device, threads=threads)
        self._image, self._text = self._sessions
        self._batch_frames = _BATCH_FRAMES.get(self._kind, _GPU_BATCH_FRAMES)
        # On a GPU one run at a time, while the other workers prepare frames for the next.
        on_cpu = self._kind == "cpu"
        self._turn: AbstractContextManager[Any] = nullcontext() if on_cpu else Lock()

    def encode_frames(
        self,
        frames: npt.NDArray[np.uint8] | Sequence[Image],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embeddings (frames, dim), float32, rows of unit length, in the given order.

        Pixels are held for a few batches at a time, however many frames there are.

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

        def run(start: int) -> int:
            batch = [self._prepare(frame) for frame in frames[start : start + self._batch_frames]]
            pixels = np.stack(batch)
            with self._turn:
                found = self._image(pixel_values=pixels)["embeddings"]
            rows[start : start + len(batch)] = found
            return len(batch)

        with ThreadPoolExecutor(self._workers) as pool:
            for done in pool.map(run, range(0, len(frames), self._batch_frames)):
                if progress:
                    progress(done)
        check_finite(rows, lambda i: f"frames[{i}]")
        return rows

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


def _preprocessing(manifest: ClipManifest, folder: Path) -> Preprocessing:
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
