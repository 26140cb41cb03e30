"""Settings of a CLIP or SigLIP transformers folder, read and checked.

A setting that a folder lacks has transformers' default: published configurations hold little more
than what differs from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.graphs.clip_shapes import ImageShape, Levels, TextShape
from granalign_fast.export.specs import CLIP_FAMILIES, CLIP_PROCESSORS, PREPROCESSOR
from granalign_fast.models.frame_encoder import Preprocessing
from granalign_fast.models.sources import hash_weights

from .checkpoint import Checkpoint
from .folder import read_model_config
from .language_model import number, positive
from .layouts import image_settings, uniform_config
from .tokenizer import SourceTokenizer

_LAYERS = {"num_hidden_layers": 12, "num_attention_heads": 12, "eos_token_id": 49407}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_BASE = {"hidden_size": 768, "intermediate_size": 3072}
_SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text": _LAYERS | _CLIP | _SMALL | {"vocab_size": 49408, "max_position_embeddings": 77},
        "vision": _LAYERS | _CLIP | _BASE | {"image_size": 224, "patch_size": 32},
    },
    "siglip": {
        "text": _LAYERS | _SIGLIP | _BASE | {"vocab_size": 32000, "max_position_embeddings": 64},
        "vision": _LAYERS | _SIGLIP | _BASE | {"image_size": 224, "patch_size": 16},
    },
}
"""transformers' defaults of both towers, by family. 4.57 and 5 have the same."""

_PROJECTION = 512
"""transformers' default of CLIP's ``projection_dim``."""

_PROCESSOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "SiglipImageProcessor": {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
}
"""Settings of image processors where ``preprocessor_config.json`` has none."""
_OF_FAMILY = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}

ROOT = "text_model.embeddings.token_embedding.weight"
"""A tensor that every such model has."""

_EXPECTED = (
    f"a transformers folder of CLIP or SigLIP with config.json, {PREPROCESSOR} or "
    f"processor_config.json, tokenizer.json and model.safetensors"
)


@dataclass(frozen=True)
class ClipSource:
    """A folder of CLIP or SigLIP: settings of both towers, image processor, tokenizer and weights.

    Attributes:
        folder: the folder.
        config: its ``config.json``.
        family: one of `CLIP_FAMILIES`.
        image: the numbers of the image tower.
        text: those of the text tower.
        preprocessing: how frames are resized and cropped.
        tokenizer: its tokenizer.
        max_tokens: length of the longest text, special tokens included.
        weights_sha256: of the weights' files.
        checkpoint: the weights.
    """

    folder: Path
    config: dict[str, Any]
    family: str
    image: ImageShape
    text: TextShape
    preprocessing: Preprocessing
    tokenizer: SourceTokenizer
    max_tokens: int
    weights_sha256: str
    checkpoint: Checkpoint

    @classmethod
    def read(cls, folder: Path) -> ClipSource:
        """Read the settings, open the weights and hash both.

        Raises:
            GranAlignError: the folder holds another model, a setting that the graphs lack, or a
                missing or damaged file.
        """
        config = _read_config(folder)
        family, path = str(config["model_type"]), folder / "config.json"
        checkpoint = Checkpoint(folder).rooted(ROOT)
        # Both towers.
        vision, text = (_tower(config, family, name, path) for name in ("vision", "text"))
        outs = vision["hidden_size"], positive(text, "projection_size", path, text["hidden_size"])
        if family == "clip":
            outs = (positive(config, "projection_dim", path, _PROJECTION),) * 2
        # The image processor.
        processor = _Processor.read(folder, family)
        tokenizer, positions = SourceTokenizer.read(folder, config), text["max_position_embeddings"]
        return cls(
            folder=folder,
            config=config,
            family=family,
            image=ImageShape.from_config(vision, outs[0], processor.levels()),
            text=TextShape.from_config(text, outs[1]),
            preprocessing=processor.preprocessing(vision["image_size"]),
            tokenizer=tokenizer,
            max_tokens=min(positions, tokenizer.max_tokens or positions),
            weights_sha256=hash_weights(checkpoint.files),
            checkpoint=checkpoint,
        )

    @property
    def lower(self) -> bool:
        """Whether texts are lower-cased first.

        All SigLIPs were trained on lower-cased text. The tokenizer of SigLIP 2 leaves it to the
        caller, and transformers 4.57 does not do it.
        """
        return self.family == "siglip" and self.tokenizer.settings.get("do_lower_case") is not False

    @cached_property
    def tokenizer_json(self) -> str:
        """The tokenizer, with the model's length, padding and case in it."""
        padded = CLIP_FAMILIES[self.family].padded
        return self.tokenizer.fitted(self.max_tokens, padded=padded, lower=self.lower)

    @property
    def sha256(self) -> str:
        """Hash of everything that shapes an embedding: weights, tokenizer and settings."""
        pixels = asdict(self.preprocessing) | asdict(self.image.levels)
        parts = [self.weights_sha256, self.tokenizer_json, self.config, pixels]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_tokenizer(self, tokenizer: SourceTokenizer) -> ClipSource:
        """Return the model with another tokenizer."""
        return replace(self, tokenizer=tokenizer)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, cut and padded to the model's length."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def _read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``, and raise unless the folder holds a CLIP or a SigLIP."""
    path = folder / "config.json"
    config = uniform_config(read_model_config(folder, _EXPECTED, small="fp16"), path)
    if config.get("model_type") == "siglip2":
        raise GranAlignError(
            f"{folder}: got a SigLIP 2 of the variant NaFlex, whose images have no fixed size, "
            f"expected a fixed size; choose one such as google/siglip2-base-patch16-224"
        )
    if config.get("model_type") not in CLIP_FAMILIES:
        raise GranAlignError(
            f"{folder}: got a {config.get('model_type')!r} model, expected one of "
            f"{sorted(CLIP_FAMILIES)}; choose a model of these families"
        )
    return config


