"""The exporter of sentence encoders: a sentence-transformers folder in, checked ONNX out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import MissingExtraError
from granalign_fast.export.checks.encoder import (
    Reference,
    check_precision,
    validate_sentence_encoder,
)
from granalign_fast.export.checks.encoder_tokens import check_sentence_tokens
from granalign_fast.export.checks.sentences import CALIBRATION, VALIDATION
from granalign_fast.export.sources.bert import Bert
from granalign_fast.export.sources.folder import source_name, tool_versions
from granalign_fast.files import appearing, sha256_of
from granalign_fast.models.graph_contract import PACKED_GRAPH
from granalign_fast.models.manifest import SentenceManifest
from granalign_fast.models.sources import resolve_model

from .sources.sentence_encoder import SentenceModel
from .specs import PRECISIONS


def export_sentence_encoder(
    source: str | Path | None,
    out: str | Path,
    *,
    precision: str = "fp32",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Export a sentence encoder to `out`: ``model.onnx``, ``tokenizer.json``, ``manifest.json``.

    A BERT in fp32 also gets ``packed.onnx``, the graph of packed texts, which the CPU runs.

    The graph contains pooling and normalisation. The exported model is compared with the source on
    fixed sentences before the folder gets its name. On failure nothing is left behind.

    Args:
        source: as for `resolve_model`.
        out: a folder to write; it must not exist.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        progress: called with the name of each step as it begins.

    Raises:
        GranAlignError: the source is of another kind, its weights are damaged, `out` exists, or
            the exported model is too far from its source.
        MissingExtraError: a package that the export needs is not installed.
    """
    tell = progress or (lambda step: None)
    check_precision(precision)
    out = Path(out)
    # Read and check the source's settings.
    tell("reading")
    folder = resolve_model(source)
    model = check_sentence_tokens(SentenceModel.read(folder))
    with appearing(out) as draft:
        # Write tokenizer, graph and manifest.
        (draft / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
        tell("writing the graph")
        if model.is_plain_bert:
            reference, dim = _write_bert(model, draft, precision)
        else:
            from granalign_fast.export.optimum.stock_encoder import write_with_optimum

            reference, dim = write_with_optimum(model, draft, precision)
        manifest = SentenceManifest(
            source=source_name(source, folder),
            weights_sha256=model.weights_sha256,
            source_sha256=model.sha256,
            files={path.name: sha256_of(path) for path in sorted(draft.iterdir())},
            precision=precision,
            dim=dim,
            max_tokens=model.max_tokens,
            prompt=model.prompt,
            pooling=model.pooling,
            normalise=model.normalise,
            tools=tool_versions(),
            validation={},
        )
        manifest.write(draft)
        # Compare; the manifest then gets the measured errors.
        tell("comparing with the source")
        tolerance = PRECISIONS[precision].tolerance
        measured = validate_sentence_encoder(draft, reference, tolerance)
        replace(manifest, validation=measured).write(draft)
    return out


def _write_bert(model: SentenceModel, draft: Path, precision: str) -> tuple[Reference, int]:
    """Write our own graph of a BERT; return its reference and the columns of an embedding."""
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("exporting a sentence encoder", "cpu") from None
    from granalign_fast.export.graphs.bert import build_bert
    from granalign_fast.export.graphs.int8 import measure_ranges

    bert = Bert.load(model.weights, model.config)
    ranges = measure_ranges(bert, model.tokenise(CALIBRATION)) if precision == "int8" else None
    # Packed texts read the weights fewer times: int8's are small, and fp16 is for a GPU.
    for name in ["model.onnx"] + [PACKED_GRAPH] * (precision == "fp32"):
        graph = build_bert(
            bert,
            pooling=model.pooling,
            normalise=model.normalise,
            precision=precision,
            packed=name == PACKED_GRAPH,
            ranges=ranges,
        )
        onnx.save(graph, draft / name)

    def reference() -> Any:
        # The comparison needs unit length, even if the model leaves it to the caller.
        return bert.embed(model.tokenise(VALIDATION), pooling=model.pooling, normalise=True)

    return reference, bert.dim
