"""Settings of a Qwen2.5-VL transformers folder, read and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import (
    IMAGE_PROCESSORS,
    IMAGE_SIZE,
    PREPROCESSOR,
    VLM_ARCHITECTURES,
)

from .folder import read_model_config
from .language_model import DecoderShape, LlmSource, check_architecture, number, positive
from .layouts import DEFAULTS, image_settings, uniform_config
from .tensors import WIDE, check_decoder, check_vision

_NAMES = {
    "model.visual.": "visual.",
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
"""Prefixes of tensor names: in folders that other versions save, and in published files."""


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
        """Read the ``vision_config`` of a ``config.json``; errors name `path`.

        Raises:
            GranAlignError: a setting that the graph lacks, or a senseless value.
        """
        # Settings that the graph lacks; one that is left out has its default.
        config = DEFAULTS["qwen2_5_vl_vision"] | config
        for key, supported in (("hidden_act", "silu"), ("in_channels", 3), ("in_chans", 3)):
            if config.get(key, supported) != supported:
                raise GranAlignError(
                    f"{path}: got {key} {config[key]!r} in vision_config, expected {supported!r}; "
                    f"choose a model without it"
                )
        # Layers and heads; rotary positions need quarters of a head.
        layers = positive(config, "depth", path)
        hidden = positive(config, "hidden_size", path)
        heads = positive(config, "num_heads", path)
        if hidden % heads or hidden // heads % 4:
            raise GranAlignError(
                f"{path}: got {heads} heads of {hidden} values in vision_config, expected heads "
                f"of equal size, a multiple of 4"
            )
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

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of a frame's tokens.

        Raises:
            GranAlignError: height or width is not a positive multiple of a token's edge.
        """
        edge = self.patch * self.merge
        whole = [isinstance(side, int) and side > 0 and not side % edge for side in image_size]
        if len(whole) != 2 or not all(whole):
            shown = "x".join(map(str, image_size))
            raise GranAlignError(
                f"image size: got {shown}, expected height x width in positive multiples of "
                f"{edge} pixels, such as 336x560"
            )
        height, width = image_size
        return height // edge, width // edge


@dataclass(frozen=True)
class Pixels:
    """The arithmetic from a frame's bytes to pixels: ``(byte * rescale - mean) / std``, by channel.

    `resample` is Pillow's number of the filter that resizes frames before.
    """

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    @classmethod
    def read(cls, settings: dict[str, Any], vision: VisionShape, path: Path) -> Pixels:
        """Read the settings of an image processor; errors name `path`.

        Raises:
            GranAlignError: another processor, or one that does not fit the vision tower.
        """
        kind = settings.get("image_processor_type")
        if kind not in IMAGE_PROCESSORS:
            raise GranAlignError(
                f"{path}: got the image processor {kind!r}, expected one of {IMAGE_PROCESSORS}; "
                f"choose a model that uses it"
            )
        # The processor must cut patches of the tower's size.
        edges = {
            "patch_size": (14, vision.patch),
            "merge_size": (2, vision.merge),
            "temporal_patch_size": (2, vision.temporal),
        }
        for key, (default, expected) in edges.items():
            if settings.get(key, default) != expected:
                raise GranAlignError(
                    f"{path}: got {key} {settings.get(key, default)!r}, expected {expected}, as "
                    f"config.json says; copy or download the model again"
                )
        # A step that the processor leaves out changes nothing.
        mean: tuple[float, ...] = (0.0,) * 3
        std: tuple[float, ...] = (1.0,) * 3
        rescale = 1.0
        if settings.get("do_normalize", True):
            mean, std = (
                _channels(settings, "image_mean", path, _CLIP_MEAN),
                _channels(settings, "image_std", path, _CLIP_STD),
            )
        if settings.get("do_rescale", True):
            rescale = number(settings, "rescale_factor", path, default=1 / 255)
        resample = settings.get("resample", 3)
        if resample not in range(6):
            raise GranAlignError(
                f"{path}: got resample {resample!r}, expected a filter of Pillow, 0 to 5"
            )
        if not all(std):
            raise GranAlignError(f"{path}: got image_std {list(std)}, expected no 0 in it")
        return cls(rescale=rescale, mean=mean, std=std, resample=int(resample))


