"""RoBERTa, XLM-R and CamemBERT: a BERT whose positions begin behind that of the padding token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .bert import Bert, fits_bert, open_weights, read_bert
from .encoder import Opened, Settings

PADDING = 1
"""Id of the padding token of every published model."""


def fits_roberta(config: Mapping[str, Any]) -> bool:
    """Return whether a model of these settings is one that `load_roberta` reads."""
    return fits_bert(config) and config.get("pad_token_id", PADDING) == PADDING


def load_roberta(
    weights: Path,
    config: Mapping[str, Any],
    dtype: npt.DTypeLike = np.float32,
    opened: Opened = lambda checkpoint: None,
) -> Bert:
    """Read safetensors; arguments and errors as of `Bert.load`."""
    settings = Settings(config, weights.with_name("config.json"), "RoBERTa")
    return count_from_padding(read_bert(open_weights(weights, dtype, opened), settings))


def count_from_padding(model: Bert) -> Bert:
    """Return a model whose padding token has row `PADDING` of positions, and others the next."""
    return replace(model, positions=model.positions[PADDING:], uncounted=PADDING)
