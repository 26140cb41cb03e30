"""The vision tower of Qwen2.5-VL as an ONNX graph, for a batch of frames of one fixed size.

All that depends on the size alone is a constant. Most layers attend within windows of the frame,
and at its right and lower edge windows are cut off: tokens are sorted so that windows of equal size
lie side by side, and each size is a batch of its own. So there is neither mask nor padding.

In fp16, for a GPU, a product's bias, what it is added to and the norm of that are one launch.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import VISION_EPSILON, VISION_THETA
from granalign_fast.models.graph_contract import FRAMES, IMAGE_EMBEDS, PIXEL_VALUES

from .builder import CheckpointGraph
from .tensor_file import GraphTensors

Order = npt.NDArray[np.int64]


def window_order(grid: tuple[int, int], edge: int) -> tuple[Order, list[tuple[int, int]]]:
    """Sort the tokens of a frame by the window that they lie in, and windows by their size.

    Args:
        grid: rows and columns of tokens.
        edge: rows and columns of a whole window.

    Returns:
        Indices of tokens, row by row, in their new order: (tokens,). And how many windows there are
        of how many tokens: at most four kinds, as edges cut off a part at most.
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
    """A sum that is not taken yet: x and perhaps a product, and the name of that one's bias."""

    x: str
    more: str = ""
    bias: str = ""


