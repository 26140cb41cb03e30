"""What a transformers folder of Qwen2.5-VL says about itself, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import (
    CHAT_TEMPLATE,
    IMAGE_PROCESSORS,
    IMAGE_SIZE,
    PREPROCESSOR,
    VLM_ARCHITECTURES,
)

from .folder import read_object
from .language_model import DecoderShape, LlmSource, check_architecture, number, positive

_TEXT_DEFAULTS = {"rope_theta": 1e6, "rms_norm_eps": 1e-5}
"""transformers' own for this family, where they differ from those of other decoders."""

_NAMES = {"model.visual.": "visual.", "model.language_model.": "model."}
"""What names of tensors begin with in newer code, and in the files that are published."""


@dataclass(frozen=True)
class VisionShape:
    """The numbers of a vision tower; `window` is the edge of a window in merged tokens."""

    layers: int
    hidden: int
    heads: int
    out: int
    patch: int
    merge: int
    doubled: int
    window: int
    full_layers: frozenset[int]

    @classmethod
    def read(cls, config: dict[str, Any], place: Path) -> VisionShape:
        """From the ``vision_config`` of a ``config.json``; `place` is named by errors.

        Raises:
            GranAlignError: a setting that the graph does not have.
        """
        for key, wanted in (("hidden_act", "silu"), ("in_channels", 3), ("in_chans", 3)):
            if config.get(key, wanted) != wanted:
                raise GranAlignError(
                    f"{place}: got {key} {config[key]!r} in vision_config, expected {wanted!r}; "
                    f"choose a model without it"
                )
        layers = positive(config, "depth", place)
        hidden = positive(config, "hidden_size", place)
        heads = positive(config, "num_heads", place)
        if hidden % heads or hidden // heads % 4:
            raise GranAlignError(
                f"{place}: got {heads} heads of {hidden} values in vision_config, expected heads "
                f"of equal size, a multiple of 4"
            )
        patch = positive(config, "patch_size", place)
        merge = positive(config, "spatial_merge_size", place)
        window = positive(config, "window_size", place) // merge // patch
        full = config.get("fullatt_block_indexes")
        if not isinstance(full, list) or not all(isinstance(layer, int) for layer in full):
            raise GranAlignError(
                f"{place}: got fullatt_block_indexes {full!r}, expected a list of layers"
            )
        if not window:
            raise GranAlignError(
                f"{place}: got window_size {config['window_size']}, expected at least "
                f"{patch * merge}, a token's edge"
            )
        return cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            out=positive(config, "out_hidden_size", place),
            patch=patch,
            merge=merge,
            doubled=positive(config, "temporal_patch_size", place),
            window=window,
            full_layers=frozenset(full),
        )

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens that a frame becomes.

        Raises:
            GranAlignError: height or width is no positive multiple of a token's edge.
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
    """What becomes of a frame's bytes: ``(byte * rescale - mean) / std``, by channel.

    `resample` is Pillow's number of the filter that resizes frames before.
    """

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    @classmethod
    def read(cls, settings: dict[str, Any], vision: VisionShape, place: Path) -> Pixels:
        """From a ``preprocessor_config.json``; `place` is named by errors.

        Raises:
            GranAlignError: another processor, or one that does not fit the vision tower.
        """
        kind = settings.get("image_processor_type")
        if kind not in IMAGE_PROCESSORS:
            raise GranAlignError(
                f"{place}: got the image processor {kind!r}, expected one of {IMAGE_PROCESSORS}; "
                f"choose a model that uses it"
            )
        edges = {
            "patch_size": (14, vision.patch),
            "merge_size": (2, vision.merge),
            "temporal_patch_size": (2, vision.doubled),
        }
        for key, (default, wanted) in edges.items():
            if settings.get(key, default) != wanted:
                raise GranAlignError(
                    f"{place}: got {key} {settings.get(key, default)!r}, expected {wanted}, as "
                    f"config.json says; copy or download the model again"
                )
        mean: tuple[float, ...] = (0.0,) * 3
        std: tuple[float, ...] = (1.0,) * 3
        rescale = 1.0
        if settings.get("do_normalize", True):
            mean, std = (
                _channels(settings, "image_mean", place),
                _channels(settings, "image_std", place),
            )
        if settings.get("do_rescale", True):
            rescale = number(settings, "rescale_factor", place, default=1 / 255)
        resample = settings.get("resample", 3)
        if resample not in range(6):
            raise GranAlignError(
                f"{place}: got resample {resample!r}, expected a filter of Pillow, 0 to 5"
            )
        if not all(std):
            raise GranAlignError(f"{place}: got image_std {list(std)}, expected no 0 in it")
        return cls(rescale=rescale, mean=mean, std=std, resample=int(resample))


