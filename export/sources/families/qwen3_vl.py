"""Settings of a Qwen3-VL, read and checked: its vision tower, its prompts, its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.language_model import DecoderShape, positive
from granalign_fast.export.sources.layouts import DEFAULTS
from granalign_fast.export.sources.pixels import Pixels
from granalign_fast.export.sources.tensors import Shapes, check_shapes
from granalign_fast.export.sources.vision_language_model import (
    TEXT_TOKENS,
    VlmFolder,
    VlmSource,
    token_grid,
    usual_size,
)
from granalign_fast.export.specs import CLIP_FRAMES
from granalign_fast.models.image_layout import (
    ImageLayout,
    Piece,
    TimeStamp,
    VisualRun,
    still_image,
)

from .mrope import rotary_sections, tower_size

_STAMP_TOKENS = 16
"""Tokens of a time stamp and of the marks around a frame, at most."""


@dataclass(frozen=True)
class VisionShape:
    """The numbers of a vision tower.

    Attributes:
        layers: number of layers.
        hidden: values of a patch.
        wide: values of a patch inside the perceptron.
        heads: of each layer.
        out: values of a token.
        patch: edge of a patch in pixels.
        merge: edge of a token in patches.
        temporal: frames that a patch spans; a single frame is repeated.
        positions: rows of the table of learned positions, a square.
        deepstack: layers that a merger of their own follows.
    """

    layers: int
    hidden: int
    wide: int
    heads: int
    out: int
    patch: int
    merge: int
    temporal: int
    positions: int
    deepstack: tuple[int, ...]

    @classmethod
    def read(cls, config: dict[str, Any], path: Path) -> VisionShape:
        """Read the ``vision_config`` of a ``config.json``, with defaults; errors name `path`.

        Raises:
            GranAlignError: a setting that the graph lacks, or a senseless value.
        """
        for key, supported in (("hidden_act", "gelu_pytorch_tanh"), ("in_channels", 3)):
            if config.get(key, supported) != supported:
                raise GranAlignError(
                    f"{path}: got {key} {config[key]!r} in vision_config, expected {supported!r}; "
                    f"choose a model without it"
                )
        layers, hidden, heads = tower_size(config, path)
        positions = positive(config, "num_position_embeddings", path)
        if math.isqrt(positions) ** 2 != positions:
            raise GranAlignError(
                f"{path}: got num_position_embeddings {positions}, expected a square"
            )
        deepstack = config.get("deepstack_visual_indexes")
        if (
            not isinstance(deepstack, list)
            or any(type(one) is not int or not 0 <= one < layers for one in deepstack)
            or sorted(set(deepstack)) != deepstack
        ):
            raise GranAlignError(
                f"{path}: got deepstack_visual_indexes {deepstack!r}, expected ascending "
                f"numbers of the {layers} layers"
            )
        return cls(
            layers=layers,
            hidden=hidden,
            wide=positive(config, "intermediate_size", path),
            heads=heads,
            out=positive(config, "out_hidden_size", path),
            patch=positive(config, "patch_size", path),
            merge=positive(config, "spatial_merge_size", path),
            temporal=positive(config, "temporal_patch_size", path),
            positions=positions,
            deepstack=tuple(deepstack),
        )

    def first(self, layers: int) -> VisionShape:
        """Return a tower of the first layers, with all mergers of deepstack."""
        layers = min(layers, self.layers)
        after = tuple(min(number, layers - 1) for number in range(len(self.deepstack)))
        return replace(self, layers=layers, deepstack=after)

    def tensors(self) -> Shapes:
        """Return the shapes of the tower's tensors, by name."""
        hidden, joined = self.hidden, self.hidden * self.merge**2
        linear: Shapes = {}
        expected: Shapes = {
            "patch_embed.proj.weight": (hidden, 3, self.temporal, self.patch, self.patch),
            "patch_embed.proj.bias": (hidden,),
            "pos_embed.weight": (self.positions, hidden),
        }
        norms = {"merger.norm": hidden}
        mergers = [f"deepstack_merger_list.{number}" for number in range(len(self.deepstack))]
        norms |= dict.fromkeys([f"{merger}.norm" for merger in mergers], joined)
        for merger in ("merger", *mergers):
            linear[f"{merger}.linear_fc1"] = (joined, joined)
            linear[f"{merger}.linear_fc2"] = (self.out, joined)
        for layer in range(self.layers):
            block = f"blocks.{layer}"
            norms |= {f"{block}.norm1": hidden, f"{block}.norm2": hidden}
            linear |= {
                f"{block}.attn.qkv": (3 * hidden, hidden),
                f"{block}.attn.proj": (hidden, hidden),
                f"{block}.mlp.linear_fc1": (self.wide, hidden),
                f"{block}.mlp.linear_fc2": (hidden, self.wide),
            }
        for name, size in linear.items():
            expected |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
        for name, width in norms.items():
            expected |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        return {f"visual.{name}": size for name, size in expected.items()}


