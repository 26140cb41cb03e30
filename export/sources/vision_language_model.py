"""A vision-language model's transformers folder: what is the same for every family.

`families` holds what differs: each of its modules reads the settings of one family, and returns a
`VlmSource`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.export.specs import IMAGE_GRID, PREPROCESSOR, VLM_ARCHITECTURES
from granalign_fast.models.image_layout import ImageLayout

from .folder import read_model_config
from .language_model import DecoderShape, LlmSource, check_architecture, positive
from .layouts import DEFAULTS, image_settings, uniform_config
from .pixels import PatchTower, Pixels
from .tensors import WIDE, check_decoder

_NAMES = {
    "model.visual.": "visual.",
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    # SmolVLM2 has one layout in published and in saved files.
    "model.text_model.": "model.",
    "model.vision_model.": "visual.",
    "model.connector.modality_projection.proj.": "visual.modality_projection.",
}
"""Prefixes of tensor names: in folders that other versions save, and in published files."""


class VisionTower(PatchTower, Protocol):
    """The numbers of a vision tower that every family has."""

    @property
    def out(self) -> int:
        """Values of a token."""

    def first(self, layers: int) -> VisionTower:
        """Return a tower of the first layers, for the self-check."""


@dataclass(frozen=True)
class VlmSource(LlmSource):
    """A model folder: decoder, vision tower and the settings of both.

    `sha256` covers everything that shapes an answer: weights, settings, tokenizer and image size.

    Attributes:
        sections: how many of a head's rotary pairs follow time, how many the row, and how many the
            column; none where a position is one number.
        interleaved: whether pairs follow time, row and column in turn, as long as each has pairs
            left. Otherwise those of an axis stand together.
        vision: the numbers of the vision tower, of the family's own class.
        pixels: from bytes to what the tower takes.
        image_size: height and width of an image of the vision tower: of the export's frames, or
            of their tiles.
        layouts: how a prompt holds a clip, by the number of its frames.
        deepstack: how many of the decoder's first layers are followed by a sum with features of the
            vision tower.
    """

    SETTINGS = (*LlmSource.SETTINGS, PREPROCESSOR)

    sections: tuple[int, ...]
    vision: Any
    pixels: Pixels
    image_size: tuple[int, int]
    layouts: Mapping[int, ImageLayout]
    interleaved: bool = False
    deepstack: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        return token_grid(self.vision, self.image_size)

    @property
    def image_token(self) -> int:
        """The id of the visual tokens of a single frame."""
        return self.layouts[1].runs[0].token

    @property
    def axes(self) -> tuple[int, ...]:
        """Which of time (0), row (1) and column (2) each rotary pair of a head follows."""
        if not self.interleaved:
            return tuple(np.repeat(np.arange(len(self.sections)), self.sections).tolist())
        pairs = sum(self.sections)
        return tuple(pair % 3 if pair < 3 * self.sections[pair % 3] else 0 for pair in range(pairs))


@dataclass(frozen=True)
class VlmFolder:
    """The settings of a folder, as a family's module gets them.

    Attributes:
        folder: the folder.
        config: its ``config.json``, in the layout of transformers 4.57.
        text: the decoder's settings, with the family's defaults.
        architecture: one of `VLM_ARCHITECTURES`.
        processor: settings of the image processor.
        processor_path: the file that they come from.
    """

    folder: Path
    config: dict[str, Any]
    text: dict[str, Any]
    architecture: str
    processor: dict[str, Any]
    processor_path: Path

    @classmethod
    def read(cls, folder: Path) -> VlmFolder:
        """Read the settings; no weight is opened.

        Raises:
            GranAlignError: the folder is no vision-language model that can be exported, or one of
                its files is missing or torn.
        """
        expected = (
            f"a transformers folder of a vision-language model with config.json, {PREPROCESSOR} or "
            f"processor_config.json, tokenizer.json and safetensors"
        )
        path = folder / "config.json"
        config = uniform_config(read_model_config(folder, expected, small="int4"), path)
        processor, processor_path = image_settings(folder)
        if processor is None:
            raise GranAlignError(
                f"{folder}: no {PREPROCESSOR}; expected {expected}; copy or download the model "
                f"again"
            )
        # The decoder's settings are in `text_config` or, in published files, at the top level.
        text = json_object(config, "text_config", path) if config.get("text_config") else config
        # transformers 4.57 saves the architecture among the decoder's settings.
        architectures = config.get("architectures") or text.get("architectures")
        identity = {"model_type": config.get("model_type"), "architectures": architectures}
        kinds = text.get("layer_types") or []
        if set(kinds) - {"full_attention"}:
            raise GranAlignError(
                f"{path}: got layer_types {sorted(set(kinds))}, expected 'full_attention' alone; "
                f"choose a model without sliding windows"
            )
        architecture = check_architecture(identity, VLM_ARCHITECTURES, path)
        defaults = DEFAULTS.get(VLM_ARCHITECTURES[architecture], {})
        text = defaults | text | {"architectures": architectures}
        return cls(folder, config, text, architecture, processor, processor_path)

    @property
    def path(self) -> Path:
        """The file of the settings, for messages."""
        return self.folder / "config.json"

    def vision(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the vision tower, with defaults for those that are left out."""
        return defaults | json_object(self.config, "vision_config", self.path)

    def token(self, key: str, shape: DecoderShape, default: int) -> int:
        """Return a setting that must be the id of a token; the default is transformers'."""
        token = self.config.get(key, default)
        if type(token) is not int or not 0 <= token < shape.vocabulary:
            raise GranAlignError(
                f"{self.path}: got {key} {short_repr(token)}, expected 0 to "
                f"{shape.vocabulary - 1}; copy or download the model again"
            )
        return token

    def open(
        self,
        shape: DecoderShape,
        *,
        vision: VisionTower,
        image_size: tuple[int, int],
        layouts: Mapping[int, ImageLayout],
        **fields: Any,
    ) -> VlmSource:
        """Open and hash the weights, and check the decoder's tensors.

        Args:
            shape: of the decoder.
            vision: of the vision tower.
            image_size: height and width of an image of the vision tower.
            layouts: how a prompt holds a clip.
            fields: further fields of a `VlmSource`.

        Raises:
            GranAlignError: a file is missing or torn, a tensor does not fit the settings, the tower
                does not fit the decoder, or a clip does not fit the context.
        """
        if vision.out != shape.hidden:
            raise GranAlignError(
                f"{self.path}: got out_hidden_size {vision.out}, expected the decoder's "
                f"hidden_size {shape.hidden}"
            )
        frame_size = layouts[1].frame_size(image_size)
        _check_context(layouts[1].visual_tokens, frame_size, shape.context)
        source = VlmSource.open(
            self.folder,
            self.config,
            shape,
            decoder=self.text,
            rename=canonical_name,
            more_settings=[self.processor, list(frame_size)],
            vision=vision,
            image_size=image_size,
            layouts=layouts,
            **fields,
        )
        checkpoint = source.checkpoint
        wide = positive(self.text, "intermediate_size", self.path, checkpoint.shape(WIDE)[0])
        check_decoder(checkpoint, shape, self.text, wide, self.path)
        return source


