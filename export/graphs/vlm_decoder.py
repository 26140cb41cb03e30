"""The decoder of Qwen2.5-VL: `DecoderGraph` with images and positions in three dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.models.graph_contract import (
    IMAGE_AT,
    IMAGE_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    POSITION_IDS,
)

from .decoder import DecoderGraph
from .tensor_file import GraphTensors


class VlmDecoderGraph(DecoderGraph):
    """Takes images as `INPUTS_EMBEDS` or, if static, as `IMAGE_EMBEDS`; see `specs`."""

    def __init__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, static: bool = False
    ) -> None:
        super().__init__(source, tensors, precision=precision, static=static)
        self.sections = source.sections

    def _inputs(self) -> list[Any]:
        hidden = self.shape.hidden
        places = self._value(POSITION_IDS, np.int64, 3, "batch", "sequence")
        if not self.static:
            return [self._value(INPUTS_EMBEDS, self.dtype, "batch", "sequence", hidden), places]
        return [
            self._value(INPUT_IDS, np.int64, "batch", "sequence"),
            places,
            self._value(IMAGE_EMBEDS, self.dtype, "batch", "image_tokens", hidden),
            self._value(IMAGE_AT, np.int64, "batch"),
        ]

    def _embed(self) -> str:
        if not self.static:
            return INPUTS_EMBEDS
        return self._op("TensorScatter", super()._embed(), IMAGE_EMBEDS, IMAGE_AT, axis=1)

    def _turned(self, name: str) -> str:
        # A pair after the other: those of time, of height and of width.
        ends = np.cumsum(self.sections).tolist()
        turned = []
        for axis, (end, pairs) in enumerate(zip(ends, self.sections, strict=True)):
            if pairs:
                places = self._op("Gather", POSITION_IDS, self._constant(f"axis.{axis}", axis))
                table = self._table(name, slice(end - pairs, end))
                turned.append(self._op("Gather", table, places, axis=0))
        return self._op("Concat", *turned, axis=-1)


class EmbeddingGraph(DecoderGraph):
    """From token ids (batch, sequence) to `INPUTS_EMBEDS`: the table that a tied head has, too."""

    def model(self) -> Any:
        """The `onnx.ModelProto`, whose table lies in the `GraphTensors`."""
        self._embed()
        self.nodes[-1].output[0] = INPUTS_EMBEDS
        ids = self._value(INPUT_IDS, np.int64, "batch", "sequence")
        embeds = self._value(INPUTS_EMBEDS, self.dtype, "batch", "sequence", self.shape.hidden)
        return self._model("embedding", [ids], [embeds])
