"""Helpers that all exports share: JSON, tokenizer and name of a source, versions of tools."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.files import read_json
from granalign_fast.models.sources import PACKAGED_MODELS
from granalign_fast.models.tokenizer_file import load_tokenizer
from granalign_fast.parsing.limits import MOST_SETTING

# Packages that shape an export; a manifest names their versions.
_TOOLS = (
    "granalign-fast",
    "numpy",
    "onnx",
    "onnxruntime",
    "optimum",
    "optimum-onnx",
    "pillow",
    "tokenizers",
    "torch",
    "transformers",
)


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object that a file holds."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise GranAlignError(f"{path}: got a {type(value).__name__}, expected a JSON object")
    return value


def read_model_config(folder: Path, expected: str, small: str) -> dict[str, Any]:
    """Read the ``config.json`` of a whole model with plain weights.

    Every exporter reads it here, so that an adapter, a quantised model or a folder of another
    library is called by its name, with a remedy that helps.

    Args:
        folder: the model's folder.
        expected: what the exporter expects, such as ``"a transformers folder of CLIP"``.
        small: the exporter's precision with the smallest weights.

    Raises:
        GranAlignError: there is no ``config.json``, or the model is an adapter or quantised.
    """
    if (path := folder / "adapter_config.json").is_file():
        base = read_object(path).get("base_model_name_or_path")
        raise GranAlignError(
            f"{folder}: got an adapter of PEFT for {base}, expected a whole model; merge it with "
            f"PEFT's merge_and_unload(), save that without adapter_config.json, and name its folder"
        )
    if not (folder / "config.json").is_file():
        raise GranAlignError(f"{folder}: {_no_config(folder)}no config.json; expected {expected}")
    config = read_object(folder / "config.json")
    _check_numbers(config, folder / "config.json")
    if method := _quantisation(folder, config):
        raise GranAlignError(
            f"{folder}: got a model quantised by {method}, expected weights in float32, float16 or "
            f"bfloat16; name the original model, with --precision {small} for small weights"
        )
    return config


def _check_numbers(config: dict[str, Any], path: Path) -> None:
    """Raise for a size that no model has: arrays and loops are as long as the settings say."""
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(key, one) for one in value]
        elif isinstance(value, int) and key.endswith(_SIZES) and abs(value) > MOST_SETTING:
            raise GranAlignError(
                f"{path}: got {short_repr(key)} {short_repr(value)}, expected at most "
                f"{MOST_SETTING:,}; copy or download the model again"
            )


_SIZES = ("_size", "_layers", "_heads", "_dim", "_embeddings", "_channels", "_token_id", "depth")
"""Ends of the names of settings that arrays and loops are as long as."""

_FOREIGN = (
    (
        "open_clip_config.json",
        "a folder of open_clip; choose the model's folder for transformers; ",
    ),
    ("model_index.json", "a pipeline of diffusers; name the sub-folder of the model; "),
    ("*.gguf", "GGUF; name the folder of the original model; "),
)
"""Files of folders without ``config.json``, what they are, and the remedy."""


def _no_config(folder: Path) -> str:
    """Return what a folder without ``config.json`` is, and the remedy; empty if it is not known."""
    for pattern, what in _FOREIGN:
        if any(folder.glob(pattern)):
            return f"got {what}"
    if (folder / "modules.json").exists():  # then a sub-folder is one module, such as Dense
        return ""
    # sentence-transformers and some hubs keep a model in a sub-folder.
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    inner = [name for name in inner if any((folder / name).glob("*.safetensors"))]
    return f"got a folder of folders; name {folder / inner[0]}; " if inner else ""


_METHODS = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "gptq": "GPTQ",
}
"""Names of quantisation methods, by ``quant_method`` of ``config.json``."""

_QUANTISED = ("quantization_config", "quantization", "compression_config")
"""Keys of ``config.json`` that describe a quantisation, by transformers, MLX and others."""

_QUANTISED_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
"""Files of older quantised folders, whose ``config.json`` says nothing."""


def _quantisation(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the method and the bits of a model's quantisation; None if it has none."""
    for part in (config, config.get("text_config")):
        for key in _QUANTISED:
            settings = part.get(key) if isinstance(part, dict) else None
            if settings:
                return _describe(settings if isinstance(settings, dict) else {})
    return next(
        (name for file, name in _QUANTISED_FILES.items() if (folder / file).is_file()), None
    )


def _describe(settings: dict[str, Any]) -> str:
    """Return the method and the bits of a ``quantization_config``."""
    loaded = [bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")]
    method = settings.get("quant_method") or ("bitsandbytes" if loaded else "an unknown method")
    bits = settings.get("bits") or next(iter(loaded), None)
    name = _METHODS.get(str(method).lower(), str(method))
    return f"{name} ({bits} bits)" if bits else name


def read_tokenizer(folder: Path) -> Any:
    """Load the `tokenizers.Tokenizer` of a source folder."""
    if not (folder / "tokenizer.json").is_file():
        raise GranAlignError(
            f"{folder}: no tokenizer.json; save the model again with its fast tokenizer"
        )
    return load_tokenizer(folder, "copy it again")


def source_name(source: str | Path | None, folder: Path) -> str:
    """Return the source's name for a manifest: a folder's name or a hub id, never a local path.

    A hub id has the commit that was fetched, which is the name of its folder.
    """
    if source is None:
        return next(iter(PACKAGED_MODELS))
    if Path(source).is_dir():
        return folder.name
    name = str(source)
    return name if name in PACKAGED_MODELS else f"{name.partition('@')[0]}@{folder.name}"


def tool_versions() -> dict[str, str]:
    """Return the versions of the installed packages that shape an export."""
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return versions


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and progress bars of torch and transformers; the comparison decides."""
    try:
        from transformers.utils import logging
    except ImportError:  # the code that needs transformers raises
        yield
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
