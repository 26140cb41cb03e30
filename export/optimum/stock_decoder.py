"""The export of language models without a graph of ours: optimum's stock export, in fp32."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.export.checks.language_model import load_source
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.language_model import (
    LlmShape,
    ModelSource,
    read_config,
)
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.specs import LLM_ARCHITECTURES
from granalign_fast.models.graph_contract import GRAPH, past_names

_TASK = "text-generation-with-past"
"""optimum's name of a decoder with a key/value cache."""

_CONTEXTS = ("max_position_embeddings", "max_seq_len", "seq_length")
"""Families' names of the setting for the greatest number of tokens."""

_WINDOWS = ("sliding_window", "window_size")
"""Families' names of the setting for an attention window: how many tokens a layer looks back."""


@dataclass(frozen=True)
class CacheShape:
    """Shape of the key/value cache: (rows, kv_heads, tokens, head_dim) in every layer."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class StockSource(ModelSource):
    """A model folder of an architecture, or with a setting, that optimum can export.

    Its context is the number of tokens for which the graph is correct. It may be less than the
    model's:

    - An attention window counts all positions between two tokens, so also the padding of shorter
      prompts after a prefix. Up to the window's size no token is lost.
    - ``longrope`` has other frequencies for long texts. A traced graph has one branch, which is the
      one for short texts.
    """

    @classmethod
    def read(cls, folder: Path) -> StockSource:
        """Read the settings, open the weights and hash both.

        Raises:
            GranAlignError: optimum has no export of such models, or a file is missing or torn.
            MissingExtraError: optimum, transformers or torch is not installed.
        """
        config = read_config(folder)
        names, kind = config.get("architectures"), config.get("model_type")
        architecture = str(names[0]) if isinstance(names, list) and names else "none"
        shape = _read_shape(folder, architecture, f"architecture {architecture!r} of type {kind!r}")
        return cls.open(folder, config, shape)


def write_stock(source: ModelSource, folder: Path) -> CacheShape:
    """Write ``model.onnx`` to a folder, with ``model.onnx_data`` if it is large.

    Returns:
        The shape of the graph's cache.

    Raises:
        GranAlignError: optimum fails, or the model's cache is not keys and values of equal shape.
    """
    import onnx
    from optimum.exporters.onnx import onnx_export_from_model

    # Let optimum write to a folder of its own.
    raw = folder / "raw"
    try:
        with _quiet():
            # `main_export` would load the model with PyTorch's own attention, see `load_source`.
            model, _ = load_source(source.folder)
            model.config.use_cache = True
            onnx_export_from_model(
                model,
                raw,
                task=_TASK,
                custom_onnx_configs={"model": _onnx_config(model.config)},
                do_validation=False,  # our own check follows
            )
        del model
        graph = onnx.load(raw / GRAPH, load_external_data=False).graph
    except Exception as error:  # tracing can raise anything
        raise GranAlignError(
            f"{source.folder}: optimum cannot export it ({one_line(error)}); "
            f"choose a model that it supports"
        ) from None
    # Keep the graph and its weights; optimum's copies of settings and tokenizer are not used.
    for path in raw.glob(f"{GRAPH}*"):
        path.rename(folder / path.name)
    shutil.rmtree(raw)
    return _cache_shape(graph, source.folder)


def _read_shape(folder: Path, architecture: str, got: str) -> LlmShape:
    """Read a model's numbers; raise unless optimum can export its architecture.

    Args:
        folder: the model's folder.
        architecture: from its ``config.json``.
        got: the architecture and type in words, for messages.
    """
    path = folder / "config.json"
    try:
        from optimum.exporters.onnx import onnx_export_from_model  # noqa: F401
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        raise MissingExtraError(f"exporting a model of {got}", "optimum") from None
    try:
        with _quiet(), uniform_folder(folder) as uniform:
            # A `PretrainedConfig`, which knows the defaults of its family.
            settings = AutoConfig.from_pretrained(
                uniform, local_files_only=True, trust_remote_code=False
            )
            _onnx_config(settings)
        # transformers would load the weights of another head too, and fill missing ones with random
        # numbers.
        if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(settings.model_type) != architecture:
            raise ValueError("it is no causal language model")
        text = settings.get_text_config()
        return LlmShape(architecture, int(text.vocab_size), _context(text))
    except Exception as error:  # unknown types and unsuitable settings can raise anything
        raise GranAlignError(
            f"{path}: got {got}, expected one of {sorted(LLM_ARCHITECTURES)}, or one that "
            f"optimum can export ({one_line(error)}); choose a model of these families"
        ) from None


def _context(settings: Any) -> int:
    """Return the number of tokens for which the traced graph is correct, see `StockSource`."""

    def positive_values(*names: str) -> list[int]:
        values = [getattr(settings, name, None) for name in names]
        return [value for value in values if isinstance(value, int) and value > 0]

    limits = positive_values(*_CONTEXTS)
    if not limits:
        raise ValueError("it has no max_position_embeddings")
    scaling = getattr(settings, "rope_scaling", None) or {}
    if "longrope" in (scaling.get("rope_type"), scaling.get("type")):
        limits += positive_values("original_max_position_embeddings")
    return min(limits + positive_values(*_WINDOWS))


def _onnx_config(settings: Any) -> Any:
    """Return optimum's description of the graph, with position ids if the model accepts them.

    optimum's own description of the Gemmas has none: their graph would count the padding after a
    prefix as tokens.
    """
    from optimum.exporters.onnx.config import TextDecoderWithPositionIdsOnnxConfig as WithPositions
    from optimum.exporters.tasks import TasksManager
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    make = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=settings.model_type, task=_TASK, library_name="transformers"
    )
    stock = make(settings)
    kind = type(stock)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if takes_positions and not issubclass(kind, WithPositions):
        kind = type(kind.__name__, (WithPositions, kind), {})
    return kind(settings, task=stock.task, use_past=True, use_past_in_inputs=True)


def _cache_shape(graph: Any, folder: Path) -> CacheShape:
    """Read the cache's shape from a graph's inputs; raise unless all layers have the same."""
    dims = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]  # 0: dynamic
        for value in graph.input
        if value.name.startswith("past_key_values.")
    }
    layers, first = len(dims) // 2, next(iter(dims.values()), [])
    names = [name for layer in range(layers) for name in past_names(layer)]
    if dims != dict.fromkeys(names, first) or len(first) != 4 or not (first[1] and first[3]):
        raise GranAlignError(
            f"{folder}: got a cache of {dims} from optimum's export, expected keys and values of "
            f"one shape (rows, heads, tokens, size) in every layer; choose another model"
        )
    return CacheShape(layers, kv_heads=first[1], head_dim=first[3])


@contextmanager
def _quiet() -> Iterator[None]:
    """Do the same as `quiet`, and suppress optimum's logger as well."""
    from optimum.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