@dataclass(frozen=True)
class VlmSource(LlmSource):
    """A model folder: decoder, vision tower and the settings of both.

    `sha256` covers everything that shapes an answer: weights, settings, tokenizer and image size.
    """

    SETTINGS = (*LlmSource.SETTINGS, PREPROCESSOR)

    sections: tuple[int, ...]
    """How many of a head's rotary pairs follow time, how many the row, and how many the column."""
    vision: VisionShape
    pixels: Pixels
    image_token: int
    image_size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        return self.vision.grid(self.image_size)

    @classmethod
    def read(cls, folder: Path, image_size: tuple[int, int] = IMAGE_SIZE) -> VlmSource:
        """Read the settings, open the weights and hash both.

        The processor's bounds on the number of pixels apply to images of any size. The image size
        of an export may lie outside them.

        Raises:
            GranAlignError: the folder is no vision-language model that can be exported, one of its
                files is missing or torn, or the image size does not fit it.
        """
        # Every file of settings must exist.
        expected = (
            f"a transformers folder of Qwen2.5-VL with config.json, {PREPROCESSOR} or "
            f"processor_config.json, tokenizer.json and safetensors"
        )
        path = folder / "config.json"
        config = uniform_config(read_model_config(folder, expected, small="int4"), path)
        settings, settings_path = image_settings(folder)
        if settings is None:
            raise GranAlignError(
                f"{folder}: no {PREPROCESSOR}; expected {expected}; copy or download the model "
                f"again"
            )
        # The decoder's settings.
        text = _text_config(config, path)
        identity = {"model_type": config.get("model_type"), "architectures": text["architectures"]}
        architecture = check_architecture(identity, VLM_ARCHITECTURES, path)
        sections = _sections(text, path)
        # Only the sections of rope_scaling apply here: the frequencies are not scaled.
        shape = DecoderShape.parse(text | {"rope_scaling": None}, architecture, path)
        if sum(sections) * 2 != shape.head_dim or shape.head_dim * shape.heads != shape.hidden:
            raise GranAlignError(
                f"{path}: got mrope_section {list(sections)} for {shape.heads} heads of "
                f"{shape.head_dim} values, expected sections of half a head, and heads that make "
                f"up the {shape.hidden} values of a token"
            )
        # The vision tower's, and those of the image processor.
        vision = VisionShape.read(_object(config, "vision_config", path), path)
        if vision.out != shape.hidden:
            raise GranAlignError(
                f"{path}: got out_hidden_size {vision.out}, expected the decoder's "
                f"hidden_size {shape.hidden}"
            )
        _check_context(vision.grid(image_size), image_size, shape.context)
        pixels = Pixels.read(settings or {}, vision, settings_path)
        source = cls.open(
            folder,
            config,
            shape,
            decoder=text,
            rename=canonical_name,
            more_settings=[settings, list(image_size)],
            sections=sections,
            vision=vision,
            pixels=pixels,
            image_token=_image_token(config, shape.vocabulary, path),
            image_size=image_size,
        )
        wide = positive(text, "intermediate_size", path, source.checkpoint.shape(WIDE)[0])
        check_decoder(source.checkpoint, shape, text, wide, path)
        tower = DEFAULTS["qwen2_5_vl_vision"] | _object(config, "vision_config", path)
        wide = positive(tower, "intermediate_size", path, default=3420)
        check_vision(source.checkpoint, tower, wide, path)
        return source


def canonical_name(name: str) -> str:
    """Return a tensor's name in published files: ``model.layers...``, ``visual...``."""
    for prefix, published in _NAMES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def _text_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the decoder's settings, from ``text_config`` or, in published files, the top level."""
    text = _object(config, "text_config", path) if config.get("text_config") else config
    # transformers 4.57 saves the architecture among the decoder's settings.
    architectures = config.get("architectures") or text.get("architectures")
    kinds = text.get("layer_types") or []
    if set(kinds) - {"full_attention"}:
        raise GranAlignError(
            f"{path}: got layer_types {sorted(set(kinds))}, expected 'full_attention' alone; "
            f"choose a model without sliding windows"
        )
    return DEFAULTS["qwen2_5_vl"] | text | {"architectures": architectures}


def _object(config: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return a setting that must be a JSON object."""
    value = config.get(key)
    if not isinstance(value, dict):
        raise GranAlignError(f"{path}: got {key} {value!r}, expected a JSON object")
    return value


def _sections(text: dict[str, Any], path: Path) -> tuple[int, ...]:
    """Return the three rotary sections of ``rope_scaling``."""
    scaling = text.get("rope_scaling")
    if isinstance(scaling, dict):
        kinds = {scaling.get(key, "default") for key in ("type", "rope_type")}
        sections: Any = scaling.get("mrope_section")
        known = kinds <= {"mrope", "default"} and isinstance(sections, list)
        if known and [type(pairs) for pairs in sections] == [int] * 3 and min(sections) >= 0:
            return tuple(sections)
    raise GranAlignError(
        f"{path}: got rope_scaling {scaling!r}, expected type 'mrope' or 'default' with an "
        f"mrope_section of three numbers; choose a model with it"
    )


def _check_context(grid: tuple[int, int], image_size: tuple[int, int], context: int) -> None:
    """Raise unless the context can hold a frame and some text."""
    tokens = grid[0] * grid[1]
    if tokens + _TEXT_TOKENS > context:
        height, width = image_size
        raise GranAlignError(
            f"image size: got {height}x{width}, which is {tokens} tokens, expected at most "
            f"{context - _TEXT_TOKENS} of the context of {context}; choose a smaller one"
        )


_TEXT_TOKENS = 32
"""Tokens that a context must hold besides the image, for a short question and its answer."""


def _image_token(config: dict[str, Any], vocabulary: int, path: Path) -> int:
    """Return the id of the image token; the default is transformers'."""
    token = config.get("image_token_id", 151655)
    if not isinstance(token, int) or not 0 <= token < vocabulary:
        raise GranAlignError(
            f"{path}: got image_token_id {token!r}, expected 0 to {vocabulary - 1}"
        )
    return token


_CLIP_MEAN, _CLIP_STD = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)
"""The processor's means and standard deviations where its settings leave them out."""


def _channels(
    settings: dict[str, Any], key: str, path: Path, default: list[float]
) -> tuple[float, ...]:
    """Return a setting that must be one number for each of three channels."""
    value = settings.get(key, default)
    numbers = value if isinstance(value, list) and len(value) == 3 else ["none"]
    if all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        return tuple(map(float, numbers))
    raise GranAlignError(f"{path}: got {key} {value!r}, expected three numbers")
