"""The vision tower of Qwen2.5-VL as an ONNX graph, for a batch of frames of one fixed size.

Everything that depends on the size alone is a constant. Most layers attend within windows of the
frame, and the frame's right and lower edges cut windows off. The graph sorts tokens so that windows
of equal size are adjacent, and attends to each size as a batch of its own. So it needs neither mask
nor padding.

The fp16 graph is for a GPU: one launch adds a product's bias and the residual, and normalises.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import VISION_EPSILON
from granalign_fast.models.graph_contract import IMAGE_EMBEDS

from .patch_tower import Order, PatchTower, State
from .tensor_file import GraphTensors


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


class Qwen25Tower(PatchTower):
    """The vision tower's graph; arguments as of `PatchTower`."""

    def __init__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, graph: str
    ) -> None:
        super().__init__(source, tensors, precision=precision, graph=graph)
        self.order, windows = window_order(self.grid, self.shape.window)
        self.windows = [(count, size * self.unit) for count, size in windows]

    def model(self) -> Any:
        """Return the `onnx.ModelProto`, whose large tensors are in the store's file."""
        # Frames or pixels to patches, and the rotary positions of all layers.
        x = self._embed()
        self._rotary_positions(x)
        # The layers, then patches to tokens.
        state = State(x)
        for layer in range(self.shape.layers):
            state = self._layer(state, layer)
        self._merge(state)
        embeds = self._value(IMAGE_EMBEDS, self.dtype, "batch", self.tokens, self.shape.out)
        return self._model("vision", [self._input()], [embeds])

    def _sorted(self, x: str, values: int) -> str:
        # By window; the patches of a token stay together.
        tokens = self._constant(f"token.{values}", [0, self.tokens, self.unit * values])
        x = self._op("Reshape", x, tokens)
        x = self._op("Gather", x, self._constant("order", self.order), axis=1)
        return self._op("Reshape", x, self._constant(f"patch.{values}", [0, self.patches, values]))

    def _layer(self, state: State, layer: int) -> State:
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
        state = State(x, update, f"{prefix}.attn.proj.bias")
        # The gated multi-layer perceptron.
        x, normed = self._add_and_norm(state, f"{prefix}.norm2.weight")
        gate = self._silu(self._linear(normed, f"{prefix}.mlp.gate_proj"))
        wide = self._op("Mul", gate, self._linear(normed, f"{prefix}.mlp.up_proj"))
        update = self._product(wide, f"{prefix}.mlp.down_proj.weight")
        return State(x, update, f"{prefix}.mlp.down_proj.bias")

    def _add_and_norm(self, state: State, weight: str) -> tuple[str, str]:
        """Return the sum of a state, and the normalised sum."""
        x, update, bias = state
        if self.fused and update:
            inputs = [update, x, self._tensor(weight), self._tensor(bias)]
            return self._sum_and_norm("SkipSimplifiedLayerNormalization", inputs, VISION_EPSILON)
        if update:
            x = self._op("Add", x, self._op("Add", update, self._tensor(bias)))
        return x, self._norm(x, weight, VISION_EPSILON)

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

    def _merge(self, state: State) -> None:
        """Merge the patches of each token, and write tokens, row by row, to the graph's output."""
        _, x = self._add_and_norm(state, "visual.merger.ln_q.weight")
        # The patches of a token become one row for the perceptron.
        x = self._op("Reshape", x, self._constant("joined", [0, self.tokens, -1]))
        x = self._op("Gelu", self._linear(x, "visual.merger.mlp.0"))
        x = self._linear(x, "visual.merger.mlp.2")
        # Undo the order of windows.
        inverse = self._constant("inverse", np.argsort(self.order))
        self._add("Gather", [x, inverse], [IMAGE_EMBEDS], axis=1)
