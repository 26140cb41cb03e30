"""A vision-language model on ONNX Runtime: frames and token ids in, greedily decoded ids out.

Each clip, of one frame or several, is processed once. The keys and values of the tokens up to and
including it are a `Prefix`, behind which any number of prompts cost only their own text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.array_device import Array
from granalign_fast.runtime.session import Session
from granalign_fast.types import Image, check_frames
from granalign_fast.video.images import cut_tiles, resize

from .decoder import Cache
from .graph_contract import (
    CLIPS_GRAPH,
    DEEPSTACK,
    EMBEDDING_GRAPH,
    FRAMES,
    IMAGE_AT,
    IMAGE_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    POSITION_IDS,
    VISION_GRAPH,
)
from .image_layout import Expanded, ImageLayout
from .language_model import CausalLM
from .manifest import LlmManifest, VlmManifest
from .prefix import Prefix

CPU_PIXELS = 1 << 18
"""Pixels of images that a vision tower takes in one run on a CPU: those of 512 x 512. A run of more
is no faster, and needs more memory for the activations."""


class VisionLanguageModel(CausalLM):
    """A vision-language model that `export_vlm` wrote. Without frames it works as a `CausalLM`.

    Arguments and errors are those of `CausalLM`.
    """

    _manifest_kind: ClassVar[type[LlmManifest]] = VlmManifest
    manifest: VlmManifest

    def _open_input_graphs(self, open_graph: Callable[[str], Session]) -> None:
        self._vision = open_graph(VISION_GRAPH)
        if (DEEPSTACK in self._vision.outputs) != bool(self.manifest.deepstack):
            raise GranAlignError(
                f"{self._folder / VISION_GRAPH}: got the outputs {list(self._vision.outputs)} with "
                f"deepstack {self.manifest.deepstack} in manifest.json, expected both or neither; "
                f"export the model again"
            )
        self._open_graph = open_graph
        self._clips: Session | None = None
        self._opening = threading.Lock()
        self._axes = self.manifest.position_axes
        self._no_images: dict[int, dict[str, Array]] = {}  # by number of rows
        if not self._static:  # the static graph contains the embedding table
            self._embedding = open_graph(EMBEDDING_GRAPH)

    def _clip_tower(self) -> Session:
        """Return the vision tower of clips, which is opened when the first is seen."""
        with self._opening:  # threads that come together would load the weights several times
            if self._clips is None:
                self._clips = self._open_graph(CLIPS_GRAPH)
            return self._clips

    def layout(self, frames: int = 1, seconds: float = 0.0) -> ImageLayout:
        """Return how a prompt holds a clip.

        Args:
            frames: of the clip.
            seconds: from a frame of the clip to the next.

        Raises:
            GranAlignError: the model takes no clips of that many frames.
        """
        return self.manifest.layout(frames).timed(seconds, self.tokenizer.encode)

    def prefill_frames(
        self, frames: npt.NDArray[np.uint8] | Sequence[Image], token_ids: Sequence[int]
    ) -> Prefix:
        """Compute the keys and values of the beginning of prompts about frames, as one batch.

        Args:
            frames: uint8 RGB (frames, height, width, 3), or a sequence of (height, width, 3) of any
                sizes. They are resized to the model's `image_size`, whatever their shape.
            token_ids: the beginning, in which the layout's placeholder stands for the frame.

        Returns:
            A prefix with a row for each frame.

        Raises:
            GranAlignError: there is no frame, a frame has another shape or type, the tokens do not
                hold exactly one placeholder, a token is unknown, or the context is too short.
        """
        check_frames(frames)
        return self._prefill([[frame] for frame in frames], token_ids, self.layout())

    def prefill_clips(
        self,
        clips: npt.NDArray[np.uint8] | Sequence[Sequence[Image]],
        token_ids: Sequence[int],
        *,
        seconds: float = 0.0,
    ) -> Prefix:
        """Compute the keys and values of the beginning of prompts about clips, as one batch.

        Args:
            clips: uint8 RGB (clips, frames, height, width, 3), or a sequence of clips of equally
                many frames (height, width, 3) of any sizes, which are resized.
            token_ids: the beginning, with the placeholder of `layout`.
            seconds: from a frame of a clip to the next. Times count from a clip's first frame.

        Returns:
            A prefix with a row for each clip.

        Raises:
            GranAlignError: there is no clip, the model takes no clips of that many frames, or as
                `prefill_frames`.
        """
        if not len(clips):
            raise GranAlignError("clips: got none, expected at least one")
        for clip in clips:
            check_frames(clip)
        counts = sorted({len(clip) for clip in clips})
        if len(counts) > 1:
            raise GranAlignError(
                f"clips: got {counts[0]} and {counts[-1]} frames, expected equally many in every "
                f"clip"
            )
        return self._prefill(
            [list(clip) for clip in clips], token_ids, self.layout(counts[0], seconds)
        )

    def _prefill(
        self, clips: Sequence[Sequence[Image]], token_ids: Sequence[int], layout: ImageLayout
    ) -> Prefix:
        """Compute a prefix with a row for each clip; frames are checked."""
        self._check([list(token_ids)], None, 0, "token_ids")
        prompt = layout.expand(token_ids)
        self._check([prompt.ids], None, 1, "token_ids")

        def compute() -> Cache:
            put = self.device.put
            # 1. Frames to embeddings, with the vision tower.
            with self.device.activate():
                images = self._embed_clips(clips, layout)
                count, tokens = len(clips), len(prompt.ids)
                batch = self._decoder.begin(count, None, tokens, 0, self._feed)
            # 2. Text and embeddings to keys and values, with the decoder: one row a clip.
            with self.device.guarded():
                for part, inputs in self._clip_inputs(prompt, images):
                    positions = self._position_rows(prompt.positions[:, part], count)
                    batch.extend_with(put(positions), **inputs)
                return batch.cache()

        cache = self._decoder.execute(compute)
        self._release()
        return self._prefix(cache, prompt.next_position)

    def position_after(self, token_ids: Sequence[int]) -> int:
        """Return the position of the token that follows the `token_ids` of `prefill_frames`."""
        return self.layout().expand(token_ids).next_position

    def _embed_clips(
        self, clips: Sequence[Sequence[Image]], layout: ImageLayout
    ) -> dict[str, Array]:
        """Return `IMAGE_EMBEDS` (clips, visual tokens, hidden), and `DEEPSTACK` if there is any."""
        if layout.tiles is not None:
            outputs = self._run_tower(self._vision, self._tiled(clips, layout.tiles))
        elif layout.span == 1:
            outputs = self._embed_frames([frame for clip in clips for frame in clip])
        else:
            missing = layout.images * layout.span - layout.frames
            frames = self._resized([f for clip in clips for f in [*clip, *[clip[-1]] * missing]])
            spans = frames.reshape(-1, layout.span, *frames.shape[1:])
            outputs = self._run_tower(self._clip_tower(), spans)
        images = {name: by_clip(array, len(clips)) for name, array in outputs.items()}
        self._check_images(images, layout.visual_tokens)
        return images

    def _check_images(self, images: dict[str, Array], tokens: int) -> None:
        """Raise unless the tower gives as many visual tokens for a clip as its layout has."""
        deepstack, hidden = self.manifest.deepstack, self.manifest.hidden
        expected: dict[str, tuple[int, ...]] = {IMAGE_EMBEDS: (tokens, hidden)}
        if deepstack:
            expected[DEEPSTACK] = (deepstack, tokens, hidden)
        got = {name: tuple(array.shape[1:]) for name, array in images.items()}
        if got != expected:
            raise GranAlignError(
                f"{self._folder}: got the outputs {got} of the vision tower for a clip, expected "
                f"{expected} as manifest.json says; export the model again"
            )

    def _embed_frames(self, frames: Sequence[Image] | npt.NDArray[np.uint8]) -> dict[str, Array]:
        """Return the outputs of the vision tower for single frames; see `graph_contract`."""
        return self._run_tower(self._vision, self._resized(frames))

    def _run_tower(self, tower: Session, images: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """Run a vision graph on images (images, ..., height, width, 3), on a CPU some at a time."""
        pixels = int(np.prod(images.shape[1:-1]))
        step = len(images) if self.device.index is not None else max(1, CPU_PIXELS // pixels)
        parts = [
            tower(**{FRAMES: self.device.put(images[start : start + step])})
            for start in range(0, len(images), step)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _resized(self, frames: Sequence[Image] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        height, width = self.manifest.image_size
        return np.stack([resize(frame, height, width, self.manifest.resample) for frame in frames])

    def _tiled(
        self, clips: Sequence[Sequence[Image]], tiles: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        """Return the tiles of the frame of each clip, and the whole frame behind them."""
        height, width = self.manifest.image_size
        cut = (
            cut_tiles(frame, tiles, (height, width), self.manifest.resample) for (frame,) in clips
        )
        return np.stack([image for images in cut for image in images])

    def _clip_inputs(
        self, prompt: Expanded, images: dict[str, Array]
    ) -> Iterator[tuple[slice, dict[str, Array]]]:
        """Yield consecutive parts of a prompt and the decoder's inputs for each, one row a clip.

        Args:
            prompt: the text about a clip.
            images: from `_embed_clips`.
        """
        xp, put, embeds = self.device.xp, self.device.put, images[IMAGE_EMBEDS]
        count = len(embeds)
        # The static graph embeds token ids itself, and writes `embeds` over adjacent visual tokens.
        # The other graph takes embeddings, and all tokens at once.
        parts = prompt.parts() if self._static else [slice(0, len(prompt.ids))]
        for part in parts:
            ids = np.array([prompt.ids[part]], np.int64)
            first, last = np.searchsorted(prompt.visual, [part.start, part.stop])
            at, seen = prompt.visual[first:last] - part.start, slice(first, last)
            if self._static:
                inputs = {
                    INPUT_IDS: put(np.tile(ids, (count, 1))),
                    IMAGE_EMBEDS: xp.ascontiguousarray(embeds[:, seen]),
                    IMAGE_AT: put(np.full(count, at[0])),
                }
            else:
                rows = xp.repeat(self._embed_tokens(put(ids)), count, axis=0)
                rows[:, put(at)] = embeds
                inputs = {INPUTS_EMBEDS: rows}
            if DEEPSTACK in images:
                layers, hidden = self.manifest.deepstack, self.manifest.hidden
                features = xp.zeros((count, layers, ids.size, hidden), embeds.dtype)
                features[:, :, put(at)] = images[DEEPSTACK][:, :, seen]
                inputs[DEEPSTACK] = features
            yield part, inputs

    def _embed_tokens(self, ids: Array) -> Array:
        """Return the embeddings of text tokens, (rows, tokens, hidden)."""
        return self._embedding(input_ids=ids)[INPUTS_EMBEDS]

    def _feed(self, ids: Array, positions: Array) -> dict[str, Array]:
        # A text token has the same position in time, height and width.
        if self._axes > 1:
            positions = self.device.xp.repeat(positions[None], self._axes, axis=0)
        inputs = {POSITION_IDS: positions, **self._no_image(len(ids))}
        if self._static:
            return {INPUT_IDS: ids, **inputs}
        return {INPUTS_EMBEDS: self._embed_tokens(ids), **inputs}

    def _no_image(self, rows: int) -> dict[str, Array]:
        """Return the inputs for images of a text without one.

        Each call with the same number of rows returns the same arrays, so a CUDA graph can hold
        their addresses.
        """
        if rows not in self._no_images:
            xp, manifest = self.device.xp, self.manifest
            hidden, dtype = manifest.hidden, manifest.cache_dtype
            inputs: dict[str, Array] = {}
            if self._static:
                inputs[IMAGE_EMBEDS] = xp.empty((rows, 0, hidden), dtype)
                inputs[IMAGE_AT] = xp.zeros(rows, np.int64)
            if manifest.deepstack:
                inputs[DEEPSTACK] = xp.zeros((1, manifest.deepstack, 1, hidden), dtype)
            self._no_images[rows] = inputs
        return self._no_images[rows]

    def _position_rows(self, positions: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
        """Return the positions (axes, tokens) of each of equal rows, as the decoder takes them."""
        repeated = np.repeat(positions[:, None], rows, axis=1)
        return repeated if self._axes > 1 else repeated[0]


def by_clip(array: Array, clips: int) -> Array:
    """Join the outputs of a clip's images, which stand next to each other: (clips, ..., hidden)."""
    images = len(array) // clips
    if images == 1:
        return array
    split = array.reshape(clips, images, *array.shape[1:])
    if array.ndim == 4:  # deepstack: (images, layers, tokens, hidden)
        split = split.swapaxes(1, 2)
        return split.reshape(clips, array.shape[1], -1, array.shape[-1])
    return split.reshape(clips, -1, array.shape[-1])
