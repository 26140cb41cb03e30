"""Choose the models of a run: the user's, the package's miniatures, or random ones."""

from __future__ import annotations

from pathlib import Path

from granalign_fast.models.manifest import LLM, VLM
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.pipeline import ModelFolder

from . import random_models
from .runner import Bench

_RANDOM = ("llama-mini", "qwen2.5-vl-mini")
_KEY = "models"


def models_of(bench: Bench, cache: PrefixCache | None = None) -> ModelFolder:
    """Return the models of this run.

    The first that exists of: the folder of ``--models``; the random models of ``--random``; the
    miniatures that come with the package; random models of about their size. Each folder's files
    are checked once.

    Args:
        bench: the run.
        cache: a prefix cache for these models; by default all suites share one.

    Raises:
        GranAlignError: the folder holds no model, or there is no space for a random one.
    """
    if cache is not None:
        return ModelFolder(_folder(bench), device=bench.settings.device, cache=cache)
    if _KEY not in bench.shared:
        bench.shared[_KEY] = ModelFolder(_folder(bench), device=bench.settings.device)
    models: ModelFolder = bench.shared[_KEY]
    bench.note(f"models: {_name(bench)}")
    return models


def _folder(bench: Bench) -> Path:
    if bench.settings.models is not None:
        return bench.settings.models
    packaged = miniatures()
    if packaged is not None and not bench.settings.random:
        return packaged
    folder = bench.folder / "random"
    chosen = {random_models.shape_of(name).kind: name for name in _RANDOM}
    chosen |= {random_models.shape_of(name).kind: name for name in bench.settings.random}
    for kind in (LLM, VLM):
        random_models.write_export(chosen[kind], folder)
    return folder


def _name(bench: Bench) -> str:
    if bench.settings.models is not None:
        return bench.settings.models.name
    if bench.settings.random or miniatures() is None:
        chosen = bench.settings.random or _RANDOM
        return f"{', '.join(chosen)} of random weights, whose answers run to their full length"
    return "the package's miniatures"


def miniatures() -> Path | None:
    """Return the folder of the trained miniatures; None if this installation lacks them."""
    try:
        from granalign_fast import miniatures as package
    except ImportError:
        return None
    folder = Path(package.__file__).parent / "models"
    return folder if any(folder.glob("*/manifest.json")) else None
