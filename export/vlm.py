"""The exporter of vision-language models: a transformers folder in, checked ONNX out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from granalign_fast.export.checks import vision_language_model as checks
from granalign_fast.export.checks import vlm_reference
from granalign_fast.export.checks.encoder import check_precision
from granalign_fast.export.checks.prompts import check_prompts
from granalign_fast.export.checks.self_check import check_vlm
from granalign_fast.export.checks.tokens import check_token_ids, plain
from granalign_fast.export.checks.transformers import compares, finish
from granalign_fast.export.families import family_of, read_vlm, tower_graphs
from granalign_fast.export.graphs.tensor_file import TensorFile
from granalign_fast.export.graphs.vlm_decoder import EmbeddingGraph, VlmDecoderGraph
from granalign_fast.export.sources.folder import read_tokenizer, source_name
from granalign_fast.export.sources.tokenizer_checks import check_vocabulary
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.files import appearing
from granalign_fast.models.graph_contract import (
    EMBEDDING_GRAPH,
    GRAPH,
    STATIC_GRAPH,
    VISION_WEIGHTS,
    WEIGHTS,
)
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.sources import resolve_model

from .llm import complete
from .progress import Written, watch
from .sources.failures import names_source
from .space import check_space, decoder_bytes
from .specs import VLM_PRECISIONS


@names_source
def export_vlm(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    image_size: tuple[int, int] | None = None,
    check: bool | None = None,
    progress: Callable[[str], None] | None = None,
    written: Written | None = None,
) -> Path:
    """Export a vision-language model to `out`, for frames of one size.

    The folder holds the vision tower twice over one file of weights: ``vision.onnx`` takes frames,
    ``patches.onnx`` takes the pixels of transformers' processor. Where an image of the tower spans
    several frames, ``clips.onnx`` takes clips. The folder holds ``embedding.onnx``, and
    the decoder twice: ``model.onnx``, and ``static.onnx``, which a GPU runs. See `graph_contract`.

    The first layers of the graphs are checked against NumPy. If torch and transformers are
    installed, the whole export is compared with the source, which takes the memory of a float32
    model. Only then does the folder get its name. On failure nothing is left behind. Nothing is
    unpickled, and no code of the source runs.

    Args:
        source: a transformers folder, or ``org/name`` on the hub.
        out: a folder to write; it must not exist.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``, as `VLM_PRECISIONS` says.
        image_size: height and width in pixels, positive multiples of a token's edge, which is 28 in
            Qwen2.5-VL and 32 in Qwen3-VL. The processor's bounds on the number of pixels do not
            apply. None for 12 x 20 tokens. SmolVLM2 takes the size of its tower, which is its
            default, or up to 4 times that in each direction, and cuts single frames into tiles.
        check: whether to compare with transformers; None to do so if it is installed.
        progress: called with the name of each step as it begins.
        written: called as weights are written.

    Raises:
        GranAlignError: the source is of another architecture, has a setting that the graphs lack,
            or is damaged; the image size does not fit; `out` exists; the disk is too small; or the
            exported model is too far from its source.
        MissingExtraError: `check` is True, and torch or transformers is not installed.
    """
    tell = progress or (lambda step: None)
    # Check what is cheap to check before any work.
    check_precision(precision, VLM_PRECISIONS)
    compared, expected = compares(check), None
    out = Path(out)
    # Read and check the source's settings.
    tell("reading")
    folder = resolve_model(source)
    model = read_vlm(folder, image_size)
    check_space(out, decoder_bytes(model, precision))
    tokenizer, words = read_tokenizer(folder), model.shape.vocabulary
    check_vocabulary(tokenizer, folder, words)
    check_token_ids(folder, plain(tokenizer), words)
    model = check_prompts(model, compare=compared)
    tolerance = VLM_PRECISIONS[precision]
    with appearing(out) as draft:
        if compared:
            # Run the source first: its weights leave memory before ours need it.
            tell("running the source")
            expected = vlm_reference.run_vlm_source(model, precision)
        tell("writing the graphs")
        watch(model.checkpoint, written)
        vision = _write_vision(model, draft, precision)
        decoder = _write_decoder(model, draft, precision)
        watch(model.checkpoint, None)
        tell("checking the first layers")
        self_check = check_vlm(
            model, draft, vision, decoder, precision=precision, tolerance=tolerance
        )
        manifest = _manifest(model, draft, precision, source_name(source, folder))
        measured = self_check
        if expected is not None:
            tell("comparing with the source")
            measured = checks.validate_vlm(draft, model, expected, tolerance, manifest)
        finish(manifest, draft, compared=compared, measured=measured, self_check=self_check)
    return out


def write_vlm(model: VlmSource, folder: Path, *, precision: str, name: str) -> VlmManifest:
    """Write graphs, settings and tokenizer to a folder; return the manifest, which is not written.

    Nothing is compared with the source yet.
    """
    _write_vision(model, folder, precision)
    _write_decoder(model, folder, precision)
    return _manifest(model, folder, precision, name)


def _manifest(model: VlmSource, folder: Path, precision: str, name: str) -> VlmManifest:
    """Write settings and tokenizer beside the graphs; return the manifest."""
    return complete(
        VlmManifest,
        model,
        model.shape,
        folder,
        precision,
        name,
        image_size=list(model.image_size),
        layouts={str(count): layout.record() for count, layout in model.layouts.items()},
        resample=model.pixels.resample,
        hidden=model.shape.hidden,
        deepstack=model.deepstack,
    )


def _write_vision(model: VlmSource, folder: Path, precision: str) -> TensorFile:
    """Write the vision tower's graphs over one file of weights; return its store."""
    with (folder / VISION_WEIGHTS).open("wb") as file:
        tensors = TensorFile(file, VISION_WEIGHTS)
        for graph in tower_graphs(model):
            builder = family_of(model).vision_graph
            written = builder(model, tensors, precision=precision, graph=graph)
            _save(written.model(), folder / graph)
    return tensors


def _write_decoder(model: VlmSource, folder: Path, precision: str) -> TensorFile:
    """Write ``embedding.onnx``, ``model.onnx`` and ``static.onnx`` over one file of weights."""
    with (folder / WEIGHTS).open("wb") as file:
        tensors = TensorFile(file, WEIGHTS)
        embedding = EmbeddingGraph(model, tensors, precision=precision)
        _save(embedding.model(), folder / EMBEDDING_GRAPH)
        for graph in (GRAPH, STATIC_GRAPH):
            static = graph == STATIC_GRAPH
            decoder = VlmDecoderGraph(model, tensors, precision=precision, static=static)
            _save(decoder.model(), folder / graph)
    return tensors


def _save(model: Any, path: Path) -> None:
    path.write_bytes(model.SerializeToString())
