"""Settings as transformers 5 saves them, rewritten as version 4.57 saves them.

Version 5 reads both layouts. Version 4.57 takes no notice of the new names and uses its defaults,
without a word. The exporters therefore read the older layout alone, and their folders hold it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import PREPROCESSOR, VLM_ARCHITECTURES

from .folder import read_object

_PROCESSOR = "processor_config.json"
"""File of all of a processor's settings; in version 5 those of images are nested in it."""

_NESTED = {"image_processor": PREPROCESSOR, "video_processor": "video_preprocessor_config.json"}
"""Nested settings of a processor, and the file that version 4.57 keeps them in."""

_LOCAL_THETA = {"gemma3_text": "rope_local_base_freq", "modernbert": "local_rope_theta"}
"""Families with a second base of rotary positions, and their setting for it."""

_GLOBAL_THETA = {"modernbert": "global_rope_theta"}
"""Families whose first base of rotary positions has another name than ``rope_theta``."""

_FULL = "full_attention"

_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    },
    "qwen2_5_vl": {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    "qwen2_5_vl_vision": {
        "depth": 32,
        "hidden_size": 3584,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 4,
    },
    "qwen3_vl": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
    },
    "qwen3_vl_vision": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "smolvlm": _LLAMA,
    "smolvlm_vision": {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
"""Values of settings that ``config.json`` leaves out, by family; both versions agree on them."""


def uniform_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of a ``config.json`` in the layout of version 4.57; errors name `path`.

    Settings that have this layout already are returned as they are.

    Raises:
        GranAlignError: rotary positions that this layout has no names for.
    """
    config = _uniform_rope(config, path)
    if config.get("model_type") == "modernbert" and isinstance(config.get("layer_types"), list):
        config = _uniform_layers(config, config["layer_types"])
    # The settings of a vision tower: its rotary positions are always the same.
    vision = config.get("vision_config")
    if isinstance(vision, dict) and "rope_parameters" in vision:
        config = config | {"vision_config": _uniform_vision(vision, path)}
    # The decoder's settings; version 5 has tied embeddings at the top alone, version 4.57 there or
    # here.
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    text = _uniform_rope(text, path)
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if tied is not None and config.get("model_type") in VLM_ARCHITECTURES.values():
        text = text | {"tie_word_embeddings": tied}
        config = config | {"tie_word_embeddings": tied}
    return config | {"text_config": text}


def image_settings(folder: Path) -> tuple[dict[str, Any] | None, Path]:
    """Return the settings of a folder's image processor in either layout, and their file.

    Without any, the settings are None. If both layouts are there, the newer one counts, as in
    transformers 5.
    """
    path = folder / _PROCESSOR
    settings = read_object(path).get("image_processor") if path.is_file() else None
    if not isinstance(settings, dict):
        path = folder / PREPROCESSOR
        settings = read_object(path) if path.is_file() else None
    # Version 5 names the class after the library that it resizes with.
    kind = settings.get("image_processor_type") if settings else None
    if isinstance(settings, dict) and isinstance(kind, str) and kind.endswith("Pil"):
        settings = settings | {"image_processor_type": kind.removesuffix("Pil")}
    return settings, path


def uniform_files(folder: Path) -> dict[str, Any]:
    """Return the JSON files of a folder that differ in the layout of version 4.57, by name.

    Raises:
        GranAlignError: as `uniform_config`, or a file is torn.
    """
    files: dict[str, Any] = {}

    def keep(name: str, uniform: Any) -> None:
        old = read_object(folder / name) if (folder / name).is_file() else None
        if uniform is not None and uniform != old:
            files[name] = uniform

    config = folder / "config.json"
    if config.is_file():
        keep(config.name, uniform_config(read_object(config), config))
    if (folder / "tokenizer_config.json").is_file():
        keep("tokenizer_config.json", _uniform_tokenizer(folder))
    keep(PREPROCESSOR, image_settings(folder)[0])
    if (folder / _PROCESSOR).is_file():
        settings = read_object(folder / _PROCESSOR)
        video = settings.get("video_processor")
        keep(_NESTED["video_processor"], video if isinstance(video, dict) else None)
        keep(_PROCESSOR, {key: value for key, value in settings.items() if key not in _NESTED})
    return files


@contextmanager
def uniform_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that both versions of transformers read alike.

    This is the folder itself, or a temporary one with links to its files where some of them had to
    be rewritten.
    """
    files = uniform_files(folder)
    if not files:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="granalign-source-") as temporary:
        for path in folder.iterdir():
            if path.name not in files:
                (Path(temporary) / path.name).symlink_to(path.resolve())
        for name, settings in files.items():
            write_settings(Path(temporary) / name, settings)
        yield Path(temporary)


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write settings as transformers does: sorted, with two spaces."""
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _uniform_rope(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return settings with ``rope_theta`` and ``rope_scaling`` in place of ``rope_parameters``."""
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and "rope_theta" in scaling:
        # Version 4.57 would overlook it.
        config = config | {"rope_scaling": {k: v for k, v in scaling.items() if k != "rope_theta"}}
        if config.get("rope_theta", scaling["rope_theta"]) != scaling["rope_theta"]:
            raise GranAlignError(
                f"{path}: got rope_theta {config['rope_theta']!r}, and {scaling['rope_theta']!r} "
                f"in rope_scaling, expected one value; delete the wrong one"
            )
        config["rope_theta"] = scaling["rope_theta"]
    if "rope_parameters" not in config:
        return config
    config = dict(config)
    parameters = config.pop("rope_parameters")
    if parameters is None:
        return config
    if not isinstance(parameters, dict):
        raise GranAlignError(
            f"{path}: got rope_parameters {parameters!r}, expected an object with rope_type and "
            f"rope_theta; copy or download the model again"
        )
    # There may be one set of parameters for each type of layer.
    nested = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    parameters = dict(_one_of(nested, config, path) if nested else parameters)
    older = bool(config.get("rope_scaling"))  # it goes first, as in transformers
    for key in ("rope_theta", "partial_rotary_factor"):
        if (value := parameters.pop(key, None)) is not None:
            if key == "rope_theta":
                key = _GLOBAL_THETA.get(str(config.get("model_type")), key)
            config[key] = config.get(key, value) if older else value
    if older:
        return config
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "longrope":
        # Version 4.57 expects three fields, and the usual context beside them.
        if (usual := parameters.pop("original_max_position_embeddings", None)) is not None:
            config.setdefault("original_max_position_embeddings", usual)
        if config.get("model_type") == "phi3":
            parameters = {key: parameters[key] for key in _LONGROPE if key in parameters}
            parameters["type"] = kind
    plain = kind == "default" and parameters.keys() <= {"rope_type", "type"}
    config["rope_scaling"] = None if plain else parameters
    return config


