"""The rows that queries are compared with: caption embeddings, mixed once for a video."""

from __future__ import annotations

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import mixed_rows
from granalign_fast.runtime.array_device import Array


def is_mixed(config: RetrieverConfig) -> bool:
    """Return whether queries are compared with other rows than the captions' own embeddings."""
    return config.context is not None or matrices_of(config) > 1


def matrices_of(config: RetrieverConfig) -> int:
    """Return how many matrices of rows a video has: two if the feedback has a context."""
    return 1 if config.feedback is None or config.feedback.context is None else 2


def mix(captions: Array, config: RetrieverConfig) -> list[Array]:
    """Mix each caption's embedding with those of near and similar clips.

    Args:
        captions: `(clips, dim)` float32, the embeddings of one video, of NumPy or CuPy.
        config: says how, with `context` and with that of `feedback`.

    Returns:
        `matrices_of(config)` arrays like `captions`, in the order of `mixed_rows`.
    """
    first, second = mixed_rows(
        captions, [0, len(captions)], context_rules=config.context, rules=config.feedback
    )
    return [first] if second is None else [first, second]
