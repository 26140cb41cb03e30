"""MPNet: positions as RoBERTa's, no token types, and a learnt bias for distances in attention.

The distance of a key from its query is put in one of 32 buckets, 16 for each direction. Distances
below 8 have a bucket each, and 8 buckets of logarithmic width hold those from 8 on; the last one
begins at 91. All layers use the same bias (transformers, `MPNetEncoder.relative_position_bucket`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .bert import Bert, fits_bert, open_weights, read_bert
from .encoder import Opened, Settings
from .roberta import count_from_padding

_BUCKETS = 32
_NEAR = 8
"""Distances with a bucket each, and also buckets for farther ones, in each direction."""

_NAMES = {
    "attention.attn.q.": "attention.self.query.",
    "attention.attn.k.": "attention.self.key.",
    "attention.attn.v.": "attention.self.value.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
}
"""Parts of MPNet's names, and BERT's for them."""


def fits_mpnet(config: Mapping[str, Any]) -> bool:
    """Return whether a model of these settings is one that `load_mpnet` reads."""
    return fits_bert(config) and config.get("relative_attention_num_buckets", _BUCKETS) == _BUCKETS


def load_mpnet(
    weights: Path,
    config: Mapping[str, Any],
    dtype: npt.DTypeLike = np.float32,
    opened: Opened = lambda checkpoint: None,
) -> Bert:
    """Read safetensors; arguments and errors as of `Bert.load`."""
    opened_weights = open_weights(weights, dtype, opened, _bert_name)
    settings = Settings(config, weights.with_name("config.json"), "MPNet")
    model = count_from_padding(read_bert(opened_weights, settings, types=False))
    # A row for each bucket becomes a column for each distance.
    table = opened_weights.read("encoder.relative_attention_bias.weight", _BUCKETS, model.heads)
    longest = len(model.positions) - 1
    distances = table[buckets(np.arange(1 - longest, longest))].T
    return replace(model, distances=np.ascontiguousarray(distances))


def buckets(distance: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return the bucket of each distance, a key's place less its query's."""
    size = np.abs(distance).astype(np.int64)
    # Each of the far buckets begins at sqrt(2) times the distance of the one before.
    begins = _NEAR**2 * 2 ** np.arange(1, _NEAR)
    far = _NEAR + (size[..., None] ** 2 >= begins).sum(axis=-1)
    found: npt.NDArray[np.int64] = np.where(size < _NEAR, size, far)
    return found + _BUCKETS // 2 * (distance > 0)


def _bert_name(name: str) -> str:
    """Return BERT's name of a tensor."""
    for own, usual in _NAMES.items():
        name = name.replace(own, usual)
    return name
