"""The exporter of sentence encoders: a sentence-transformers folder in, checked ONNX out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export.checks.encoder import (
    Reference,
    check_precision,
    checked_layers,
    transformers_reference,
    validate_sentence_encoder,
)
from granalign_fast.export.checks.encoder_tokens import check_sentence_tokens
from granalign_fast.export.checks.sentences import CALIBRATION, VALIDATION
from granalign_fast.export.checks.tokens import check_token_ids
from granalign_fast.export.checks.transformers import compares, finish
from granalign_fast.export.encoder_families import EncoderFamily, encoder_family
from granalign_fast.export.sources.encoders.encoder import Encoder
from granalign_fast.export.sources.folder import quiet, source_name, tool_versions
from granalign_fast.files import appearing, sha256_of
from granalign_fast.models.graph_contract import PACKED_GRAPH, SENTENCE_GRAPH, WEIGHTS
from granalign_fast.models.manifest import SentenceManifest
from granalign_fast.models.sources import resolve_model

from .progress import Written, watch
from .sources.checkpoint import Checkpoint
from .sources.failures import names_source
from .sources.language_model import positive
from .sources.sentence_encoder import SentenceModel
from .space import check_space, encoder_bytes
from .specs import PRECISIONS, Tolerance

_SPACE = {"fp32": (4, 3), "fp16": (2, 2), "int8": (4, 2)}
"""Bytes of a value, and how many files hold all values at the same time: the graphs, and the
weights of the one that is being written."""

_WIDTHS = {"fp32": 4, "fp16": 2, "int8": 1.1}
"""Bytes of a value where all graphs share one file; int8 has scales in float32."""


@names_source
def export_sentence_encoder(
    source: str | Path | None,
    out: str | Path,
    *,
    precision: str = "fp32",
    check: bool | None = None,
    progress: Callable[[str], None] | None = None,
    written: Written | None = None,
) -> Path:
    """Export a sentence encoder to `out`: ``model.onnx``, ``tokenizer.json``, ``manifest.json``.

    A family that we write in fp32 also gets ``packed.onnx``, the graph of packed texts, which the
    CPU runs. Graphs of the decoder type have their weights in ``model.onnx_data``.

    The graph contains pooling and normalisation. A BERT is checked against NumPy on fixed
    sentences: all layers of a small model, the first ones of a large one. If torch and transformers
    are installed, it is compared with transformers. Only then does the folder get its name. On
    failure nothing is left behind.

    Args:
        source: as for `resolve_model`.
        out: a folder to write; it must not exist.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        check: whether to compare with transformers; None to do so if it is installed.
        progress: called with the name of each step as it begins.
        written: called as weights are written.

    Raises:
        GranAlignError: the source is of another kind, its weights are damaged, `out` exists, the
            disk is too small, or the exported model is too far from its source.
        MissingExtraError: a package that the export needs is not installed.
    """
    tell = progress or (lambda step: None)
    check_precision(precision)
    compared = compares(check)
    out = Path(out)
    # Read and check the source's settings.
    tell("reading")
    folder = resolve_model(source)
    model = SentenceModel.read(folder)
    if compared:
        model = check_sentence_tokens(model)
    name = source_name(source, folder)
    tolerance = PRECISIONS[precision].tolerance
    family = encoder_family(model.config)
    if family is None and check is False:
        raise GranAlignError(
            f"{folder}: got a model that optimum exports, expected a comparison of it with "
            f"transformers; leave out --no-check"
        )
    vocabulary = positive(model.config, "vocab_size", folder / "config.json")
    check_token_ids(folder, model.tokenise, vocabulary, model.max_tokens)
    if family is not None:
        width, copies = (_WIDTHS[precision], 1) if family.shared else _SPACE[precision]
        check_space(out, encoder_bytes(Checkpoint(model.weights.parent), width, copies))
    with appearing(out) as draft:
        (draft / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
        self_check: dict[str, float] = {}
        reference: Reference | None = None
        if family is not None:
            dim, self_check = _export_family(family, model, draft, precision, name, tell, written)
            if compared:
                reference = transformers_reference(model)
        else:
            from granalign_fast.export.optimum.stock_encoder import write_with_optimum

            tell("writing the graph")
            reference, dim = write_with_optimum(model, draft, precision)
        manifest = _manifest(model, draft, precision, name, dim)
        measured = self_check
        if reference is not None:
            tell("comparing with the source")
            with quiet():
                measured = validate_sentence_encoder(draft, reference, tolerance, manifest)
        finish(
            manifest,
            draft,
            compared=reference is not None,
            measured=measured,
            self_check=self_check,
        )
    return out


def _manifest(
    model: SentenceModel, folder: Path, precision: str, name: str, dim: int
) -> SentenceManifest:
    """Return the manifest of a folder's files."""
    return SentenceManifest(
        source=name,
        weights_sha256=model.weights_sha256,
        source_sha256=model.sha256,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        precision=precision,
        dim=dim,
        max_tokens=model.max_tokens,
        prompt=model.prompt,
        query_prompt=None if model.query_prompt == model.prompt else model.query_prompt,
        pooling=model.pooling,
        normalise=model.normalise,
        tools=tool_versions(),
        validation={},
    )


