"""The export of text encoders without a graph of ours: optimum's, with pooling and norm added."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.export.checks.encoder import Reference, transformers_reference
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.specs import OPTIMUM_OPSET
from granalign_fast.models.graph_contract import EMBEDDINGS

if TYPE_CHECKING:
    from granalign_fast.export.sources.sentence_encoder import SentenceModel

_HIDDEN = "last_hidden_state"


def write_with_optimum(model: SentenceModel, draft: Path, precision: str) -> tuple[Reference, int]:
    """Write ``model.onnx`` to `draft`.

    Returns:
        The reference, which runs transformers, and the columns of an embedding.

    Raises:
        GranAlignError: the precision is not fp32, or optimum cannot export the model.
        MissingExtraError: optimum, transformers or torch is not installed.
    """
    kind = model.config.get("model_type")
    if precision != "fp32":
        raise GranAlignError(
            f"precision {precision!r} of a {kind!r} model: expected 'fp32', the one that models "
            f"other than BERT with gelu can be exported in"
        )
    try:
        import onnx
        from optimum.exporters.onnx import main_export
    except ImportError:
        raise MissingExtraError(f"exporting a {kind!r} model", "optimum") from None
    # Let optimum write the model, and load its graph with all weights.
    raw = draft / "raw"
    try:
        with uniform_folder(model.folder) as folder:
            main_export(
                str(folder),
                output=raw,
                task="feature-extraction",
                library_name="transformers",
                opset=OPTIMUM_OPSET,
                do_validation=False,  # our own check follows, end to end
            )
        graph = onnx.load(raw / "model.onnx")
    except Exception as error:  # tracing can raise anything
        raise GranAlignError(
            f"{model.folder}: optimum cannot export it ({one_line(error)}); "
            f"choose a model that it supports"
        ) from None
    for file in raw.iterdir():
        file.unlink()
    raw.rmdir()
    # Add pooling and normalisation.
    _append_pooling(graph, model.pooling, model.normalise)
    onnx.save(graph, draft / "model.onnx")

    return transformers_reference(model), int(
        model.config.get("hidden_size") or model.config["dim"]
    )


def _append_pooling(graph: Any, pooling: str, normalise: bool) -> None:
    """Replace the graph's output, hidden states, with pooled embeddings; texts have no padding."""
    from onnx import TensorProto, helper, numpy_helper

    def node(kind: str, *inputs: str, output: str, **attributes: Any) -> str:
        graph.graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(name: str, value: int | list[int]) -> str:
        graph.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    pooled = "pooled" if normalise else EMBEDDINGS
    if pooling == "mean":
        sequence = constant("pooling_axes", [1])
        node("ReduceMean", _HIDDEN, sequence, output=pooled, keepdims=0)
    else:
        node(
            "Gather",
            _HIDDEN,
            constant("pooling_index", -1 if pooling == "last" else 0),
            output=pooled,
            axis=1,
        )
    if normalise:
        node("LpNormalization", pooled, output=EMBEDDINGS, axis=-1, p=2)
    del graph.graph.output[:]
    graph.graph.output.append(
        helper.make_tensor_value_info(EMBEDDINGS, TensorProto.FLOAT, ["batch", "dim"])
    )
