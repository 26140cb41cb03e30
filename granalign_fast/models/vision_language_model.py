"""A vision-language model on ONNX Runtime: frames and token ids in, greedily decoded ids out.

Each frame is processed once. The keys and values of the tokens up to and including it are a
`Prefix`, behind which any number of prompts cost only their own text.
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
from .graph_contract import (
    EMBEDDING_GRAPH,
    IMAGE_AT,
    IMAGE_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    POSITION_IDS,
    VISION_GRAPH,
)
from .language_model import CausalLM
from .manifest import LlmManifest, VlmManifest
from .prefix import Prefix


class VisionLanguageModel(CausalLM):
    """A vision-language model that `export_vlm` wrote. Without frames it works as a `CausalLM`.

    Arguments and errors are those of `CausalLM`.
    """

    _manifest_kind: ClassVar[type[LlmManifest]] = VlmManifest
    manifest: VlmManifest

    def _open_input_graphs(self, open_graph: Callable[[str], Session]) -> None:
        self._vision = open_graph(VISION_GRAPH)
        self._empty_images: dict[int, dict[str, Array]] = {}  # by number of rows
        if not self._static:  # the static graph contains the embedding table
            self._embedding = open_graph(EMBEDDING_GRAPH)

    def prefill_frames(
        self, frames: npt.NDArray[np.uint8] | Sequence[Image], token_ids: Sequence[int]
    ) -> Prefix:
        """Compute the keys and values of the beginning of prompts about frames, as one batch.

        Args:
            frames: uint8 RGB (frames, height, width, 3), or a sequence of (height, width, 3) of any
                sizes. They are resized to the model's `image_size`, whatever their shape.
            token_ids: the beginning, in which one `image_token` stands for the frame.

        Returns:
            A prefix with a row for each frame.

        Raises:
            GranAlignError: there is no frame, a frame has another shape or type, the tokens do not
                hold exactly one `image_token`, a token is unknown, or the context is too short.
        """
        check_frames(frames)
        ids, image = list(token_ids), self.manifest.image_token
        if ids.count(image) != 1:
            raise GranAlignError(
                f"token_ids: got {ids.count(image)} times the image token {image}, expected it "
                f"once, at the position of the frame"
            )
        self._check([ids], None, self.manifest.image_tokens, "token_ids")
        image_index = ids.index(image)
        positions = self._positions(ids)

        def compute() -> Cache:
            put = self.device.put
            # 1. Frames to embeddings, with the vision tower.
            with self.device.activate():
                embeds = self._embed_frames(frames)
                count, tokens = len(embeds), positions.shape[1]
                batch = self._decoder.begin(count, None, tokens, 0, self._feed)
            # 2. Text and embeddings to keys and values, with the decoder: one row a frame.
            with self.device.guarded():
                position_ids = put(np.repeat(positions[:, None], count, axis=1))
                batch.extend_with(position_ids, **self._frame_inputs(ids, image_index, embeds))
                return batch.cache()

        cache = self._decoder.execute(compute)
        self._release()
        return self._prefix(cache, int(positions.max()) + 1)

    def position_after(self, token_ids: Sequence[int]) -> int:
        """Return the position of the token that follows the `token_ids` of `prefill_frames`."""
        return int(self._positions(token_ids).max()) + 1

    def _positions(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the positions (3, tokens) of token ids in which one stands for a frame."""
        image_index = list(ids).index(self.manifest.image_token)
        return frame_positions(image_index, self.manifest.image_grid, len(ids) - image_index - 1)

    def _embed_frames(self, frames: Sequence[Image] | npt.NDArray[np.uint8]) -> Array:
        """Return the embeddings of the frames' tokens, (frames, image_tokens, hidden)."""
        height, width = self.manifest.image_size
        images = [resize(frame, height, width, self.manifest.resample) for frame in frames]
        return self._vision(frames=self.device.put(np.stack(images)))[IMAGE_EMBEDS]

    def _frame_inputs(self, ids: list[int], image_index: int, embeds: Array) -> dict[str, Array]:
        """Return the decoder's inputs for a text about frames, one row for each frame.

        Args:
            ids: the text.
            image_index: the index in `ids` of the token that stands for the frame.
            embeds: from `_embed_frames`.
        """
        xp, put, count = self.device.xp, self.device.put, len(embeds)
        before, after = ids[:image_index], ids[image_index + 1 :]
        # The static graph embeds token ids itself, and writes `embeds` over the image tokens.
        if self._static:
            image = [ids[image_index]] * self.manifest.image_tokens
            tokens = np.tile(np.array(before + image + after, np.int64), (count, 1))
            index = put(np.full(count, image_index))
            return {INPUT_IDS: put(tokens), IMAGE_EMBEDS: embeds, IMAGE_AT: index}
        # The other graph takes embeddings: of the text before, the frame, and the text after.
        text = self._embed_tokens(put(np.array([ids], np.int64)))
        text_before, text_after = (
            xp.broadcast_to(part, (count, *part.shape[1:]))
            for part in (text[:, :image_index], text[:, image_index + 1 :])
        )
        return {INPUTS_EMBEDS: xp.concatenate([text_before, embeds, text_after], axis=1)}

    def _embed_tokens(self, ids: Array) -> Array:
        """Return the embeddings of text tokens, (rows, tokens, hidden)."""
        return self._embedding(input_ids=ids)[INPUTS_EMBEDS]

    def _feed(self, ids: Array, positions: Array) -> dict[str, Array]:
        # A text token has the same position in time, height and width.
        position_ids = self.device.xp.repeat(positions[None], 3, axis=0)
        if self._static:
            return {INPUT_IDS: ids, POSITION_IDS: position_ids, **self._no_image(len(ids))}
        return {INPUTS_EMBEDS: self._embed_tokens(ids), POSITION_IDS: position_ids}

    def _no_image(self, rows: int) -> dict[str, Array]:
        """Return the static graph's image inputs for a text without an image.

        Each call with the same number of rows returns the same arrays, so a CUDA graph can hold
        their addresses.
        """
        if rows not in self._empty_images:
            xp, manifest = self.device.xp, self.manifest
            self._empty_images[rows] = {
                IMAGE_EMBEDS: xp.empty((rows, 0, manifest.hidden), manifest.cache_dtype),
                IMAGE_AT: xp.zeros(rows, np.int64),
            }
        return self._empty_images[rows]


def frame_positions(before: int, grid: Sequence[int], after: int) -> npt.NDArray[np.int64]:
    """Return the positions in time, height and width, (3, tokens), of text, a frame and text.

    All tokens of the frame have the same time, and count rows and columns from it. The text behind
    the frame continues after the greatest of these (M-RoPE: Qwen2-VL, arXiv 2409.12191, section
    2.1).

    Args:
        before: tokens of the text before the frame.
        grid: rows and columns of the frame's tokens.
        after: tokens of the text behind the frame.

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
