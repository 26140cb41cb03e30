"""The exporter of vision-language models: a Qwen2.5-VL folder in, checked ONNX out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import MissingExtraError
from granalign_fast.export.checks.encoder import check_precision
from granalign_fast.export.graphs.tensor_file import TensorFile
from granalign_fast.export.graphs.vision_tower import VisionGraph
from granalign_fast.export.graphs.vlm_decoder import EmbeddingGraph, VlmDecoderGraph
from granalign_fast.export.sources.folder import source_name
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.files import appearing
from granalign_fast.models.graph_contract import (
    EMBEDDING_GRAPH,
    GRAPH,
    PATCHES_GRAPH,
    STATIC_GRAPH,
    VISION_GRAPH,
    VISION_WEIGHTS,
    WEIGHTS,
)
from granalign_fast.models.manifest import LlmManifest, VlmManifest
from granalign_fast.models.sources import resolve_model

from .llm import complete
from .specs import IMAGE_SIZE, VLM_PRECISIONS


def export_vlm(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    image_size: tuple[int, int] = IMAGE_SIZE,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Export a Qwen2.5-VL model to `out`, for frames of one size.

    The folder holds the vision tower twice over one file of weights: ``vision.onnx`` takes frames,
    ``patches.onnx`` takes the pixels of transformers' processor. It holds ``embedding.onnx``, and
    the decoder twice: ``model.onnx``, and ``static.onnx``, which a GPU runs. See `graph_contract`.

    The exported model is compared with the source before the folder gets its name. On failure
    nothing is left behind. Nothing is unpickled, and no code of the source runs.

    Args:
        source: a transformers folder, or ``org/name`` on the hub.
        out: a folder to write; it must not exist.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``, as `VLM_PRECISIONS` says.
        image_size: height and width in pixels, positive multiples of a token's edge (28). The
            processor's bounds on the number of pixels do not apply.
        progress: called with the name of each step as it begins.

    Raises:
        GranAlignError: the source is of another architecture, has a setting that the graphs lack,
            or is damaged; the image size does not fit; `out` exists; or the exported model is too
            far from its source.
        MissingExtraError: torch or transformers, which run the source, is not installed.
    """
    tell = progress or (lambda step: None)
    # Check what is cheap to check before any work.
    check_precision(precision, VLM_PRECISIONS)
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise MissingExtraError("exporting a vision-language model", "optimum") from None
    from granalign_fast.export.checks.vision_language_model import run_vlm_source, validate_vlm

    out = Path(out)
    # Read and check the source's settings.
    tell("reading")
    folder = resolve_model(source)
    model = VlmSource.read(folder, image_size)
    with appearing(out) as draft:
        # Run the source first: its weights leave memory before ours need it.
        tell("running the source")
        expected = run_vlm_source(model, precision)
        tell("writing the graphs")
        manifest = write_vlm(model, draft, precision=precision, name=source_name(source, folder))
        # Compare; the manifest then gets the measured errors.
        tell("comparing with the source")
        measured = validate_vlm(draft, model, expected, VLM_PRECISIONS[precision])
        replace(manifest, validation=measured).write(draft)
    return out


def write_vlm(model: VlmSource, folder: Path, *, precision: str, name: str) -> LlmManifest:
    """Write graphs, settings, tokenizer and manifest to a folder; return the manifest.

    Nothing is compared with the source yet.
    """
    _write_vision(model, folder, precision)
    _write_decoder(model, folder, precision)
    return complete(
        VlmManifest,
        model,
        model.shape,
        folder,
        precision,
        name,
        image_size=list(model.image_size),
        image_grid=list(model.grid),
        image_token=model.image_token,
        resample=model.pixels.resample,
        hidden=model.shape.hidden,
    )


def _write_vision(model: VlmSource, folder: Path, precision: str) -> None:
    """Write ``vision.onnx`` and ``patches.onnx`` over one file of weights."""
    with (folder / VISION_WEIGHTS).open("wb") as file:
        tensors = TensorFile(file, VISION_WEIGHTS)
        for graph, frames in ((VISION_GRAPH, True), (PATCHES_GRAPH, False)):
            builder = VisionGraph(model, tensors, precision=precision, frames=frames)
            _save(builder.model(), folder / graph)


def _write_decoder(model: VlmSource, folder: Path, precision: str) -> None:
    """Write ``embedding.onnx``, ``model.onnx`` and ``static.onnx`` over one file of weights."""
    with (folder / WEIGHTS).open("wb") as file:
        tensors = TensorFile(file, WEIGHTS)
        embedding = EmbeddingGraph(model, tensors, precision=precision)
        _save(embedding.model(), folder / EMBEDDING_GRAPH)
        for graph in (GRAPH, STATIC_GRAPH):
            static = graph == STATIC_GRAPH
            decoder = VlmDecoderGraph(model, tensors, precision=precision, static=static)
            _save(decoder.model(), folder / graph)


def _save(model: Any, path: Path) -> None:
    path.write_bytes(model.SerializeToString())
