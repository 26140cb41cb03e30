"""Helpers that all exports share: JSON, tokenizer and name of a source, versions of tools."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json
from granalign_fast.models.encoder import load_tokenizer
from granalign_fast.models.sources import PACKAGED_MODELS

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
