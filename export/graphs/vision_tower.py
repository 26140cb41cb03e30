"""The vision tower of Qwen2.5-VL as an ONNX graph, for a batch of frames of one fixed size.

Everything that depends on the size alone is a constant. Most layers attend within windows of the
frame, and the frame's right and lower edges cut windows off. The graph sorts tokens so that windows
of equal size are adjacent, and attends to each size as a batch of its own. So it needs neither mask
nor padding.

The fp16 graph is for a GPU: one launch adds a product's bias and the residual, and normalises.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import HEAD, VISION_EPSILON, VISION_THETA
from granalign_fast.models.graph_contract import (
    FRAMES,
    IMAGE_EMBEDS,
    PIXEL_VALUES,
    VISION_GRAPH,
)

from .builder import CheckpointGraph
from .tensor_file import GraphTensors, converted

Order = npt.NDArray[np.int64]
"""Indices of tokens."""


def window_order(grid: tuple[int, int], edge: int) -> tuple[Order, list[tuple[int, int]]]:
    """Sort the tokens of a frame by window, and the windows by size.

    Args:
        grid: rows and columns of tokens.
        edge: rows and columns of a whole window.

    Returns:
        The row-by-row index of each token, in the new order: (tokens,). And for each size of
        window, the number of windows and the tokens of one. There are at most four sizes: whole,
        cut off on the right, cut off below, and both.
    """
    rows, columns = grid
    tokens = np.arange(rows * columns).reshape(grid)
    by_size: dict[int, list[Order]] = {}
    for top in range(0, rows, edge):
        for left in range(0, columns, edge):
            window = tokens[top : top + edge, left : left + edge].ravel()
            by_size.setdefault(window.size, []).append(window)
    order = np.concatenate([window for windows in by_size.values() for window in windows])
    return order, [(len(windows), size) for size, windows in by_size.items()]


class _State(NamedTuple):
    """The residual and the last product, not added yet, with the name of the product's bias."""

    x: str
    update: str = ""
    bias: str = ""


