"""Join the rows of a video's batches into the arrays of its index."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError


def stretches(
    missing: npt.NDArray[np.bool_], clip_seconds: float
) -> tuple[tuple[float, float], ...]:
    """Return the stretches of clips, in seconds, whose picture is missing."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]]).astype(np.int8)))
    return tuple(
        (float(begin * clip_seconds), float(end * clip_seconds))
        for begin, end in edges.reshape(-1, 2).tolist()
    )


def concatenate(parts: Iterable[npt.NDArray[Any] | None], path: Path) -> npt.NDArray[Any] | None:
    """Join the embeddings of batches along their rows; None if no batch has any.

    Raises:
        GranAlignError: their widths or types differ; the message names the video's `path`.
    """
    arrays = [part for part in parts if part is not None]
    if not arrays:
        return None
    types = {(array.shape[1:], array.dtype) for array in arrays}
    if len(types) != 1:
        raise GranAlignError(
            f"{path}: got embeddings of {len(types)} types, expected one: a model "
            f"changed under the same fingerprint; delete the folder .indexing and index again"
        )
    return np.concatenate(arrays)
