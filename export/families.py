"""The families of vision-language models that can be exported: an entry for each.

An entry names the code of a family: its settings, its vision graph, the same tower in float64, and
how transformers runs it. Export, self-check and comparison look here, and know no family by name.
`docs/contributing/add-a-family.md` says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from granalign_fast.models.graph_contract import CLIPS_GRAPH, PATCHES_GRAPH, VISION_GRAPH

from .checks import float64_smolvlm, float64_vision
from .checks.vlm_peers import QwenPeer, SmolVlmPeer, VlmPeer
from .graphs.qwen2_5_tower import Qwen25Tower
from .graphs.qwen3_tower import Qwen3Tower
from .graphs.smolvlm_tower import SmolVlmVisionGraph
from .graphs.tensor_file import GraphTensors
from .sources.families import qwen2_5_vl, qwen3_vl, smolvlm
from .sources.vision_language_model import VlmFolder, VlmSource


class TowerGraph(Protocol):
    """A vision graph that can be written."""

    def model(self) -> Any:
        """Return the `onnx.ModelProto`, whose large tensors are in the store's file."""


class TowerBuilder(Protocol):
    """Makes the graphs of a vision tower, which share one store of weights."""

    def __call__(
        self, source: VlmSource, tensors: GraphTensors, *, precision: str, graph: str
    ) -> TowerGraph:
        """Return a graph.

        Args:
            source: the model.
            tensors: the store. Weights that it holds already are not written again.
            precision: ``"fp32"``, ``"fp16"`` or ``"int4"``.
            graph: the graph's file, one of `tower_graphs`.
        """


@dataclass(frozen=True)
class VlmFamily:
    """The code of a family.

    Attributes:
        read: returns the source of a folder, for frames of a size, or of the usual size if None.
        vision_graph: makes the graphs of the vision tower.
        images: computes the outputs of these graphs for a clip (frames, height, width, 3) of as
            many frames as an image spans, by name, in float64: ``images(source, clip,
            quantised=...)``.
        pixels: computes the pixels of a frame (1, height, width, 3) as the image processor does, in
            float64.
        peer: how transformers runs the family.
    """

    read: Callable[[VlmFolder, tuple[int, int] | None], VlmSource]
    vision_graph: TowerBuilder
    images: Callable[..., dict[str, npt.NDArray[np.float64]]]
    pixels: Callable[[VlmSource, npt.NDArray[np.uint8]], npt.NDArray[np.float64]]
    peer: VlmPeer


FAMILIES: Mapping[str, VlmFamily] = {
    "Qwen2_5_VLForConditionalGeneration": VlmFamily(
        qwen2_5_vl.read,
        Qwen25Tower,
        float64_vision.qwen2_5_vl,
        float64_vision.qwen_pixels,
        QwenPeer(),
    ),
    "Qwen3VLForConditionalGeneration": VlmFamily(
        qwen3_vl.read,
        Qwen3Tower,
        float64_vision.qwen3_vl,
        float64_vision.qwen_pixels,
        QwenPeer(),
    ),
    "SmolVLMForConditionalGeneration": VlmFamily(
        smolvlm.read,
        SmolVlmVisionGraph,
        float64_smolvlm.smolvlm,
        float64_smolvlm.smolvlm_pixels,
        SmolVlmPeer(),
    ),
}
"""By the architecture in ``config.json``, one for each of `specs.VLM_ARCHITECTURES`."""


def read_vlm(folder: Path, image_size: tuple[int, int] | None = None) -> VlmSource:
    """Read the settings of a folder, open the weights and hash both.

    The processor's bounds on the number of pixels apply to images of any size. The image size of an
    export may lie outside them.

    Args:
        folder: of transformers.
        image_size: height and width of frames; None for the family's usual size.

    Raises:
        GranAlignError: the folder is no vision-language model that can be exported, one of its
            files is missing or torn, or the image size does not fit it.
    """
    settings = VlmFolder.read(folder)
    return FAMILIES[settings.architecture].read(settings, image_size)


def family_of(source: VlmSource) -> VlmFamily:
    """Return the entry of a source's family."""
    return FAMILIES[source.shape.architecture]


def tower_graphs(source: VlmSource) -> tuple[str, ...]:
    """Return the files of a vision tower's graphs, that of single frames first."""
    spans = any(layout.span > 1 for layout in source.layouts.values())
    return (VISION_GRAPH, PATCHES_GRAPH, *((CLIPS_GRAPH,) if spans else ()))