def _export_family(
    family: EncoderFamily,
    model: SentenceModel,
    draft: Path,
    precision: str,
    name: str,
    tell: Callable[[str], None],
    written: Written | None,
) -> tuple[int, dict[str, float]]:
    """Write our own graphs of a model and check them; return an embedding's columns, and errors."""
    from granalign_fast.export.graphs.int8 import measure_ranges

    tell("writing the graph")
    encoder = family.load(
        model.weights, model.config, opened=lambda weights: watch(weights, written)
    )
    head = model.head(encoder.width)
    encoder = encoder.with_head(head)
    layers = checked_layers(encoder.checkpoint)
    exact = family.load(model.weights, model.config, np.float64).with_head(head)
    ranges = None
    if precision == "int8" and family.calibrated:
        ranges = measure_ranges(encoder, model.tokenise(CALIBRATION))
    if layers:
        # A large model's first layers are checked first, in a folder of their own.
        tell("checking the first layers")
        check = draft / "check"
        check.mkdir()
        (check / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
        _write_graphs(family, model, encoder.first(layers), check, precision, ranges)
        exact = exact.first(layers)
        manifest = _manifest(model, check, precision, name, encoder.dim)
        measured = _check(model, exact, check, manifest)
        shutil.rmtree(check)
        tell("writing the graph")
    _write_graphs(family, model, encoder, draft, precision, ranges)
    watch(encoder.checkpoint, None)
    if layers:
        return encoder.dim, measured | {"layers": layers}
    tell("checking the layers")
    manifest = _manifest(model, draft, precision, name, encoder.dim)
    return encoder.dim, _check(model, exact, draft, manifest)


def _write_graphs(
    family: EncoderFamily,
    model: SentenceModel,
    encoder: Encoder,
    folder: Path,
    precision: str,
    ranges: dict[str, Any] | None,
) -> None:
    """Write the graphs of an encoder, each with the weights in it."""
    try:
        import onnx  # noqa: F401 - the graphs need it
    except ImportError:
        raise MissingExtraError("exporting a sentence encoder", "cpu") from None
    from granalign_fast.export.graphs.tensor_file import SpooledTensors, TensorFile

    def build(name: str, tensors: Any) -> Any:
        return family.build(
            encoder,
            pooling=model.pooling,
            normalise=model.normalise,
            precision=precision,
            packed=name == PACKED_GRAPH,
            ranges=ranges,
            tensors=tensors,
        )

    # Packed texts read the weights fewer times: int8's are small, and fp16 is for a GPU.
    names = [SENTENCE_GRAPH] + [PACKED_GRAPH] * (precision == "fp32")
    if family.shared:
        with (folder / WEIGHTS).open("wb") as data:
            shared = TensorFile(data, WEIGHTS)
            for name in names:
                (folder / name).write_bytes(build(name, shared).SerializeToString())
        return
    for name in names:
        spool = folder / "weights"
        with spool.open("w+b") as weights, (folder / name).open("wb") as file:
            tensors = SpooledTensors(weights)
            tensors.save(build(name, tensors), file)
        spool.unlink()


def _check(
    model: SentenceModel, exact: Encoder, folder: Path, manifest: SentenceManifest
) -> dict[str, float]:
    """Compare the graphs of a folder with NumPy in float64."""

    def reference() -> Any:
        # The comparison needs unit length, even if the model leaves it to the caller.
        return exact.embed(model.tokenise(VALIDATION), pooling=model.pooling, normalise=True)

    tolerance: Tolerance = PRECISIONS[manifest.precision].tolerance
    return validate_sentence_encoder(folder, reference, tolerance, manifest)