def read(folder: VlmFolder, image_size: tuple[int, int] | None) -> VlmSource:
    """Read a folder for an export of frames of one size; None for the family's usual size.

    Raises:
        GranAlignError: a setting that the graphs lack, or that does not fit the others.
    """
    # The decoder. Only the sections of rope_scaling apply: the frequencies are not scaled.
    path, text = folder.path, folder.text
    sections = rotary_sections(text, path)
    interleaved = text["rope_scaling"].get("mrope_interleaved", True)
    if interleaved is not True:
        raise GranAlignError(
            f"{path}: got mrope_interleaved {interleaved!r}, expected true; choose a model with it"
        )
    if "rope_theta" not in text:  # transformers 4.57 and 5 have other defaults
        raise GranAlignError(f"{path}: got no rope_theta, expected it; download the model again")
    shape = DecoderShape.parse(text | {"rope_scaling": None}, folder.architecture, path)
    pairs = shape.head_dim // 2
    if sum(sections) != pairs or 3 * sections[1] - 2 >= pairs or 3 * sections[2] - 1 >= pairs:
        raise GranAlignError(
            f"{path}: got mrope_section {list(sections)} for heads of {shape.head_dim} values, "
            f"expected sections of half a head that can be interleaved"
        )
    # The vision tower, and the image processor.
    vision = VisionShape.read(folder.vision(DEFAULTS["qwen3_vl_vision"]), path)
    if len(vision.deepstack) >= shape.layers:
        raise GranAlignError(
            f"{path}: got {len(vision.deepstack)} deepstack_visual_indexes for {shape.layers} "
            f"layers of the decoder, expected fewer"
        )
    image_size = image_size or usual_size(vision)
    source = folder.open(
        shape,
        vision=vision,
        image_size=image_size,
        layouts=_layouts(folder, shape, token_grid(vision, image_size), vision.temporal),
        sections=sections,
        interleaved=True,
        deepstack=len(vision.deepstack),
        pixels=Pixels.read(folder.processor, vision, folder.processor_path),
    )
    check_shapes(source.checkpoint, vision.tensors(), path)
    return source


def _layouts(
    folder: VlmFolder, shape: DecoderShape, grid: tuple[int, int], span: int
) -> dict[int, ImageLayout]:
    """Return the layouts of a frame, and of the clips that leave room for text in the context."""
    image = folder.token("image_token_id", shape, 151655)
    video = folder.token("video_token_id", shape, 151656)
    start = folder.token("vision_start_token_id", shape, 151652)
    end = folder.token("vision_end_token_id", shape, 151653)
    layouts = {1: still_image(image, grid)}
    run = VisualRun(video, (1, *grid))
    for frames in CLIP_FRAMES:
        # Each patch in time is a grid of its own, behind the mean time of its frames.
        pieces: list[Piece] = []
        for first in range(0, frames, span):
            last = min(first + span, frames) - 1
            pieces += [TimeStamp(first, last), (start,), run, (end,)]
        layout = ImageLayout(
            content="video",
            placeholder=(start, video, end),
            pieces=tuple(pieces),
            frames=frames,
            span=span,
        )
        if layout.visual_tokens + layout.images * _STAMP_TOKENS + TEXT_TOKENS <= shape.context:
            layouts[frames] = layout
    return layouts
