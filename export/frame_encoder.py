"""The exporter of frame encoders: CLIP or SigLIP in, a checked folder of two ONNX towers out."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from granalign_fast.export.checks.encoder import check_precision, checked_layers
from granalign_fast.export.checks.encoder_tokens import check_frame_tokens
from granalign_fast.export.checks.frame_encoder import (
    numpy_embeddings,
    transformers_embeddings,
    validate_clip,
)
from granalign_fast.export.checks.tokens import check_token_ids
from granalign_fast.export.checks.transformers import compares, finish
from granalign_fast.export.graphs.clip_towers import write_towers
from granalign_fast.export.sources.clip import ClipSource
from granalign_fast.export.sources.folder import source_name, tool_versions
from granalign_fast.files import appearing, sha256_of
from granalign_fast.models.manifest import FrameEncoderManifest
from granalign_fast.models.sources import resolve_model

from .progress import Written, watch
from .sources.failures import names_source
from .space import check_space, encoder_bytes
from .specs import CLIP_PRECISIONS, PRECISIONS, Tolerance

_WIDTHS = {"fp32": 4, "fp16": 2, "int8": 1.1}
"""Bytes of a weight; int8 has scales, and some small tensors in float32."""


@names_source
def export_clip(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    check: bool | None = None,
    progress: Callable[[str], None] | None = None,
    written: Written | None = None,
) -> Path:
    """Export CLIP or SigLIP to `out`: both towers, ``tokenizer.json``, ``manifest.json``.

    ``image.onnx`` takes `graph_contract.FRAMES`, ``text.onnx`` takes `graph_contract.INPUT_IDS`.
    Both give `graph_contract.EMBEDDINGS`, which the graph normalises.

    The export is checked against NumPy: all layers of a small model, the first ones of a large one.
    If torch and transformers are installed, it is compared with transformers, from frames and
    sentences to embeddings. Only then does the folder get its name. On failure nothing is left
    behind.

    Args:
        source: a folder as transformers saves it, with safetensors, a fast tokenizer and
            ``preprocessor_config.json``; or a hub id as for `resolve_model`.
        out: a folder to write; it must not exist.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``; embeddings are float32 in all.
        check: whether to compare with transformers; None to do so if it is installed.
        progress: called with the name of each step as it begins.
        written: called as weights are written.

    Raises:
        GranAlignError: the source is of another kind or damaged, `out` exists, the disk is too
            small, or the exported model is too far from its source.
        MissingExtraError: `check` is True, and torch or transformers is not installed.
    """
    tell = progress or (lambda step: None)
    check_precision(precision, CLIP_PRECISIONS)
    compared, expected = compares(check), None
    out = Path(out)
    # Read and check the source's settings.
    tell("reading")
    folder = resolve_model(source)
    model = ClipSource.read(folder)
    if compared:
        model = check_frame_tokens(model)
    check_token_ids(folder, model.tokenise, model.text.words, model.text.tokens)
    check_space(out, encoder_bytes(model.checkpoint, _WIDTHS[precision]))
    tolerance = PRECISIONS[precision].tolerance
    with appearing(out) as draft:
        if compared:
            tell("running the source")
            expected = transformers_embeddings(model)
            # Free the source before the towers need memory. Cycles inside torch hold it until a
            # collection.
            gc.collect()
        # A large model's first layers are checked first, in a folder of their own.
        layers, self_check = checked_layers(model.checkpoint), {}
        if layers:
            tell("checking the first layers")
            self_check = _check_first(model, draft / "check", precision, layers, tolerance)
        tell("writing the graphs")
        watch(model.checkpoint, written)
        manifest = _write(model, draft, precision, source_name(source, folder))
        watch(model.checkpoint, None)
        if not layers:
            tell("checking the layers")
            self_check = validate_clip(draft, numpy_embeddings(model), tolerance, manifest)
        measured = self_check
        if expected is not None:
            tell("comparing with the source")
            measured = validate_clip(draft, expected, tolerance, manifest)
        finish(manifest, draft, compared=compared, measured=measured, self_check=self_check)
    return out


def _write(model: ClipSource, folder: Path, precision: str, name: str) -> FrameEncoderManifest:
    """Write both towers and the tokenizer; return the manifest of all that shapes an embedding."""
    (folder / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
    shapes = model.image, model.text
    write_towers(folder, model.family, shapes, model.checkpoint, precision)
    return FrameEncoderManifest(
        source=name,
        weights_sha256=model.weights_sha256,
        source_sha256=model.sha256,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        precision=precision,
        dim=model.image.out,
        max_tokens=model.max_tokens,
        preprocessing=asdict(model.preprocessing),
        tools=tool_versions(),
        validation={},
    )


def _check_first(
    model: ClipSource, folder: Path, precision: str, layers: int, tolerance: Tolerance
) -> dict[str, float]:
    """Check the first layers of both towers in a folder that is deleted afterwards."""
    folder.mkdir()
    few = replace(
        model,
        image=replace(model.image, layers=replace(model.image.layers, layers=layers)),
        text=replace(model.text, layers=replace(model.text.layers, layers=layers)),
    )
    manifest = _write(few, folder, precision, "check")
    measured = validate_clip(folder, numpy_embeddings(few), tolerance, manifest)
    shutil.rmtree(folder)
    return measured | {"layers": layers}