def canonical_name(name: str) -> str:
    """Return a tensor's name in published files: ``model.layers...``, ``visual...``."""
    for prefix, published in _NAMES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def json_object(config: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return a setting that must be a JSON object."""
    value = config.get(key)
    if not isinstance(value, dict):
        raise GranAlignError(f"{path}: got {key} {value!r}, expected a JSON object")
    return value


def usual_size(vision: PatchTower) -> tuple[int, int]:
    """Return the height and width of frames where none is asked for: those of `IMAGE_GRID`."""
    edge = vision.patch * vision.merge
    return IMAGE_GRID[0] * edge, IMAGE_GRID[1] * edge


def token_grid(vision: PatchTower, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of a frame's tokens.

    Raises:
        GranAlignError: height or width is not a positive multiple of a token's edge.
    """
    edge = vision.patch * vision.merge
    whole = [isinstance(side, int) and side > 0 and not side % edge for side in image_size]
    if len(whole) != 2 or not all(whole):
        shown, usual = ("x".join(map(str, size)) for size in (image_size, usual_size(vision)))
        raise GranAlignError(
            f"image size: got {shown}, expected height x width in positive multiples of "
            f"{edge} pixels, such as {usual}"
        )
    height, width = image_size
    return height // edge, width // edge


def _check_context(tokens: int, image_size: tuple[int, int], context: int) -> None:
    """Raise unless the context can hold a frame and some text."""
    if tokens + TEXT_TOKENS > context:
        height, width = image_size
        raise GranAlignError(
            f"image size: got {height}x{width}, which is {tokens} tokens, expected at most "
            f"{context - TEXT_TOKENS} of the context of {context}; choose a smaller one"
        )


TEXT_TOKENS = 32
"""Tokens that a context must hold besides the image, for a short question and its answer."""
