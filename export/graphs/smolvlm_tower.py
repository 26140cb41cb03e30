"""The vision tower of SmolVLM2 as an ONNX graph: the layers of SigLIP, pixel shuffle, a projection.

An image is a square of the size that the tower has positions for. So the position of each patch is
a row of the table, in order. (transformers computes it from fractions of the image, which for a
whole image of this size are the same rows.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from granalign_fast.export.sources.families.smolvlm import PROJECTION, SmolVision
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.models.graph_contract import (
    FRAMES,
    IMAGE_EMBEDS,
    PIXEL_VALUES,
    VISION_GRAPH,
)

from .clip_layers import State
from .clip_shapes import Float64
from .clip_towers import ImageGraph
from .tensor_file import GraphTensors


class SmolVlmVisionGraph(ImageGraph):
    """The vision tower's graph; the graphs of both inputs share one store of weights.

    Args:
        source: the model.
        tensors: the store. Weights that it holds already are not written again.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``, in which the tower has 8 bits.
        graph: `VISION_GRAPH`, which takes `FRAMES` and normalises them; or `PATCHES_GRAPH`, which
            takes `PIXEL_VALUES`, (batch, 3, side, side), as transformers' processor computes them.
    """

    def __init__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, graph: str
    ) -> None:
        vision: SmolVision = source.vision
        super().__init__(
            *("siglip", vision.image, source.checkpoint, tensors),
            precision="int8" if precision == "int4" else precision,
            prefix="visual",
        )
        self.merge, self.frames = vision.merge, graph == VISION_GRAPH

    def model(self) -> Any:
        """Return the `onnx.ModelProto`, whose large tensors are in the store's file."""
        side, out = self.image.side, self.image.out
        # Frames or pixels to patches, and the layers over them.
        x = self._embed(self._patches(FRAMES)) if self.frames else self._embed_pixels()
        x = self._layers(x)
        # Patches to tokens, and their projection; the last norm is folded into it.
        y = self._shuffle(x.normed)
        joined, norm = self.merge**2, f"{self.prefix}.post_layernorm"
        self._products(y, norm, [PROJECTION], out, joined=joined)
        self.nodes[-1].output[0] = IMAGE_EMBEDS
        pixels = self._value(PIXEL_VALUES, np.float32, "batch", 3, side, side)
        frames = self._value(FRAMES, np.uint8, "batch", side, side, 3)
        tokens = (self.image.grid // self.merge) ** 2
        output = self._value(IMAGE_EMBEDS, self.dtype, "batch", tokens, out)
        return self._complete(frames if self.frames else pixels, output)

    def _embed_pixels(self) -> State:
        """Embed the pixels of transformers' processor, patch by patch."""
        patch, grid, hidden = self.image.patch, self.image.grid, self.shape.hidden
        edge, name = patch * grid, f"{self.prefix}.embeddings.patch_embedding"
        x = PIXEL_VALUES if self.dtype == np.float32 else self._cast(PIXEL_VALUES, self.dtype)
        # Cut off pixels beyond the last whole patch.
        if edge < self.image.side:
            bounds = [self._constant(f"cut.{bound}", [bound, bound]) for bound in (0, edge)]
            x = self._op("Slice", x, *bounds, self._constant("cut.pixels", [2, 3]))
        # Sort the pixels of each patch as the kernel does: by colour, row and column.
        cut = self._constant("pixels.cut", [0, 3, grid, patch, grid, patch])
        x = self._op("Reshape", x, cut)
        x = self._op("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
        rows = self._constant("pixels.patches", [0, self.patches, 3 * patch**2])
        x = self._op("Reshape", x, rows)

        def kernel() -> Float64:
            return (
                self._read_float64(f"{name}.weight", hidden, 3, patch, patch).reshape(hidden, -1).T
            )

        def table() -> Float64:
            positions = f"{self.prefix}.embeddings.position_embedding.weight"
            rows = self._read_float64(positions, self.patches, hidden)
            return rows + self._read_float64(f"{name}.bias", hidden)

        x = self._op("MatMul", x, self._stored(f"{name}.weight.pixels", kernel))
        return self._add_and_norm(x, self._stored("positions.pixels", table))

    def _shuffle(self, x: str) -> str:
        """Join the patches of each square of `merge` x `merge`, row by row, to one row."""
        size, cells = self.merge * self.shape.hidden, self.image.grid // self.merge
        cut = self._constant("shuffle.cut", [-1, cells, self.merge, cells, size])
        x = self._op("Reshape", x, cut)
        x = self._op("Transpose", x, perm=[0, 1, 3, 2, 4])
        rows = self._constant("shuffle.rows", [-1, cells**2, self.merge * size])
        return self._op("Reshape", x, rows)
