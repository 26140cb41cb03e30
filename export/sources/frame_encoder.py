"""Settings of a CLIP or SigLIP folder, read and checked: without torch and transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.graphs.clip_shapes import Levels
from granalign_fast.export.specs import CLIP_FAMILIES, CLIP_PROCESSORS, PREPROCESSOR, ClipFamily
from granalign_fast.models.frame_encoder import Preprocessing
from granalign_fast.models.sources import hash_weights, weights_files

from .folder import read_model_config
from .layouts import image_settings, uniform_config
from .tokenizer import SourceTokenizer

ROOT = "text_model.embeddings.token_embedding.weight"
"""A tensor that every such model has."""

_EXPECTED = (
    f"a transformers folder of CLIP or SigLIP with config.json, {PREPROCESSOR} or "
    f"processor_config.json, tokenizer.json and model.safetensors"
)

_POSITIONS = {"clip": 77, "siglip": 64}
"""Length of the longest text where ``config.json`` does not say."""

_CLIP, _SIGLIP = CLIP_PROCESSORS

_SHORT_OF_TYPE = {"clip": _CLIP, "siglip": _SIGLIP}
"""Image processor of each ``model_type``, where a folder names none."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    _CLIP: {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    _SIGLIP: {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}
_COMMON_DEFAULTS = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""What an image processor does where a folder does not say."""


@dataclass(frozen=True)
class FrameModel:
    """A CLIP or SigLIP folder: its settings and tokenizer.

    Attributes:
        folder: the folder.
        config: its ``config.json``.
        weights_sha256: of the weights' files.
        tokenizer: its tokenizer.
        max_tokens: length of the longest text, special tokens included.
        preprocessing: how frames are resized and cropped.
        levels: how bytes are scaled and shifted.
    """

    folder: Path
    config: dict[str, Any]
    weights_sha256: str
    tokenizer: SourceTokenizer
    max_tokens: int
    preprocessing: Preprocessing
    levels: Levels

    @classmethod
    def read(cls, folder: Path) -> FrameModel:
        """Read a folder's settings and hash its weights.

        Raises:
            GranAlignError: the folder is no CLIP or SigLIP that can be exported.
        """
        config = read_model_config(folder, _EXPECTED, small="fp16")
        config = uniform_config(config, folder / "config.json")
        kind = config.get("model_type")
        if kind not in CLIP_FAMILIES:
            raise GranAlignError(
                f"{folder}: got a {kind!r} model, expected one of {sorted(CLIP_FAMILIES)}; choose "
                f"a model of these families"
            )
        weights_sha256 = hash_weights(weights_files(folder))
        settings, path = image_settings(folder)
        if settings is None:
            raise GranAlignError(f"{folder}: no {PREPROCESSOR}; expected {_EXPECTED}")
        side = _number(config, "vision_config", "image_size", 224, folder)
        positions = _number(
            config, "text_config", "max_position_embeddings", _POSITIONS[kind], folder
        )
        tokenizer = SourceTokenizer.read(folder, config)
        return cls(
            folder=folder,
            config=config,
            weights_sha256=weights_sha256,
            tokenizer=tokenizer,
            max_tokens=min(positions, tokenizer.max_tokens or positions),
            preprocessing=_preprocessing(settings, kind, side, path),
            levels=_levels(settings, kind, path),
        )

    @property
    def family(self) -> ClipFamily:
        """How models of its kind were trained."""
        return CLIP_FAMILIES[self.config["model_type"]]

    @property
    def lower(self) -> bool:
        """Whether texts are lower-cased first.

        All SigLIPs were trained on lower-cased text. The tokenizer of SigLIP 2 leaves it to the
        caller, and transformers 4.57 does not do it.
        """
        stated = self.tokenizer.settings.get("do_lower_case")
        return self.config["model_type"] == "siglip" and stated is not False

    @cached_property
    def tokenizer_json(self) -> str:
        """The tokenizer, with the model's length, padding and case in it."""
        return self.tokenizer.fitted(self.max_tokens, padded=self.family.padded, lower=self.lower)

    @property
    def sha256(self) -> str:
        """Hash of everything that shapes an embedding: weights, tokenizer and settings."""
        pixels = asdict(self.preprocessing) | asdict(self.levels)
        parts = [self.weights_sha256, self.tokenizer_json, self.config, pixels]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_tokenizer(self, tokenizer: SourceTokenizer) -> FrameModel:
        """Return the model with another tokenizer."""
        return replace(self, tokenizer=tokenizer)

    def tokenise(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, cut and padded to the model's length."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def _number(config: dict[str, Any], part: str, key: str, default: int, folder: Path) -> int:
    """Return a positive integer of a tower's settings."""
    tower = config.get(part) or {}
    value = tower.get(key, default) if isinstance(tower, dict) else None
    if not isinstance(value, int) or value < 1:
        raise GranAlignError(
            f"{folder / 'config.json'}: got {key} {value!r} in {part}, expected a positive integer"
        )
    return value


def _processor(settings: Mapping[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """Return all settings of the image processor, with its defaults.

    Raises:
        GranAlignError: it is another processor.
    """
    older = str(settings.get("feature_extractor_type") or "")
    named = settings.get("image_processor_type") or older.replace(
        "FeatureExtractor", "ImageProcessor"
    )
    # The fast ones and those of transformers 5 differ in how they resize, not in their settings.
    name = str(named or _SHORT_OF_TYPE[kind]).removesuffix("Fast").removesuffix("Pil")
    if name not in _DEFAULTS:
        raise GranAlignError(
            f"{path}: got the image processor {name}, expected one of {CLIP_PROCESSORS}; choose a "
            f"model that uses it"
        )
    stated = {key: value for key, value in settings.items() if value is not None}
    return _COMMON_DEFAULTS | _DEFAULTS[name] | stated | {"name": name}


def _preprocessing(settings: Mapping[str, Any], kind: str, side: int, path: Path) -> Preprocessing:
    """Return how the image processor resizes and crops frames.

    Raises:
        GranAlignError: it is another processor, or its pixels do not fit the model.
    """
    processor = _processor(settings, kind, path)
    # A size is a shortest edge, or height and width.
    shape, cut = processor["size"], processor.get("crop_size")
    resize = (shape,) if processor["name"] == _CLIP and _is_edge(shape) else _edges(shape)
    crop = (cut, cut) if _is_edge(cut) else _edges(cut)
    crop = crop if processor["do_center_crop"] else resize
    fits = resize is not None and crop == (side, side) and min(resize) >= side
    if resize is None or crop is None or not fits or not processor["do_resize"]:
        raise GranAlignError(
            f"{path}: got frames resized to {shape} and cut to {crop or cut}, expected pixels of "
            f"{side} x {side}, as the model's config says"
        )
    return Preprocessing(resize=resize, crop=(side, side), resample=int(processor["resample"]))


def _is_edge(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _edges(size: Any) -> tuple[int, ...] | None:
    """Return the edges of a size: (shortest,) or (height, width); None if it is neither."""
    if isinstance(size, list) and len(size) == 2 and all(map(_is_edge, size)):
        return tuple(size)
    named = {key: edge for key, edge in size.items() if edge} if isinstance(size, dict) else {}
    for keys in (("shortest_edge",), ("height", "width")):
        if set(keys) == set(named) and all(map(_is_edge, named.values())):
            return tuple(named[key] for key in keys)
    return None


def _levels(settings: Mapping[str, Any], kind: str, path: Path) -> Levels:
    """Return how the image processor scales and shifts bytes."""
    processor = _processor(settings, kind, path)
    plain = not processor["do_normalize"]
    try:
        return Levels(
            rescale=float(processor["rescale_factor"]) if processor["do_rescale"] else 1.0,
            mean=(0.0,) * 3 if plain else _channels(processor["image_mean"]),
            std=(1.0,) * 3 if plain else _channels(processor["image_std"]),
        )
    except (TypeError, ValueError):
        raise GranAlignError(
            f"{path}: got rescale_factor {processor['rescale_factor']!r}, image_mean "
            f"{processor['image_mean']!r} and image_std {processor['image_std']!r}, expected a "
            f"number and three numbers each; copy or download the model again"
        ) from None


def _channels(value: Any) -> tuple[float, ...]:
    """Return three numbers from three, or from one for all channels."""
    numbers = tuple(map(float, value if isinstance(value, list) else [value] * 3))
    if len(numbers) != 3:
        raise ValueError
    return numbers