class VisionGraph(CheckpointGraph):
    """The vision tower's graph; the graphs of both inputs share one store of weights.

    Args:
        source: the model, with its image size.
        tensors: the store. Weights that it holds already are not written again.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``.
        graph: `VISION_GRAPH`, which takes `FRAMES`, cuts them into patches and normalises them; or
            `PATCHES_GRAPH`, which takes `PIXEL_VALUES`.
    """

    def __init__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, graph: str
    ) -> None:
        dtype = np.float16 if precision == "fp16" else np.float32
        super().__init__(source.checkpoint, tensors, dtype)
        self.shape, self.pixels = source.vision, source.pixels
        self.image_size, self.grid = source.image_size, source.grid
        self.frames = graph == VISION_GRAPH
        self.fused = precision == "fp16"
        self.quantised = precision == "int4"
        self.unit = self.shape.merge**2  # patches of a token
        self.tokens = self.grid[0] * self.grid[1]
        self.patches = self.tokens * self.unit
        self.order, windows = window_order(self.grid, self.shape.window)
        self.windows = [(count, size * self.unit) for count, size in windows]

    def model(self) -> Any:
        """Return the `onnx.ModelProto`, whose large tensors are in the store's file."""
        # Frames or pixels to patches, and the rotary positions of all layers.
        x = self._embed_frames() if self.frames else self._embed_pixels()
        self._rotary_positions(x)
        # The layers, then patches to tokens.
        state = _State(x)
        for layer in range(self.shape.layers):
            state = self._layer(state, layer)
        self._merge(state)
        embeds = self._value(IMAGE_EMBEDS, self.dtype, "batch", self.tokens, self.shape.out)
        return self._model("vision", [self._input()], [embeds])

    def _input(self) -> Any:
        if self.frames:
            return self._value(FRAMES, np.uint8, "batch", *self.image_size, 3)
        values = 3 * self.shape.temporal * self.shape.patch**2
        return self._value(PIXEL_VALUES, np.float32, "batch", self.patches, values)

    def _embed_frames(self) -> str:
        """Embed the patches of frames of bytes, in the order of windows."""
        patch, merge = self.shape.patch, self.shape.merge
        (rows, columns), line = self.grid, patch * 3
        # Sort bytes by token, patch and line of the patch; moving bytes is cheap.
        cut = self._constant("frames.cut", [0, rows, merge, patch, columns, merge, line])
        x = self._op("Reshape", FRAMES, cut)
        x = self._op("Transpose", x, perm=[0, 1, 4, 2, 5, 3, 6])
        x = self._sort_by_window(x, patch * line)
        # The image processor's arithmetic, in float32.
        pixels = self.pixels
        x = self._op("Mul", self._cast(x, np.float32), self._float("rescale", pixels.rescale))
        x = self._op("Sub", x, self._float("mean", np.tile(pixels.mean, patch * patch)))
        x = self._op("Div", x, self._float("std", np.tile(pixels.std, patch * patch)))
        # One product with the kernel.
        weight = "visual.patch_embed.frames"
        if weight not in self.tensors:
            # The source repeats a single frame in time, so the kernel is summed over time. Channels
            # come last, as in bytes.
            array = self._patch_weight().sum(axis=2).transpose(2, 3, 1, 0)
            self._add_weight(weight, array.reshape(patch * line, -1))
        return self._op("MatMul", self._in_dtype(x), self._use(weight))

    def _embed_pixels(self) -> str:
        """Embed the patches of transformers' processor, in the order of windows."""
        values = 3 * self.shape.temporal * self.shape.patch**2
        x = self._sort_by_window(self._in_dtype(PIXEL_VALUES), values)
        weight = "visual.patch_embed.patches"
        if weight not in self.tensors:
            self._add_weight(weight, self._patch_weight().reshape(-1, values).T)
        return self._op("MatMul", x, self._use(weight))

    def _sort_by_window(self, x: str, values: int) -> str:
        """Sort patches (batch, patches, values) by window; the patches of a token stay together."""
        tokens = self._constant(f"token.{values}", [0, self.tokens, self.unit * values])
        x = self._op("Reshape", x, tokens)
        x = self._op("Gather", x, self._constant("order", self.order), axis=1)
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

    def _layer(self, state: _State, layer: int) -> _State:
        """Apply a layer; the next layer adds its last product."""
        prefix = f"visual.blocks.{layer}"
        # Self-attention of the whole frame or within windows.
        x, normed = self._add_and_norm(state, f"{prefix}.norm1.weight")
        parts = [f"{name}.{layer}" for name in ("query", "key", "value")]
        self._add(
            "Split", [self._linear(normed, f"{prefix}.attn.qkv")], parts, axis=-1, num_outputs=3
        )
        query, key, value = parts
        attended = self._attention(
            [self._rotated(query), self._rotated(key), value], layer in self.shape.full_layers
        )
        update = self._product(attended, f"{prefix}.attn.proj.weight")
        state = _State(x, update, f"{prefix}.attn.proj.bias")
        # The gated multi-layer perceptron.
        x, normed = self._add_and_norm(state, f"{prefix}.norm2.weight")
        gate = self._silu(self._linear(normed, f"{prefix}.mlp.gate_proj"))
        wide = self._op("Mul", gate, self._linear(normed, f"{prefix}.mlp.up_proj"))
        update = self._product(wide, f"{prefix}.mlp.down_proj.weight")
        return _State(x, update, f"{prefix}.mlp.down_proj.bias")

    def _add_and_norm(self, state: _State, weight: str) -> tuple[str, str]:
        """Return the sum of a state, and the normalised sum."""
        x, update, bias = state
        if self.fused and update:
            inputs = [update, x, self._tensor(weight), self._tensor(bias)]
            return self._sum_and_norm("SkipSimplifiedLayerNormalization", inputs, VISION_EPSILON)
        if update:
            x = self._op("Add", x, self._op("Add", update, self._tensor(bias)))
        return x, self._norm(x, weight, VISION_EPSILON)

    def _rotated(self, x: str) -> str:
        return self._op("RotaryEmbedding", x, self.cosine, self.sine, num_heads=self.shape.heads)

    def _attention(self, parts: list[str], full: bool) -> str:
        """Attend to the whole frame or within windows: (batch, patches, hidden) in and out."""
        heads = {"q_num_heads": self.shape.heads, "kv_num_heads": self.shape.heads}
        if full or self.windows == [(1, self.patches)]:
            return self._op("Attention", *parts, **heads)
        # One attention for each size of window, with windows as rows of its batch.
        attended = []
        for (count, size), group in zip(self.windows, self._groups(parts), strict=True):
            if count > 1:
                shape = self._constant(f"window.{size}", [-1, size, self.shape.hidden])
                group = [self._op("Reshape", part, shape) for part in group]
            x = self._op("Attention", *group, **heads)
            if count > 1:
                shape = self._constant(f"windows.{size}", [-1, count * size, self.shape.hidden])
                x = self._op("Reshape", x, shape)
            attended.append(x)
        return attended[0] if len(attended) == 1 else self._op("Concat", *attended, axis=1)

    def _groups(self, parts: list[str]) -> list[list[str]]:
        """Return query, key and value of the windows of each size."""
        if len(self.windows) == 1:
            return [parts]
        # Gather, not Split: on CUDA, Split copies lengths from the host, which a CUDA graph cannot
        # repeat.
        edges = np.cumsum([0, *(count * size for count, size in self.windows)])
        ranges = [
            self._constant(f"windows.from.{start}", np.arange(start, end))
            for start, end in itertools.pairwise(edges.tolist())
        ]
        return [[self._op("Gather", part, rows, axis=1) for part in parts] for rows in ranges]

    def _merge(self, state: _State) -> None:
        """Merge the patches of each token, and write tokens, row by row, to the graph's output."""
        _, x = self._add_and_norm(state, "visual.merger.ln_q.weight")
        # The patches of a token become one row for the perceptron.
        x = self._op("Reshape", x, self._constant("joined", [0, self.tokens, -1]))
        x = self._op("Gelu", self._linear(x, "visual.merger.mlp.0"))
        x = self._linear(x, "visual.merger.mlp.2")
        # Undo the order of windows.
        inverse = self._constant("inverse", np.argsort(self.order))
        self._add("Gather", [x, inverse], [IMAGE_EMBEDS], axis=1)

    def _product(self, x: str, weight: str) -> str:
        if not self.quantised:
            return super()._product(x, weight)
        return self._rounded_product(x, *self._rounded_weight(weight), HEAD)

    def _linear(self, x: str, name: str) -> str:
        # Every product here has a bias; a missing one is a damaged file, and reading it raises.
        return self._op("Add", self._product(x, f"{name}.weight"), self._tensor(f"{name}.bias"))
