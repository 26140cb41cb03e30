"""The vision tower of Qwen3-VL as an ONNX graph, for a batch of frames of one fixed size.

Every layer attends to the whole frame. The learned positions are a square table, which is
interpolated to the frame's grid once, as the graph is written. Some layers have a merger of their
own besides that at the end: the decoder adds what it gives after its first layers (DeepStack, Meng
et al., arXiv 2406.04334).

The fp16 graph is for a GPU: one launch adds a product's bias and the residual, and normalises.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.specs import VISION_EPSILON
from granalign_fast.models.graph_contract import DEEPSTACK, IMAGE_EMBEDS

from .patch_tower import PatchTower, State
from .tensor_file import converted


class Qwen3Tower(PatchTower):
    """The vision tower's graph; arguments as of `PatchTower`."""

    def model(self) -> Any:
        """Return the `onnx.ModelProto`, whose large tensors are in the store's file."""
        # Frames or pixels to patches, and the positions of all layers: learned and rotary.
        x = self._op("Add", self._embed(), self._learned_positions())
        self._rotary_positions(x)
        # The layers; some are followed by a merger.
        state, features = State(x), []
        for layer in range(self.shape.layers):
            state = self._layer(state, layer)
            for number, after in enumerate(self.shape.deepstack):
                if after == layer:
                    state = State(self._sum(state))
                    merged = self._deepstack(state.x, f"visual.deepstack_merger_list.{number}")
                    features.append(self._op("Unsqueeze", merged, self._constant("layers", [1])))
        # Patches to tokens.
        self._merge(state)
        count, out = len(features), self.shape.out
        outputs = [self._value(IMAGE_EMBEDS, self.dtype, "batch", self.tokens, out)]
        if features:
            self._add("Concat", features, [DEEPSTACK], axis=1)
            outputs.append(self._value(DEEPSTACK, self.dtype, "batch", count, self.tokens, out))
        return self._model("vision", [self._input()], outputs)

    def _learned_positions(self) -> str:
        """Store the learned positions (patches, hidden) with the bias of the patches' product."""
        name = "visual.pos_embed.frame"
        if name not in self.tensors:
            table = self.checkpoint.read("visual.pos_embed.weight")
            bias = self.checkpoint.read("visual.patch_embed.proj.bias")
            rows, columns = (side * self.shape.merge for side in self.grid)
            positions = interpolated(table, rows, columns).reshape(rows, columns, -1)
            # The patches of a token stand together.
            edge = self.shape.merge
            split = positions.reshape(rows // edge, edge, columns // edge, edge, -1)
            learned = split.swapaxes(1, 2).reshape(self.patches, -1) + bias
            self.tensors.add(name, converted(name, learned, self.dtype))
        return self._use(name)

    def _layer(self, state: State, layer: int) -> State:
        """Apply a layer; the next layer adds its last product."""
        prefix = f"visual.blocks.{layer}"
        # Self-attention of the whole frame.
        x, normed = self._add_and_norm(state, f"{prefix}.norm1")
        parts = [f"{name}.{layer}" for name in ("query", "key", "value")]
        self._add(
            "Split", [self._linear(normed, f"{prefix}.attn.qkv")], parts, axis=-1, num_outputs=3
        )
        query, key, value = parts
        heads = {"q_num_heads": self.shape.heads, "kv_num_heads": self.shape.heads}
        attended = self._op("Attention", self._rotated(query), self._rotated(key), value, **heads)
        update = self._product(attended, f"{prefix}.attn.proj.weight")
        # The multi-layer perceptron.
        x, normed = self._add_and_norm(
            State(x, update, f"{prefix}.attn.proj.bias"), f"{prefix}.norm2"
        )
        wide = self._linear(normed, f"{prefix}.mlp.linear_fc1")
        wide = self._op("Gelu", wide, approximate="tanh")
        update = self._product(wide, f"{prefix}.mlp.linear_fc2.weight")
        return State(x, update, f"{prefix}.mlp.linear_fc2.bias")

    def _sum(self, state: State) -> str:
        """Return the residual with the last product and its bias."""
        if not state.update:
            return state.x
        return self._op("Add", state.x, self._op("Add", state.update, self._tensor(state.bias)))

    def _add_and_norm(self, state: State, norm: str) -> tuple[str, str]:
        """Return the sum of a state, and the normalised sum."""
        gain, shift = self._tensor(f"{norm}.weight"), self._tensor(f"{norm}.bias")
        if self.fused and state.update:
            inputs = [state.update, state.x, gain, shift, self._tensor(state.bias)]
            return self._sum_and_norm("SkipLayerNormalization", inputs, VISION_EPSILON)
        x = self._sum(state)
        return x, self._layer_norm(x, norm)

    def _layer_norm(self, x: str, norm: str) -> str:
        return self._op(
            "LayerNormalization",
            x,
            self._tensor(f"{norm}.weight"),
            self._tensor(f"{norm}.bias"),
            axis=-1,
            epsilon=VISION_EPSILON,
            stash_type=1,  # float32 sums
        )

    def _joined(self, x: str) -> str:
        """Return the patches of each token as one row."""
        return self._op("Reshape", x, self._constant("joined", [0, self.tokens, -1]))

    def _deepstack(self, x: str, merger: str) -> str:
        """Merge the patches of each token; the norm sees all of them at once."""
        x = self._layer_norm(self._joined(x), f"{merger}.norm")
        x = self._op("Gelu", self._linear(x, f"{merger}.linear_fc1"))
        return self._linear(x, f"{merger}.linear_fc2")

    def _merge(self, state: State) -> None:
        """Merge the patches of each token, and write tokens to the graph's output."""
        _, x = self._add_and_norm(state, "visual.merger.norm")
        x = self._op("Gelu", self._linear(self._joined(x), "visual.merger.linear_fc1"))
        self._linear(x, "visual.merger.linear_fc2")
        self.nodes[-1].output[0] = IMAGE_EMBEDS


def interpolated(table: Float32, rows: int, columns: int) -> Float32:
    """Interpolate a square table of positions to a grid, bilinearly; the corners stay corners.

    Args:
        table: (side * side, values), row by row.
        rows: of the grid.
        columns: of the grid.

    Returns:
        (rows * columns, values), row by row.
    """
    side = round(len(table) ** 0.5)
    square = table.reshape(side, side, -1)
    # Between which two rows of the table each row of the grid lies, and how near to the second.
    down, right = (np.linspace(0, side - 1, count) for count in (rows, columns))
    above, left = down.astype(int), right.astype(int)
    below, beside = np.minimum(above + 1, side - 1), np.minimum(left + 1, side - 1)
    share = (down - above)[:, None, None]
    upper, lower = square[above], square[below]
    lines = upper * (1 - share) + lower * share
    share = (right - left)[:, None]
    mixed = lines[:, left] * (1 - share) + lines[:, beside] * share
    return np.asarray(mixed.reshape(rows * columns, -1), np.float32)