_LONGROPE = ("short_factor", "long_factor")
"""The fields of ``longrope`` besides its type."""


def _uniform_layers(config: dict[str, Any], kinds: list[Any]) -> dict[str, Any]:
    """Return a ModernBERT's settings with how many layers there are to one of full attention.

    Version 4.57 takes no notice of `layer_types`. An order that it has no setting for stays.
    """
    full = [i for i, kind in enumerate(kinds) if kind == _FULL]
    every = full[1] if len(full) > 1 else len(kinds)
    if every and full == list(range(0, len(kinds), every)):
        return config | {"global_attn_every_n_layers": every}
    return config


def _one_of(
    nested: dict[str, dict[str, Any]], config: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Return the parameters of all layers, or of those with full attention in a known family."""
    kinds = config.get("layer_types")
    used = {key: nested[key] for key in nested if not isinstance(kinds, list) or key in kinds}
    sets = list((used or nested).values())
    known = _LOCAL_THETA.get(str(config.get("model_type")))
    if known is None and all(parameters == sets[0] for parameters in sets):
        return sets[0]
    local = nested.get("sliding_attention", {})
    plain = local.get("rope_type", "default") == "default"
    if known is None or not plain or set(nested) - {_FULL, "sliding_attention"}:
        raise GranAlignError(
            f"{path}: got rope_parameters {nested!r}, which differ from layer to layer, expected "
            f"one set for all layers; choose a model with one"
        )
    config[known] = local.get("rope_theta", 10000.0)
    return nested.get(_FULL, {})


def _uniform_vision(vision: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a vision tower's settings without its rotary positions, which have no setting."""
    vision = dict(vision)
    parameters = vision.pop("rope_parameters") or {}
    known = {"rope_type": ("axial", "default"), "rope_theta": (10000.0,)}
    if not isinstance(parameters, dict) or any(
        parameters.get(key, values[0]) not in values for key, values in known.items()
    ):
        raise GranAlignError(
            f"{path}: got rope_parameters {parameters!r} in vision_config, expected rope_type "
            f"'axial' and rope_theta 10000; choose a model with these"
        )
    return vision


def _uniform_tokenizer(folder: Path) -> dict[str, Any]:
    """Return ``tokenizer_config.json`` with names of classes and fields that version 4.57 knows."""
    settings = read_object(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings = settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, list):
        more = settings.get("additional_special_tokens") or []
        settings = {key: value for key, value in settings.items() if key != "extra_special_tokens"}
        settings["additional_special_tokens"] = [*more, *(t for t in extra if t not in more)]
    return settings