@dataclass(frozen=True)
class VlmSource(LlmSource):
    """A model folder: decoder, vision tower and the settings of both.

    `sha256` covers weights, settings, tokenizer and image size: all that shapes an answer.
    """

    TEXTS = (*LlmSource.TEXTS, CHAT_TEMPLATE)
    SETTINGS = (*LlmSource.SETTINGS, PREPROCESSOR)

    sections: tuple[int, ...]
    """How many of a head's rotary pairs turn with time, how many with the row, and the column."""
    vision: VisionShape
    pixels: Pixels
    image_token: int
    image_size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that a frame becomes."""
        return self.vision.grid(self.image_size)

    @classmethod
    def read(cls, folder: Path, image_size: tuple[int, int] = IMAGE_SIZE) -> VlmSource:
        """Read the settings, open the weights and hash both.

        The image size need not lie between the processor's least and greatest number of pixels,
        which say what it resizes images of any size to.

        Raises:
            GranAlignError: it is not a vision-language model that can be exported, a file of it is
                missing or torn, or the image size does not fit it.
        """
        for name in cls.SETTINGS:
            if not (folder / name).is_file():
                raise GranAlignError(
                    f"{folder}: no {name}; expected a transformers folder of Qwen2.5-VL with "
                    f"config.json, {PREPROCESSOR}, tokenizer.json and safetensors"
                )
        place = folder / "config.json"
        config = read_object(place)
        text = _text_config(config, place)
        named = {"model_type": config.get("model_type"), "architectures": text["architectures"]}
        architecture = check_architecture(named, VLM_ARCHITECTURES, place)
        sections = _sections(text, place)
        # Scaled by sections alone: the frequencies are the plain ones.
        shape = DecoderShape.parse(text | {"rope_scaling": None}, architecture, place)
        if sum(sections) * 2 != shape.head_dim or shape.head_dim * shape.heads != shape.hidden:
            raise GranAlignError(
                f"{place}: got mrope_section {list(sections)} for {shape.heads} heads of "
                f"{shape.head_dim} values, expected sections of half a head, and heads that make "
                f"up the {shape.hidden} values of a token"
            )
        vision = VisionShape.read(_object(config, "vision_config", place), place)
        if vision.out != shape.hidden:
            raise GranAlignError(
                f"{place}: got out_hidden_size {vision.out}, expected the decoder's "
                f"hidden_size {shape.hidden}"
            )
        _check_room(vision.grid(image_size), image_size, shape.context)
        settings = read_object(folder / PREPROCESSOR)
        pixels = Pixels.read(settings, vision, folder / PREPROCESSOR)
        return cls.open(
            folder,
            config,
            shape,
            decoder=text,
            rename=canonical_name,
            more_settings=[settings, list(image_size)],
            sections=sections,
            vision=vision,
            pixels=pixels,
            image_token=_image_token(config, shape.vocabulary, place),
            image_size=image_size,
        )


def canonical_name(name: str) -> str:
    """The name that a tensor has in published files: ``model.layers...``, ``visual...``."""
    for prefix, published in _NAMES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def _text_config(config: dict[str, Any], place: Path) -> dict[str, Any]:
    """The decoder's settings, which lie in ``text_config`` or, as published, beside it."""
    text = _object(config, "text_config", place) if config.get("text_config") else config
    # transformers 4.57 saves the architecture among the decoder's settings.
    architectures = config.get("architectures") or text.get("architectures")
    kinds = text.get("layer_types") or []
    if set(kinds) - {"full_attention"}:
        raise GranAlignError(
            f"{place}: got layer_types {sorted(set(kinds))}, expected 'full_attention' alone; "
            f"choose a model without sliding windows"
        )
    return _TEXT_DEFAULTS | text | {"architectures": architectures}


def _object(config: dict[str, Any], key: str, place: Path) -> dict[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict):
        raise GranAlignError(f"{place}: got {key} {value!r}, expected a JSON object")
    return value


def _sections(text: dict[str, Any], place: Path) -> tuple[int, ...]:
    scaling = text.get("rope_scaling")
    if isinstance(scaling, dict):
        kinds = {scaling.get(key, "default") for key in ("type", "rope_type")}
        sections: Any = scaling.get("mrope_section")
        known = kinds <= {"mrope", "default"} and isinstance(sections, list)
        if known and [type(pairs) for pairs in sections] == [int] * 3 and min(sections) >= 0:
            return tuple(sections)
    raise GranAlignError(
        f"{place}: got rope_scaling {scaling!r}, expected type 'mrope' or 'default' with an "
        f"mrope_section of three numbers; choose a model with it"
    )


def _check_room(grid: tuple[int, int], image_size: tuple[int, int], context: int) -> None:
    tokens = grid[0] * grid[1]
    if tokens + _TEXT_ROOM > context:
        height, width = image_size
        raise GranAlignError(
            f"image size: got {height}x{width}, which is {tokens} tokens, expected at most "
            f"{context - _TEXT_ROOM} of the context of {context}; choose a smaller one"
        )


_TEXT_ROOM = 32
"""Tokens that a context must hold besides the image, for a question and an answer."""


def _image_token(config: dict[str, Any], vocabulary: int, place: Path) -> int:
    token = config.get("image_token_id", 151655)
    if not isinstance(token, int) or not 0 <= token < vocabulary:
        raise GranAlignError(
            f"{place}: got image_token_id {token!r}, expected 0 to {vocabulary - 1}"
        )
    return token


def _channels(settings: dict[str, Any], key: str, place: Path) -> tuple[float, ...]:
    value = settings.get(key)
    numbers = value if isinstance(value, list) and len(value) == 3 else ["none"]
    if all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        return tuple(map(float, numbers))
    raise GranAlignError(f"{place}: got {key} {value!r}, expected three numbers")
