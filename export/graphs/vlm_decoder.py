"""A decoder of vision-language models: `DecoderGraph` with images, and positions on three axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.models.graph_contract import (
    DEEPSTACK,
    IMAGE_AT,
    IMAGE_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    POSITION_IDS,
)

from .decoder import DecoderGraph
from .tensor_file import GraphTensors


class VlmDecoderGraph(DecoderGraph):
    """The decoder's graph; arguments as of `DecoderGraph`.

    Images are part of `INPUTS_EMBEDS` or, in the static graph, come as `IMAGE_EMBEDS`.
    """

    def __init__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, static: bool = False
    ) -> None:
        super().__init__(source, tensors, precision=precision, static=static)
        self.axes, self.deepstack = source.axes, source.deepstack

    def _inputs(self) -> list[Any]:
        hidden, axes = self.shape.hidden, (3,) if self.axes else ()
        positions = self._value(POSITION_IDS, np.int64, *axes, "batch", "sequence")
        features = []
        if self.deepstack:
            shape = ("feature_rows", self.deepstack, "feature_tokens", hidden)
            features.append(self._value(DEEPSTACK, self.dtype, *shape))
        if not self.static:
            embeds = self._value(INPUTS_EMBEDS, self.dtype, "batch", "sequence", hidden)
            return [embeds, positions, *features]
        return [
            self._value(INPUT_IDS, np.int64, "batch", "sequence"),
            positions,
            self._value(IMAGE_EMBEDS, self.dtype, "batch", "image_tokens", hidden),
            self._value(IMAGE_AT, np.int64, "batch"),
            *features,
        ]

    def _with_features(self, x: str, layer: int) -> str:
        # One row or token of features stands for all: a text without images has a single zero.
        if layer >= self.deepstack:
            return x
        features = self._op("Gather", DEEPSTACK, self._constant(f"layer.{layer}", layer), axis=1)
        return self._op("Add", x, features)

    def _embed(self) -> str:
        if not self.static:
            return INPUTS_EMBEDS
        # Write the image over the embeddings of its image tokens.
        return self._op("TensorScatter", super()._embed(), IMAGE_EMBEDS, IMAGE_AT, axis=1)

    def _rotary(self, name: str) -> str:
        if not self.axes:
            return super()._rotary(name)
        # The rotary pairs of a head that follow time, those that follow the row, and the column.
        parts, order = [], []
        for axis in range(3):
            pairs = [pair for pair, follows in enumerate(self.axes) if follows == axis]
            if pairs:
                positions = self._op("Gather", POSITION_IDS, self._constant(f"axis.{axis}", axis))
                parts.append(self._op("Gather", self._table(name, pairs), positions, axis=0))
                order += pairs
        joined = self._op("Concat", *parts, axis=-1)
        if order == sorted(order):
            return joined
        return self._op("Gather", joined, self._constant("pairs", np.argsort(order)), axis=-1)


class EmbeddingGraph(DecoderGraph):
    """The graph from token ids (batch, sequence) to `INPUTS_EMBEDS`; a tied head has its table."""

    def model(self) -> Any:
        """Return the `onnx.ModelProto`, whose table is in the store's file."""
        self._embed()
        self.nodes[-1].output[0] = INPUTS_EMBEDS
        ids = self._value(INPUT_IDS, np.int64, "batch", "sequence")
        embeds = self._value(INPUTS_EMBEDS, self.dtype, "batch", "sequence", self.shape.hidden)
        return self._model("embedding", [ids], [embeds])