class VisionGraph(CheckpointGraph):
    """Builds the graph; weights go to a `GraphTensors` that both entries share.

    Args:
        source: the model, with its image size.
        tensors: where its weights go, those that are not there yet.
        precision: ``"fp16"``, or another for float32.
        frames: whether the input is `FRAMES`, with normalisation and the cut into patches inside
            the graph, or `PIXEL_VALUES`.
    """

    def __init__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, frames: bool
    ) -> None:
        dtype = np.float16 if precision == "fp16" else np.float32
        super().__init__(source.checkpoint, tensors, dtype)
        self.shape, self.pixels = source.vision, source.pixels
        self.image_size, self.grid = source.image_size, source.grid
        self.frames = frames
        self.fused = precision == "fp16"
        self.unit = self.shape.merge**2  # patches of a token
        self.tokens = self.grid[0] * self.grid[1]
        self.patches = self.tokens * self.unit
        self.order, windows = window_order(self.grid, self.shape.window)
        self.windows = [(count, size * self.unit) for count, size in windows]

    def model(self) -> Any:
        """The `onnx.ModelProto`, whose large tensors lie in the `GraphTensors`."""
        x = self._from_frames() if self.frames else self._from_patches()
        self._rotation(x)
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

    def _from_frames(self) -> str:
        """Embeddings of the patches of bytes, in the order of windows."""
        patch, merge = self.shape.patch, self.shape.merge
        (rows, columns), line = self.grid, patch * 3
        cut = self._constant("frames.cut", [0, rows, merge, patch, columns, merge, line])
        x = self._op("Reshape", FRAMES, cut)
        # A token's patches become its own, and a patch's lines too; bytes are cheap to move.
        x = self._op("Transpose", x, perm=[0, 1, 4, 2, 5, 3, 6])
        x = self._in_order(x, patch * line)
        pixels = self.pixels
        x = self._op("Mul", self._cast(x, np.float32), self._float("rescale", pixels.rescale))
        x = self._op("Sub", x, self._float("mean", np.tile(pixels.mean, patch * patch)))
        x = self._op("Div", x, self._float("std", np.tile(pixels.std, patch * patch)))
        weight = "visual.patch_embed.frames"
        if weight not in self.tensors:
            # A frame stands for several in time: the sum over them, and channels last, as in bytes.
            array = self._patch_weight().sum(axis=2).transpose(2, 3, 1, 0)
            self._add_weight(weight, array.reshape(patch * line, -1))
        return self._op("MatMul", self._in_dtype(x), self._use(weight))

    def _from_patches(self) -> str:
        """Embeddings of the patches of transformers' processor, in the order of windows."""
        values = 3 * self.shape.temporal * self.shape.patch**2
        x = self._in_order(self._in_dtype(PIXEL_VALUES), values)
        weight = "visual.patch_embed.patches"
        if weight not in self.tensors:
            self._add_weight(weight, self._patch_weight().reshape(-1, values).T)
        return self._op("MatMul", x, self._use(weight))

    def _in_order(self, x: str, values: int) -> str:
        """Patches (batch, patches, values) in the order of windows; a token's stay together."""
        together = self._constant(f"token.{values}", [0, self.tokens, self.unit * values])
        x = self._op("Reshape", x, together)
        x = self._op("Gather", x, self._constant("order", self.order), axis=1)
        return self._op("Reshape", x, self._constant(f"patch.{values}", [0, self.patches, values]))

    def _patch_weight(self) -> Float32:
        """(hidden, channels, frames, height, width): a convolution that never overlaps."""
        weight = self.checkpoint.read("visual.patch_embed.proj.weight")
        return weight.reshape(-1, 3, self.shape.temporal, self.shape.patch, self.shape.patch)

    def _add_weight(self, name: str, array: Float32) -> None:
        self.tensors.add(name, array.astype(self.dtype, copy=False))

    def _float(self, name: str, value: npt.ArrayLike) -> str:
        return self._constant(f"pixels.{name}", value, np.float32)

    def _in_dtype(self, x: str) -> str:
        return x if self.dtype == np.float32 else self._cast(x, self.dtype)

    def _rotation(self, x: str) -> None:
        """Cosine and sine of every patch's place, (batch, patches, head / 2), for all layers."""
        angles = self._angles()
        batch = self._op("Shape", x, end=1)
        rest = self._constant("rotary.rest", angles.shape)
        shape = self._op("Concat", batch, rest, axis=0)
        cosine = self._constant("cosine", np.cos(angles)[None], self.dtype)
        sine = self._constant("sine", np.sin(angles)[None], self.dtype)
        self.cosine, self.sine = self._op("Expand", cosine, shape), self._op("Expand", sine, shape)

    def _angles(self) -> Float32:
        """Half of a head's pairs turn with the patch's row, half with its column."""
        quarter, merge = self.shape.hidden // self.shape.heads // 4, self.shape.merge
        exponents = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
        frequencies = (1 / np.float32(VISION_THETA) ** exponents).astype(np.float32)
        rows, columns = np.divmod(self.order, self.grid[1])
        down, right = np.divmod(np.arange(self.unit), merge)
        places = [
            (rows[:, None] * merge + down).reshape(-1, 1),
            (columns[:, None] * merge + right).reshape(-1, 1),
        ]
        angles = [place.astype(np.float32) * frequencies for place in places]
        return np.concatenate(angles, axis=1, dtype=np.float32)

    def _layer(self, state: _State, layer: int) -> _State:
        prefix = f"visual.blocks.{layer}"
        x, normed = self._sum(state, f"{prefix}.norm1.weight")
        parts = [f"{name}.{layer}" for name in ("query", "key", "value")]
        self._add(
            "Split", [self._linear(normed, f"{prefix}.attn.qkv")], parts, axis=-1, num_outputs=3
        )
        query, key, value = parts
        attended = self._attention(
            [self._rotated(query), self._rotated(key), value], layer in self.shape.full_layers
        )
        more = self._product(attended, f"{prefix}.attn.proj.weight")
        state = _State(x, more, f"{prefix}.attn.proj.bias")
        x, normed = self._sum(state, f"{prefix}.norm2.weight")
        gate = self._silu(self._linear(normed, f"{prefix}.mlp.gate_proj"))
        wide = self._op("Mul", gate, self._linear(normed, f"{prefix}.mlp.up_proj"))
        more = self._product(wide, f"{prefix}.mlp.down_proj.weight")
        return _State(x, more, f"{prefix}.mlp.down_proj.bias")

    def _sum(self, state: _State, weight: str) -> tuple[str, str]:
        """What a state stands for, and that normalised."""
        x, more, bias = state
        if self.fused and more:
            inputs = [more, x, self._tensor(weight), self._tensor(bias)]
            return self._sum_and_norm("SkipSimplifiedLayerNormalization", inputs, VISION_EPSILON)
        if more:
            x = self._op("Add", x, self._op("Add", more, self._tensor(bias)))
        return x, self._norm(x, weight, VISION_EPSILON)

    def _rotated(self, x: str) -> str:
        return self._op("RotaryEmbedding", x, self.cosine, self.sine, num_heads=self.shape.heads)

    def _attention(self, parts: list[str], full: bool) -> str:
        """Attend to the whole frame or within windows: (batch, patches, hidden) in and out."""
        heads = {"q_num_heads": self.shape.heads, "kv_num_heads": self.shape.heads}
        if full or self.windows == [(1, self.patches)]:
            return self._op("Attention", *parts, **heads)
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
        """Query, key and value of the windows of each size."""
        if len(self.windows) == 1:
            return [parts]
        # Not split: that brings lengths from the host on CUDA, which no CUDA graph can repeat.
        edges = np.cumsum([0, *(count * size for count, size in self.windows)])
        places = [
            self._constant(f"windows.from.{start}", np.arange(start, end))
            for start, end in itertools.pairwise(edges.tolist())
        ]
        return [[self._op("Gather", part, place, axis=1) for part in parts] for place in places]

    def _merge(self, state: _State) -> None:
        """Join the patches of a token, and leave tokens row by row under the output's name."""
        _, x = self._sum(state, "visual.merger.ln_q.weight")
        x = self._op("Reshape", x, self._constant("joined", [0, self.tokens, -1]))
        x = self._op("Gelu", self._linear(x, "visual.merger.mlp.0"))
        x = self._linear(x, "visual.merger.mlp.2")
        inverse = self._constant("inverse", np.argsort(self.order))
        self._add("Gather", [x, inverse], [IMAGE_EMBEDS], axis=1)

    def _linear(self, x: str, name: str) -> str:
        # Here every product has a bias: one that is missing is a damaged file.
        return self._op("Add", self._product(x, f"{name}.weight"), self._tensor(f"{name}.bias"))
