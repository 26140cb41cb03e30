"""Model folders: what every export reads of its source, and how its own folder comes to be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import appearing as appearing
from granalign_fast.files import read_json
from granalign_fast.models.encoder import load_tokenizer
from granalign_fast.models.sources import PACKAGED_MODELS

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
    """The JSON object that a file holds."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise GranAlignError(f"{path}: got a {type(value).__name__}, expected a JSON object")
    return value


def read_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a source folder."""
    if not (folder / "tokenizer.json").is_file():
        raise GranAlignError(
            f"{folder}: no tokenizer.json; save the model again with its fast tokenizer"
        )
    return load_tokenizer(folder, "copy it again")


def source_name(source: str | Path | None, folder: Path) -> str:
    """What a manifest calls the source: no local path."""
    if source is None:
        return next(iter(PACKAGED_MODELS))
    return folder.name if Path(source).is_dir() else str(source)


def tool_versions() -> dict[str, str]:
    """The versions of the packages that shape an export, as far as they are installed."""
    found = {}
    for tool in _TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks and progress bars of torch and transformers; validation decides."""
    try:
        from transformers.utils import logging
    except ImportError:  # whoever needs it says so
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
