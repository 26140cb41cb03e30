"""The exporter of language models: a causal language model's folder in, checked ONNX out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.encoder import check_precision
from granalign_fast.export.checks.language_model import run_source, validate_llm
from granalign_fast.export.checks.prompts import check_prompts
from granalign_fast.export.checks.self_check import check_decoder
from granalign_fast.export.checks.tokens import check_token_ids, plain
from granalign_fast.export.checks.transformers import OLDEST, compares, finish
from granalign_fast.export.graphs.decoder import DecoderGraph
from granalign_fast.export.graphs.tensor_file import TensorFile
from granalign_fast.export.optimum.stock_decoder import CacheShape, StockSource, write_stock
from granalign_fast.export.sources.folder import read_tokenizer, source_name, tool_versions
from granalign_fast.export.sources.language_model import (
    DecoderShape,
    LlmSource,
    ModelSource,
    UnsupportedError,
    read_config,
)
from granalign_fast.export.sources.tokenizer_checks import check_vocabulary
from granalign_fast.files import appearing, sha256_of
from granalign_fast.models.graph_contract import GRAPH, STATIC_GRAPH, WEIGHTS
from granalign_fast.models.manifest import LlmManifest
from granalign_fast.models.sources import resolve_model

from .progress import Written, watch
from .sources.failures import names_source
from .space import check_space, decoder_bytes
from .specs import LINEAR, LLM_PRECISIONS, VLM_ARCHITECTURES

_Kind = TypeVar("_Kind", bound=LlmManifest)


@names_source
def export_llm(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    check: bool | None = None,
    progress: Callable[[str], None] | None = None,
    written: Written | None = None,
) -> Path:
    """Export a language model to `out`, for `CausalLM` and `ORTModelForCausalLM`.

    For a Llama, Qwen2 or Qwen3 the folder holds two graphs over one file of weights:
    ``model.onnx``, and ``static.onnx``, which a GPU runs; see `graph_contract`. Such a model is
    written without torch and transformers. Models of other families, or with settings that these
    graphs lack, go through optimum's stock export in fp32. Their folder has ``model.onnx`` alone,
    which is slower and gives the logits of every position; `StockSource` says how much context it
    has.

    The first layers of the graphs are checked against NumPy. If torch and transformers are
    installed, the whole export is compared with the source, which takes the memory of a float32
    model. Only then does the folder get its name. On failure nothing is left behind. Nothing is
    unpickled, and no code of the source runs.

    optimum-onnx 0.1.0 must be told a ``head_dim`` that is not
    ``hidden_size / num_attention_heads``, as in some Qwen3:
    ``model.embed_size_per_head = model.config.head_dim``. Likewise it must be told
    ``model.num_key_value_heads`` of a Phi-3 or Gemma 2 with grouped heads.

    Args:
        source: a transformers folder, or ``org/name`` on the hub.
        out: a folder to write; it must not exist.
        precision: ``"fp32"``, ``"fp16"`` or ``"int4"``, as `LLM_PRECISIONS` says.
        check: whether to compare with transformers; None to do so if it is installed.
        progress: called with the name of each step as it begins.
        written: called as weights are written.

    Raises:
        GranAlignError: neither we nor optimum can export the source in this precision, it is
            damaged, `out` exists, the disk is too small, or the exported model is too far from its
            source.
        MissingExtraError: torch or transformers is not installed, and `check` is True or the model
            goes through optimum.
    """
    tell = progress or (lambda step: None)
    # Check what is cheap to check before any work.
    check_precision(precision, LLM_PRECISIONS)
    compared = compares(check)
    out = Path(out)
    # Read and check the source's settings.
    tell("reading")
    folder = resolve_model(source)
    model = _read(folder, precision)
    if isinstance(model, LlmSource):
        check_space(out, decoder_bytes(model, precision))
    elif not compared:
        raise GranAlignError(
            f"{folder}: got a model that optimum exports, expected a comparison of it with "
            f"transformers {OLDEST[0]}.{OLDEST[1]} or later; leave out --no-check"
        )
    tokenizer, words = read_tokenizer(folder), model.shape.vocabulary
    check_vocabulary(tokenizer, folder, words)
    check_token_ids(folder, plain(tokenizer), words)
    model = check_prompts(model, compare=compared)
    tolerance, expected = LLM_PRECISIONS[precision], None
    with appearing(out) as draft:
        if compared:
            # Run the source first: its weights leave memory before ours need it.
            tell("running the source")
            expected = run_source(model, precision)
        tell("writing the graphs")
        cache: CacheShape | DecoderShape
        if isinstance(model, LlmSource):
            watch(model.checkpoint, written)
            tensors, cache = _write_graphs(model, draft, precision), model.shape
            watch(model.checkpoint, None)
            tell("checking the first layers")
            self_check = check_decoder(
                model, draft, tensors, precision=precision, tolerance=tolerance
            )
        else:
            cache, self_check = write_stock(model, draft), {}
        manifest = complete(
            LlmManifest, model, cache, draft, precision, source_name(source, folder)
        )
        measured = self_check
        if expected is not None:
            tell("comparing with the source")
            measured = validate_llm(draft, expected, tolerance, manifest)
        finish(manifest, draft, compared=compared, measured=measured, self_check=self_check)
    return out


def _read(folder: Path, precision: str) -> ModelSource:
    """Read a source: for our own graphs if they fit, otherwise for optimum's export."""
    try:
        return LlmSource.read(folder)
    except UnsupportedError as error:
        names = read_config(folder).get("architectures")
        if isinstance(names, list) and names and names[0] in list(VLM_ARCHITECTURES):
            raise GranAlignError(
                f"{folder}: got a vision-language model ({names[0]}), expected a language model; "
                f"export it with granalign export vlm"
            ) from None
        if precision != "fp32":
            raise GranAlignError(
                f"{error}, or precision 'fp32', in which optimum may export this one"
            ) from None
    return StockSource.read(folder)


