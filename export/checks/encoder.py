"""Comparison of exported embeddings with the source's; all mismatches are raised at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.sources.checkpoint import Checkpoint
from granalign_fast.export.sources.encoders.encoder import pooled
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.export.specs import PRECISIONS, Tolerance
from granalign_fast.models.graph_contract import PACKED_GRAPH
from granalign_fast.models.manifest import SentenceManifest
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder

from .sentences import VALIDATION

Reference = Callable[[], npt.NDArray[Any]]
"""Runs the source model: its embeddings of `sentences.VALIDATION`, rows of unit length."""

_SMALL = 1 << 28
"""Bytes of weights that a session may hold during the self-check of an encoder."""
_FIRST = 2
"""Layers that the self-check of a larger encoder runs."""


def check_precision(precision: str, allowed: Iterable[str] = PRECISIONS) -> None:
    """Raise `GranAlignError` unless the precision is one that we write."""
    if precision not in allowed:
        raise GranAlignError(f"precision {precision!r}: expected one of {sorted(allowed)}")


def checked_layers(checkpoint: Checkpoint) -> int:
    """Return how many layers of an encoder the self-check runs; 0 stands for all.

    It runs all of a model whose weights are small, since their session is small too.
    """
    total = sum(checkpoint.stored_bytes(name) for name in checkpoint.names)
    return 0 if total <= _SMALL else _FIRST


def transformers_reference(model: SentenceModel) -> Reference:
    """Return the reference that transformers gives, by the token ids of the export."""

    def reference() -> npt.NDArray[Any]:
        import torch
        from transformers import AutoModel

        try:
            # The folder of the weights has their config.json; it may be a sub-folder.
            with uniform_folder(model.weights.parent) as folder:
                source = AutoModel.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
                ).eval()
            rows = []
            with torch.inference_mode():
                for ids in model.tokenise(VALIDATION):
                    hidden = source(torch.tensor([ids])).last_hidden_state[0]
                    rows.append(pooled(hidden, model.pooling).numpy())
            for layer in model.head(rows[0].shape[0]):
                rows = [layer(row) for row in rows]
        except Exception as error:  # a damaged file can raise anything in transformers
            raise GranAlignError(
                f"{model.folder}: transformers cannot run it ({one_line(error)}); "
                f"copy or download the model again"
            ) from None
        unit: npt.NDArray[Any] = np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    return reference


def validate_sentence_encoder(
    folder: Path, reference: Reference, tolerance: Tolerance, manifest: SentenceManifest
) -> dict[str, float]:
    """Compare an exported folder, which has no manifest yet, with its source: texts to embeddings.

    Returns:
        ``max_abs_error``, ``min_cosine`` and ``mean_cosine`` of the graph that a GPU runs.

    Raises:
        GranAlignError: a graph is out of tolerance; the message names every sentence that is.
    """
    expected = reference()
    measured: dict[str, float] = {}
    for graph in (PACKED_GRAPH, "model.onnx"):
        if (folder / graph).is_file():
            got = OnnxSentenceEncoder(folder, graph=graph, manifest=manifest).encode(VALIDATION)
            measured, failures = compare_embeddings(VALIDATION, got, expected, tolerance)
            raise_mismatches(failures, tolerance)
    return measured


def compare_embeddings(
    labels: Sequence[str],
    got: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    tolerance: Tolerance,
) -> tuple[dict[str, float], list[str]]:
    """Compare embeddings (labels, dim) of unit length.

    Returns:
        The measured errors by name, and one line for each mismatch.
    """
    if got.shape != expected.shape:
        return {}, [f"the embeddings have shape {got.shape}, expected {expected.shape}"]
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    error = np.abs(got - expected).max(axis=1)
    cosine = (got * expected).sum(axis=1)
    # `not (a <= b)` instead of `a > b`: NaN is a mismatch.
    failures = [
        f"{label[:40]!r} has error {e:.2g} and cosine {c:.5f}"
        for label, e, c in zip(labels, error, cosine, strict=True)
        if not (e <= tolerance.max_abs_error and c >= tolerance.min_cosine)
    ]
    mean = float(cosine.mean())
    if not mean >= tolerance.mean_cosine:
        failures.append(f"the mean cosine is {mean:.5f}")
    measured = {
        "max_abs_error": float(error.max()),
        "min_cosine": float(cosine.min()),
        "mean_cosine": mean,
    }
    return measured, failures


def raise_mismatches(failures: list[str], tolerance: object) -> None:
    """Raise `GranAlignError` if there are mismatches; the message holds all of them."""
    if failures:
        raise GranAlignError(
            f"the export differs from its source, expected {tolerance}: {'; '.join(failures)}; "
            f"choose a higher precision, or report this model"
        )
