"""Frames and token ids in, greedy token ids out: a vision-language model on ONNX Runtime.

A frame is looked at once: the keys and values of the tokens up to it are a `Prefix`, behind which
any number of prompts cost only their own text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.array_device import Array
from granalign_fast.runtime.session import Session
from granalign_fast.types import Image, check_frames
from granalign_fast.video.images import resize

from .decoder import Cache
from .language_model import CausalLM
from .manifest import LlmManifest, VlmManifest
from .prefix import Prefix


class VisionLanguageModel(CausalLM):
    """A vision-language model that `export_vlm` wrote; without frames it is a `CausalLM`.

    Args and errors are those of `CausalLM`.
    """

    _manifest_kind: ClassVar[type[LlmManifest]] = VlmManifest
    manifest: VlmManifest

    def _open(self, session: Callable[[str], Session]) -> None:
        self._vision = session("vision.onnx")
        self._without: dict[int, dict[str, Array]] = {}
        if not self._static:  # whose graph has the table of embeddings itself
            self._embedding = session("embedding.onnx")

    def prefill_frames(
        self, frames: npt.NDArray[np.uint8] | Sequence[Image], token_ids: Sequence[int]
    ) -> Prefix:
        """Compute the beginning of prompts about frames, as one batch.

        Args:
            frames: uint8 RGB (frames, height, width, 3), or a sequence of (height, width, 3) of any
                sizes; they are resized to the model's `image_size`, whatever their shape.
            token_ids: the beginning, in which one `image_token` stands for the frame.

        Returns:
            A prefix with a row for each frame.

        Raises:
            GranAlignError: there is no frame, something is not one, there is not just one
                `image_token`, an unknown token, or the model's context is too short.
        """
        check_frames(frames)
        ids, image = list(token_ids), self.manifest.image_token
        if ids.count(image) != 1:
            raise GranAlignError(
                f"token_ids: got {ids.count(image)} times the image token {image}, expected it "
                f"once, in the place of the frame"
            )
        self._check([ids], None, self.manifest.image_tokens, "token_ids")
        image_index = ids.index(image)
        positions = self._positions(ids)

        def work() -> Cache:
            put = self.device.put
            with self.device.activate():
                seen = self._see(frames)
                count, more = len(seen), positions.shape[1]
                rows = self._decoder.begin(count, None, more, 0, self._feed)
            with self.device.guarded():
                position_ids = put(np.repeat(positions[:, None], count, axis=1))
                rows.extend_with(position_ids, **self._framed(ids, image_index, seen))
                return rows.cache()

        return self._prefix(self._decoder.alone(work), int(positions.max()) + 1)

    def position_after(self, token_ids: Sequence[int]) -> int:
        """The position of the token that follows such a beginning."""
        return int(self._positions(token_ids).max()) + 1

    def _positions(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        image_index = list(ids).index(self.manifest.image_token)
        return frame_positions(image_index, self.manifest.image_grid, len(ids) - image_index - 1)

    def _see(self, frames: Sequence[Image] | npt.NDArray[np.uint8]) -> Array:
        """Embeddings of the frames' tokens, (frames, image_tokens, hidden)."""
        height, width = self.manifest.image_size
        images = [resize(frame, height, width, self.manifest.resample) for frame in frames]
        return self._vision(frames=self.device.put(np.stack(images)))["image_embeds"]

    def _framed(self, ids: list[int], image_index: int, seen: Array) -> dict[str, Array]:
        """What the decoder takes for token ids with each frame in this image_index."""
        xp, put, count = self.device.xp, self.device.put, len(seen)
        if self._static:
            whole = (
                ids[:image_index] + ids[image_index : image_index + 1] * self.manifest.image_tokens
            )
            tokens = np.tile(np.array(whole + ids[image_index + 1 :], np.int64), (count, 1))
            at = put(np.full(count, image_index))
            return {"input_ids": put(tokens), "image_embeds": seen, "image_at": at}
        text = self._embed(put(np.array([ids], np.int64)))
        before, after = (
            xp.broadcast_to(part, (count, *part.shape[1:]))
            for part in (text[:, :image_index], text[:, image_index + 1 :])
        )
        return {"inputs_embeds": xp.concatenate([before, seen, after], axis=1)}

    def _embed(self, ids: Array) -> Array:
        """Embeddings of text tokens, (rows, tokens, hidden)."""
        return self._embedding(input_ids=ids)["inputs_embeds"]

    def _feed(self, ids: Array, positions: Array) -> dict[str, Array]:
        # Text has the same position in time, height and width.
        position_ids = self.device.xp.repeat(positions[None], 3, axis=0)
        if self._static:
            return {"input_ids": ids, "position_ids": position_ids, **self._no_frames(len(ids))}
        return {"inputs_embeds": self._embed(ids), "position_ids": position_ids}

    def _no_frames(self, rows: int) -> dict[str, Array]:
        """What stands for frames where there are none; the same arrays for every step."""
        if rows not in self._without:
            xp, manifest = self.device.xp, self.manifest
            self._without[rows] = {
                "image_embeds": xp.empty((rows, 0, manifest.hidden), manifest.cache_dtype),
                "image_at": xp.zeros(rows, np.int64),
            }
        return self._without[rows]


def frame_positions(before: int, grid: Sequence[int], after: int) -> npt.NDArray[np.int64]:
    """Positions in time, height and width, (3, tokens), of text, a frame and text again.

    The frame's tokens share their time and count rows and columns from there; the text after it
    goes on behind the greatest of these (Qwen2-VL, arXiv 2409.12191, section 2.1: M-RoPE).

    >>> frame_positions(1, (2, 3), 1).tolist()
    [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]
    """
    rows, columns = grid
    image = np.stack(
        [
            np.zeros(rows * columns, np.int64),
            np.repeat(np.arange(rows), columns),
            np.tile(np.arange(columns), rows),
        ]
    )
    parts = (
        np.tile(np.arange(before), (3, 1)),
        before + image,
        before + max(rows, columns) + np.tile(np.arange(after), (3, 1)),
    )
    return np.concatenate(parts, axis=1)
