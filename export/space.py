"""The disk space of an export: what it needs, and whether it is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.files import remove_abandoned

from .sizes import block_bytes
from .sources.checkpoint import Checkpoint
from .sources.language_model import LlmSource
from .specs import HEAD, LINEAR

_MARGIN = 1 << 24
"""Bytes for all files but the weights: graphs, tokenizer, settings."""

_WIDTHS = {"fp32": 4, "fp16": 2}


def check_space(out: Path, needed: int) -> None:
    """Raise unless the disk has room for a new folder; what killed exports left is deleted before.

    Args:
        out: the folder to be written.
        needed: bytes.

    Raises:
        GranAlignError: there is too little room; the message says how much is needed.
    """
    existing = next(folder for folder in out.absolute().parents if folder.is_dir())
    remove_abandoned(existing)
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise GranAlignError(
            f"{out}: got {free / 1e9:.1f} GB of free disk, expected {needed / 1e9:.1f} GB for the "
            f"export; make room, or write elsewhere"
        )


def decoder_bytes(source: LlmSource, precision: str) -> int:
    """Return about how many bytes the export of a language or vision-language model takes."""
    checkpoint, shape = source.checkpoint, source.shape
    width = _WIDTHS.get(precision, 4)
    total = _MARGIN + 2 * width * shape.context * shape.head_dim
    for name in checkpoint.names:
        sizes = checkpoint.shape(name)
        values = int(np.prod(sizes, dtype=np.int64))
        if precision != "int4" or len(sizes) != 2:
            total += width * values
        elif any(part in name for part in ("embed_tokens", "lm_head", "visual.")):
            total += block_bytes(*sizes, HEAD)
        else:
            total += block_bytes(*sizes, LINEAR)
    return total


def encoder_bytes(checkpoint: Checkpoint, width: float, copies: int = 1) -> int:
    """Return about how many bytes the export of an encoder takes while it is written.

    Args:
        checkpoint: the weights.
        width: bytes of a value.
        copies: files that hold all values at the same time.
    """
    values = sum(int(np.prod(checkpoint.shape(name), dtype=np.int64)) for name in checkpoint.names)
    return _MARGIN + int(width * copies * values)
