"""Settings of a Qwen2.5-VL, read and checked: its vision tower, its prompts, its tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.language_model import DecoderShape, positive
from granalign_fast.export.sources.layouts import DEFAULTS
from granalign_fast.export.sources.pixels import Pixels
from granalign_fast.export.sources.tensors import check_vision
from granalign_fast.export.sources.vision_language_model import (
    TEXT_TOKENS,
    VlmFolder,
    VlmSource,
    token_grid,
    usual_size,
)
from granalign_fast.export.specs import CLIP_FRAMES
from granalign_fast.models.image_layout import ImageLayout, VisualRun, still_image

from .mrope import rotary_sections, tower_size


@dataclass(frozen=True)
class VisionShape:
    """The numbers of a vision tower.

    Attributes:
        layers: number of layers.
        hidden: values of a patch.
        heads: of each layer.
        out: values of a token.
        patch: edge of a patch in pixels.
        merge: edge of a token in patches.
        temporal: frames that a patch spans; a single frame is repeated.
        window: edge of a window in tokens.
        full_layers: layers that attend to the whole frame, not within windows.
    """

    layers: int
    hidden: int
    heads: int
    out: int
    patch: int
    merge: int
    temporal: int
    window: int
    full_layers: frozenset[int]

    @classmethod
    def read(cls, config: dict[str, Any], path: Path) -> VisionShape:
        """Read the ``vision_config`` of a ``config.json``, with defaults; errors name `path`.

        Raises:
            GranAlignError: a setting that the graph lacks, or a senseless value.
        """
        # Settings that the graph lacks.
        for key, supported in (("hidden_act", "silu"), ("in_channels", 3), ("in_chans", 3)):
            if config.get(key, supported) != supported:
                raise GranAlignError(
                    f"{path}: got {key} {config[key]!r} in vision_config, expected {supported!r}; "
                    f"choose a model without it"
                )
        layers, hidden, heads = tower_size(config, path)
        # Patches, tokens and windows; the settings have edges in pixels.
        patch = positive(config, "patch_size", path)
        merge = positive(config, "spatial_merge_size", path)
        window = positive(config, "window_size", path) // merge // patch
        full = config.get("fullatt_block_indexes")
        if not isinstance(full, list) or not all(isinstance(layer, int) for layer in full):
            raise GranAlignError(
                f"{path}: got fullatt_block_indexes {full!r}, expected a list of layers"
            )
        if not window:
            raise GranAlignError(
                f"{path}: got window_size {config['window_size']}, expected at least "
                f"{patch * merge}, a token's edge"
            )
        return cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            out=positive(config, "out_hidden_size", path),
            patch=patch,
            merge=merge,
            temporal=positive(config, "temporal_patch_size", path),
            window=window,
            full_layers=frozenset(full),
        )

    def first(self, layers: int) -> VisionShape:
        """Return a tower of the first layers: one within windows, one without, if it has both.

        Weights of a layer have the same names and shapes in both kinds.
        """
        layers = min(layers, self.layers)
        full = frozenset(range(self.layers)) & self.full_layers
        if layers > 1 and 0 < len(full) < self.layers:
            return replace(self, layers=layers, full_layers=frozenset({1}))
        return replace(self, layers=layers)


def _clip(
    video: int, vision: VisionShape, grid: tuple[int, int], frames: int, pace: int
) -> ImageLayout:
    """Return the layout of a clip: one video, with a grid for each patch in time.

    Args:
        video: the id of its tokens.
        vision: the numbers of the vision tower.
        grid: rows and columns of a grid's tokens.
        frames: of the clip.
        pace: positions in time that a second has, the setting ``tokens_per_second``.
    """
    times = -(-frames // vision.temporal)
    return ImageLayout(
        content="video",
        placeholder=(video,),
        pieces=(VisualRun(video, (times, *grid)),),
        frames=frames,
        span=vision.temporal,
        positions_per_second=float(pace),
    )


def read(folder: VlmFolder, image_size: tuple[int, int] | None) -> VlmSource:
    """Read a folder for an export of frames of one size; None for the family's usual size.

    Raises:
        GranAlignError: a setting that the graphs lack, or that does not fit the others.
    """
    # The decoder. Only the sections of rope_scaling apply: the frequencies are not scaled.
    path = folder.path
    sections = rotary_sections(folder.text, path)
    shape = DecoderShape.parse(folder.text | {"rope_scaling": None}, folder.architecture, path)
    if sum(sections) * 2 != shape.head_dim or shape.head_dim * shape.heads != shape.hidden:
        raise GranAlignError(
            f"{path}: got mrope_section {list(sections)} for {shape.heads} heads of "
            f"{shape.head_dim} values, expected sections of half a head, and heads that make "
            f"up the {shape.hidden} values of a token"
        )
    # The vision tower, and the image processor.
    tower = folder.vision(DEFAULTS["qwen2_5_vl_vision"])
    vision = VisionShape.read(tower, path)
    image_size = image_size or usual_size(vision)
    grid = token_grid(vision, image_size)
    image = folder.token("image_token_id", shape, 151655)
    video = folder.token("video_token_id", shape, 151656)
    pace = positive(tower, "tokens_per_second", path)
    clips = {frames: _clip(video, vision, grid, frames, pace) for frames in CLIP_FRAMES}
    # Those that leave room for text.
    clips = {
        frames: clip
        for frames, clip in clips.items()
        if clip.visual_tokens + TEXT_TOKENS <= shape.context
    }
    source = folder.open(
        shape,
        vision=vision,
        image_size=image_size,
        layouts={1: still_image(image, grid), **clips},
        sections=sections,
        pixels=Pixels.read(folder.processor, vision, folder.processor_path),
    )
    wide = positive(tower, "intermediate_size", path, default=3420)
    check_vision(source.checkpoint, tower, wide, path)
    return source
