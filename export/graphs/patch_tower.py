"""What the graphs of Qwen's vision towers share: patches of frames or pixels, rotary positions.

A batch holds frames of one fixed size, so everything that depends on the size alone is a constant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import HEAD, VISION_THETA
from granalign_fast.models.graph_contract import (
    CLIPS_GRAPH,
    FRAMES,
    PATCHES_GRAPH,
    PIXEL_VALUES,
)

from .builder import CheckpointGraph
from .tensor_file import GraphTensors, converted

Order = npt.NDArray[np.int64]
"""Indices of tokens."""


class State(NamedTuple):
    """The residual and the last product, not added yet, with the name of the product's bias."""

    x: str
    update: str = ""
    bias: str = ""


class PatchTower(CheckpointGraph):
    """A vision tower that takes patches; the graphs of all inputs share one store of weights.

    Args:
        source: the model, with its image size.
        tensors: the store. Weights that it holds already are not written again.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``.
        graph: `VISION_GRAPH` takes `FRAMES`, cuts them into patches and normalises them.
            `CLIPS_GRAPH` takes as many frames as a patch spans. `PATCHES_GRAPH` takes
            `PIXEL_VALUES`.
    """

    def __init__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, graph: str
    ) -> None:
        dtype = np.float16 if precision == "fp16" else np.float32
        super().__init__(source.checkpoint, tensors, dtype)
        self.shape, self.pixels = source.vision, source.pixels
        self.image_size, self.grid = source.image_size, source.grid
        self.graph = graph
        self.fused = precision == "fp16"
        self.quantised = precision == "int4"
        self.unit = self.shape.merge**2  # patches of a token
        self.tokens = self.grid[0] * self.grid[1]
        self.patches = self.tokens * self.unit
        self.order = np.arange(self.tokens)
        """The row-by-row index of each token, in the order in which the layers have them."""

    def _embed(self) -> str:
        """Embed the patches of the graph's input, in the order of the layers; without a bias."""
        if self.graph == PATCHES_GRAPH:
            return self._embed_pixels(PIXEL_VALUES)
        if self.graph == CLIPS_GRAPH:
            return self._embed_clips()
        return self._embed_frames()

    def _input(self) -> Any:
        if self.graph == CLIPS_GRAPH:
            return self._value(FRAMES, np.uint8, "batch", self.shape.temporal, *self.image_size, 3)
        if self.graph != PATCHES_GRAPH:
            return self._value(FRAMES, np.uint8, "batch", *self.image_size, 3)
        values = 3 * self.shape.temporal * self.shape.patch**2
        return self._value(PIXEL_VALUES, np.float32, "batch", self.patches, values)

    def _embed_frames(self) -> str:
        """Embed the patches of frames of bytes."""
        patch, merge = self.shape.patch, self.shape.merge
        (rows, columns), line = self.grid, patch * 3
        # Sort bytes by token, patch and line of the patch; moving bytes is cheap.
        cut = self._constant("frames.cut", [0, rows, merge, patch, columns, merge, line])
        x = self._op("Reshape", FRAMES, cut)
        x = self._op("Transpose", x, perm=[0, 1, 4, 2, 5, 3, 6])
        x = self._sorted(x, patch * line)
        spread = [np.tile(levels, patch**2) for levels in (self.pixels.mean, self.pixels.std)]
        x = self._normalised(x, *spread)
        # One product with the kernel.
        weight = "visual.patch_embed.frames"
        if weight not in self.tensors:
            # The source repeats a single frame in time, so the kernel is summed over time. Channels
            # come last, as in bytes.
            array = self._patch_weight().sum(axis=2).transpose(2, 3, 1, 0)
            self._add_weight(weight, array.reshape(patch * line, -1))
        return self._op("MatMul", self._in_dtype(x), self._use(weight))

    def _embed_clips(self) -> str:
        """Embed the patches of clips of bytes: each patch spans all frames of its clip."""
        patch, merge, span = self.shape.patch, self.shape.merge, self.shape.temporal
        rows, columns = self.grid
        # Sort bytes by token, patch, colour, frame and line of the patch, as in `PIXEL_VALUES`.
        cut = [0, span, rows, merge, patch, columns, merge, patch * 3]
        x = self._op("Reshape", FRAMES, self._constant("clips.cut", cut))
        x = self._op("Transpose", x, perm=[0, 2, 5, 3, 6, 1, 4, 7])
        x = self._op("Reshape", x, self._constant("clips.colour", [0, self.patches, -1, 3]))
        x = self._op("Transpose", x, perm=[0, 1, 3, 2])
        values = 3 * span * patch**2
        x = self._op("Reshape", x, self._constant("clips.patch", [0, self.patches, values]))
        levels = self.pixels.mean, self.pixels.std
        spread = [np.repeat(level, span * patch**2) for level in levels]
        return self._embed_pixels(self._normalised(x, *spread, prefix="clips."))

    def _normalised(
        self, x: str, mean: npt.ArrayLike, std: npt.ArrayLike, *, prefix: str = ""
    ) -> str:
        """Turn bytes into pixels, by the image processor's arithmetic in float32."""
        rescale = self._float("rescale", self.pixels.rescale)
        x = self._op("Mul", self._cast(x, np.float32), rescale)
        x = self._op("Sub", x, self._float(f"{prefix}mean", mean))
        return self._op("Div", x, self._float(f"{prefix}std", std))

    def _embed_pixels(self, pixels: str) -> str:
        """Embed the patches of transformers' processor."""
        values = 3 * self.shape.temporal * self.shape.patch**2
        x = self._sorted(self._in_dtype(pixels), values)
        weight = "visual.patch_embed.patches"
        if weight not in self.tensors:
            self._add_weight(weight, self._patch_weight().reshape(-1, values).T)
        return self._op("MatMul", x, self._use(weight))

    def _sorted(self, x: str, values: int) -> str:
        """Return the patches (batch, patches, values) of sorted bytes or pixels."""
        return self._op("Reshape", x, self._constant(f"patch.{values}", [0, self.patches, values]))

    def _patch_weight(self) -> Float32:
        """Read the convolution's kernel (hidden, channels, frames, height, width).

        Its strides equal its size, so it is one product for each patch.
        """
        weight = self.checkpoint.read("visual.patch_embed.proj.weight")
        return weight.reshape(-1, 3, self.shape.temporal, self.shape.patch, self.shape.patch)

    def _add_weight(self, name: str, array: Float32) -> None:
        self.tensors.add(name, converted(name, array, self.dtype))

    def _float(self, name: str, value: npt.ArrayLike) -> str:
        return self._constant(f"pixels.{name}", value, np.float32)

    def _in_dtype(self, x: str) -> str:
        return x if self.dtype == np.float32 else self._cast(x, self.dtype)

    def _rotary_positions(self, x: str) -> None:
        """Make cosine and sine of every patch's position, (batch, patches, head / 2)."""
        angles = self._angles()
        batch = self._op("Shape", x, end=1)
        rest = self._constant("rotary.rest", angles.shape)
        shape = self._op("Concat", batch, rest, axis=0)
        cosine = self._constant("cosine", np.cos(angles)[None], self.dtype)
        sine = self._constant("sine", np.sin(angles)[None], self.dtype)
        self.cosine, self.sine = self._op("Expand", cosine, shape), self._op("Expand", sine, shape)

    def _angles(self) -> Float32:
        """Compute the rotary angles (patches, head / 2).

        Half of a head's pairs follow the patch's row, half follow its column.
        """
        quarter, merge = self.shape.hidden // self.shape.heads // 4, self.shape.merge
        exponents = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
        frequencies = (1 / np.float32(VISION_THETA) ** exponents).astype(np.float32)
        rows, columns = np.divmod(self.order, self.grid[1])
        down, right = np.divmod(np.arange(self.unit), merge)
        positions = [
            (rows[:, None] * merge + down).reshape(-1, 1),
            (columns[:, None] * merge + right).reshape(-1, 1),
        ]
        angles = [axis.astype(np.float32) * frequencies for axis in positions]
        return np.concatenate(angles, axis=1, dtype=np.float32)

    def _rotated(self, x: str) -> str:
        return self._op("RotaryEmbedding", x, self.cosine, self.sine, num_heads=self.shape.heads)

    def _product(self, x: str, weight: str) -> str:
        if not self.quantised:
            return super()._product(x, weight)
        return self._rounded_product(x, *self._rounded_weight(weight), HEAD)

    def _linear(self, x: str, name: str) -> str:
        # Every product here has a bias; a missing one is a damaged file, and reading it raises.
        return self._op("Add", self._product(x, f"{name}.weight"), self._tensor(f"{name}.bias"))