def _tower(config: dict[str, Any], family: str, name: str, path: Path) -> dict[str, Any]:
    """Return all settings of a tower, defaults included.

    CLIP's first configurations have a second object, ``text_config_dict`` or
    ``vision_config_dict``. It counts, with the defaults of what it lacks.
    """
    defaults = _DEFAULTS[family][name] | ({"num_channels": 3} if name == "vision" else {})
    settings = dict(defaults)
    later = config.get(f"{name}_config_dict") if family == "clip" else None
    for key, given in ((f"{name}_config", config.get(f"{name}_config")), ("", later)):
        if given is None:
            continue
        if not isinstance(given, dict):
            raise GranAlignError(f"{path}: got {key} {given!r}, expected a JSON object")
        settings |= (defaults if given is later else {}) | given
    for key in defaults:
        if key not in ("hidden_act", "layer_norm_eps", "eos_token_id"):
            positive(settings, key, path)
    if settings.get("vision_use_head", True) is not True:
        raise GranAlignError(
            f"{path}: got vision_use_head {settings['vision_use_head']!r}, expected true: without "
            f"its head the tower has no embedding of a frame; choose another model"
        )
    number(settings, "layer_norm_eps", path, 0.0)
    if not isinstance(settings["eos_token_id"], int):
        raise GranAlignError(
            f"{path}: got eos_token_id {settings['eos_token_id']!r}, expected a token id"
        )
    if settings["hidden_size"] % settings["num_attention_heads"]:
        raise GranAlignError(
            f"{path}: got {settings['num_attention_heads']} heads for the {name} tower's "
            f"hidden_size {settings['hidden_size']}, expected a divisor of it"
        )
    return settings


@dataclass(frozen=True)
class _Processor:
    """The settings of the image processor, defaults included, and the path of their file."""

    settings: dict[str, Any]
    path: Path

    @classmethod
    def read(cls, folder: Path, family: str) -> _Processor:
        """Read the settings; raise if they are of another processor."""
        given, path = image_settings(folder)
        if given is None:
            raise GranAlignError(f"{folder}: no {PREPROCESSOR}; expected {_EXPECTED}")
        # Older folders name a feature extractor; fast processors and those of transformers 5 that
        # use Pillow have suffixes.
        kind = given.get("image_processor_type")
        if kind is None:
            kind = given.get("feature_extractor_type") or _OF_FAMILY[family]
            kind = str(kind).replace("FeatureExtractor", "ImageProcessor")
        kind = str(kind).removesuffix("Fast").removesuffix("Pil")
        if kind not in CLIP_PROCESSORS:
            raise GranAlignError(
                f"{path}: got the image processor {kind}, expected one of {CLIP_PROCESSORS}; "
                f"choose a model that uses it"
            )
        settings = {"do_resize": True, "resample": 3, "do_rescale": True, "do_normalize": True}
        settings |= {"rescale_factor": 1 / 255} | _PROCESSOR_DEFAULTS[kind]
        settings |= {key: value for key, value in given.items() if value is not None}
        if kind == "SiglipImageProcessor":
            settings["do_center_crop"] = False
        return cls(settings, path)

    def preprocessing(self, side: int) -> Preprocessing:
        """Return how frames are resized and cropped; raise unless that gives `side` pixels."""
        # A size is a shortest edge, or height and width; older files have a number.
        shape = _size(self.settings["size"], "shortest_edge")
        edges = shape.get("shortest_edge"), shape.get("height"), shape.get("width")
        resize = tuple(edge for edge in edges if isinstance(edge, int) and edge > 0)
        crop: tuple[Any, ...] = resize
        if self.settings["do_center_crop"]:
            cut = _size(self.settings["crop_size"], "height", "width")
            crop = cut.get("height"), cut.get("width")
        if (
            not self.settings["do_resize"]
            or crop != (side, side)
            or min(resize, default=0) < side
            or len(resize) > 2
        ):
            raise GranAlignError(
                f"{self.path}: got frames resized to {shape} and "
                f"cut to {crop}, expected pixels of {side} x {side}, as the model's config says"
            )
        if self.settings["resample"] not in range(6):
            raise GranAlignError(
                f"{self.path}: got resample {self.settings['resample']!r}, expected a filter of "
                f"Pillow, 0 to 5"
            )
        return Preprocessing(resize=resize, crop=crop, resample=int(self.settings["resample"]))

    def levels(self) -> Levels:
        """Return how bytes are scaled and shifted."""
        settings = self.settings
        normalised = settings["do_normalize"]
        levels = Levels(
            rescale=self._numbers("rescale_factor")[0] if settings["do_rescale"] else 1.0,
            mean=self._numbers("image_mean") if normalised else (0.0,) * 3,
            std=self._numbers("image_std") if normalised else (1.0,) * 3,
        )
        if not all(levels.std):
            raise GranAlignError(
                f"{self.path}: got image_std {list(levels.std)}, expected no 0 in it"
            )
        return levels

    def _numbers(self, key: str) -> tuple[float, ...]:
        """Return a setting of three numbers; one number stands for all three colours."""
        value = self.settings[key]
        numbers = value if isinstance(value, list) else [value] * 3
        if len(numbers) == 3 and all(type(number) in (int, float) for number in numbers):
            return tuple(numbers)
        raise GranAlignError(f"{self.path}: got {key} {value!r}, expected three numbers")


def _size(value: Any, *names: str) -> dict[str, Any]:
    """Return a size as an object; a number is the size of each of `names`."""
    return dict(value) if isinstance(value, dict) else dict.fromkeys(names, value)
