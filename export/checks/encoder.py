"""Is an export still its source? Every mismatch is collected, then raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import PRECISIONS, Tolerance
from granalign_fast.models.graph_contract import PACKED_GRAPH
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder

from .sentences import VALIDATION

Judge = Callable[[], npt.NDArray[Any]]
"""Gives the source model's embeddings of `sentences.VALIDATION`, rows of unit length."""


def check_precision(precision: str, allowed: Iterable[str] = PRECISIONS) -> None:
    """Raise unless the precision is one that we write."""
    if precision not in allowed:
        raise GranAlignError(f"precision {precision!r}: expected one of {sorted(allowed)}")


def validate(folder: Path, judge: Judge, tolerance: Tolerance) -> dict[str, float]:
    """Compare an exported folder with its source, end to end: text in, embeddings out.

    Returns:
        What was measured of the graph that a GPU runs: ``max_abs_error``, ``min_cosine``,
        ``mean_cosine``.

    Raises:
        GranAlignError: a graph is out of tolerance; the message holds every sentence that is.
    """
    expected = judge()
    measured: dict[str, float] = {}
    for graph in (PACKED_GRAPH, "model.onnx"):
        if (folder / graph).is_file():
            got = OnnxSentenceEncoder(folder, graph=graph).encode(VALIDATION)
            measured, failures = compare(VALIDATION, got, expected, tolerance)
            refuse(failures, tolerance)
    return measured


def compare(
    labels: Sequence[str],
    got: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    tolerance: Tolerance,
) -> tuple[dict[str, float], list[str]]:
    """Compare embeddings (labels, dim) of unit length; what was measured, and every mismatch."""
    if got.shape != expected.shape:
        return {}, [f"the embeddings have shape {got.shape}, expected {expected.shape}"]
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    error = np.abs(got - expected).max(axis=1)
    cosine = (got * expected).sum(axis=1)
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


def refuse(failures: list[str], tolerance: object) -> None:
    """Raise if there are mismatches; the message holds them all."""
    if failures:
        raise GranAlignError(
            f"the export differs from its source, expected {tolerance}: {'; '.join(failures)}; "
            f"choose a higher precision, or report this model"
        )
