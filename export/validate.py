"""Is an exported sentence encoder still its source? Every mismatch is collected, then raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.encoders import SentenceEncoder
from granalign_fast.errors import GranAlignError

from .sentences import VALIDATION
from .specs import PRECISIONS, Tolerance

Judge = Callable[[], npt.NDArray[Any]]
"""Gives the source model's embeddings of `sentences.VALIDATION`, rows of unit length."""


def check_precision(precision: str) -> None:
    """Raise unless the precision is one that we write."""
    if precision not in PRECISIONS:
        raise GranAlignError(f"precision {precision!r}: expected one of {sorted(PRECISIONS)}")


def validate(folder: Path, judge: Judge, tolerance: Tolerance) -> dict[str, float]:
    """Compare an exported folder with its source, end to end: text in, embeddings out.

    Returns:
        What was measured: ``max_abs_error``, ``min_cosine``, ``mean_cosine``.

    Raises:
        GranAlignError: out of tolerance; the message holds every sentence that is.
    """
    got = SentenceEncoder(folder, device="cpu").encode(VALIDATION).astype(np.float64)
    expected = judge().astype(np.float64)
    if got.shape != expected.shape:
        raise GranAlignError(
            f"{folder.name}: embeddings of shape {got.shape}, expected {expected.shape}"
        )
    error = np.abs(got - expected).max(axis=1)
    cosine = (got * expected).sum(axis=1)
    failures = [
        f"{text[:40]!r} has error {e:.2g} and cosine {c:.5f}"
        for text, e, c in zip(VALIDATION, error, cosine, strict=True)
        if not (e <= tolerance.max_abs_error and c >= tolerance.min_cosine)
    ]
    mean = float(cosine.mean())
    if not mean >= tolerance.mean_cosine:
        failures.append(f"the mean cosine is {mean:.5f}")
    if failures:
        raise GranAlignError(
            f"the export differs from its source, expected {tolerance}: {'; '.join(failures)}; "
            f"choose a higher precision, or report this model"
        )
    return {
        "max_abs_error": float(error.max()),
        "min_cosine": float(cosine.min()),
        "mean_cosine": mean,
    }