def write_llm(model: ModelSource, folder: Path, *, precision: str, name: str) -> LlmManifest:
    """Write graphs, settings and tokenizer to a folder; return the manifest, which is not written.

    Nothing is compared with the source yet. A `StockSource` is written by optimum, in fp32.
    """
    if isinstance(model, LlmSource):
        _write_graphs(model, folder, precision)
        return complete(LlmManifest, model, model.shape, folder, precision, name)
    return complete(LlmManifest, model, write_stock(model, folder), folder, precision, name)


def complete(
    kind: type[_Kind],
    model: ModelSource,
    cache: CacheShape | DecoderShape,
    folder: Path,
    precision: str,
    name: str,
    **facts: Any,
) -> _Kind:
    """Write all files but the graphs and the manifest: settings and tokenizer.

    Args:
        kind: the class of the manifest.
        model: the source.
        cache: the shape of the key/value cache.
        folder: where the graphs are.
        precision: of the graphs.
        name: what the manifest calls the source.
        facts: further fields of this kind of manifest.

    Returns:
        The manifest, with no measured errors yet.
    """
    model.copy_files(folder)
    model.write_generation_config(folder)
    shape = model.shape
    return kind(
        source=name,
        weights_sha256=model.weights_sha256,
        source_sha256=model.sha256,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        precision=precision,
        architecture=shape.architecture,
        layers=cache.layers,
        kv_heads=cache.kv_heads,
        head_dim=cache.head_dim,
        vocabulary=shape.vocabulary,
        context=shape.context,
        eos_ids=list(model.eos_ids),
        block=LINEAR.block if precision == "int4" else 0,
        tools=tool_versions(),
        validation={},
        **facts,
    )


def _write_graphs(model: LlmSource, folder: Path, precision: str) -> TensorFile:
    """Write ``model.onnx`` and ``static.onnx`` over one file of weights; return its store."""
    with (folder / WEIGHTS).open("wb") as file:
        tensors = TensorFile(file, WEIGHTS)
        for graph in (GRAPH, STATIC_GRAPH):
            static = graph == STATIC_GRAPH
            written = DecoderGraph(model, tensors, precision=precision, static=static).model()
            (folder / graph).write_bytes(written.SerializeToString())
    return tensors
