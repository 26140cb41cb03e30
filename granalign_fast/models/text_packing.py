"""Texts of different lengths in one row: few of them read a model's weights once for all.

On a CPU a text of twenty tokens takes as long to read the weights for as to multiply with them.
Whoever runs a graph of packed texts (`export.specs.POOL`) shares that among texts of any lengths.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .encoder import equal_length_batches
from .graph_contract import INPUT_IDS, MASK, POOL, POSITIONS

_ROW_TOKENS = 128
"""About as many tokens are packed into a row: each is compared with all others of the row, which
from there on costs more than the weights do."""


def batches(tokens: list[list[int]], budget: int, workers: int) -> list[npt.NDArray[np.int64]]:
    """Indices of token lists, those of a batch either of one length or to be packed into a row.

    Args:
        tokens: ids of each text.
        budget: tokens of a batch of one length.
        workers: that run batches at the same time.
    """
    whole: list[npt.NDArray[np.int64]] = []
    rest: list[int] = []
    for batch in equal_length_batches(tokens, budget):
        if len(batch) * len(tokens[batch[0]]) > _ROW_TOKENS:
            whole.append(batch)
        else:
            rest += batch.tolist()
    return whole + _rows(rest, [len(ids) for ids in tokens], 1 if whole else workers)


def _rows(
    texts: Sequence[int], lengths: Sequence[int], workers: int
) -> list[npt.NDArray[np.int64]]:
    """Texts, the longest of which come first, in rows of about equally many tokens."""
    total = sum(lengths[text] for text in texts)
    count = workers * math.ceil(total / (workers * _ROW_TOKENS))
    rows: list[list[int]] = [[] for _ in range(min(count, len(texts)))]
    lightest = [(0, row) for row in range(len(rows))]
    for text in texts:
        held, row = heapq.heappop(lightest)
        rows[row].append(text)
        heapq.heappush(lightest, (held + lengths[text], row))
    return [np.array(row, np.int64) for row in rows]


def packed(tokens: Sequence[Sequence[int]], pooling: str) -> dict[str, npt.NDArray[Any]]:
    """The graph's inputs for one batch.

    Args:
        tokens: ids of its texts. If all are of one length, each has a row of its own.
        pooling: ``"mean"``, or ``"cls"``, the first token alone.
    """
    lengths = np.array([len(ids) for ids in tokens])
    if (lengths == lengths[0]).all():
        rows, length = len(tokens), int(lengths[0])
        share = np.full(length, 1 / length) if pooling == "mean" else np.arange(length) == 0
        return {
            INPUT_IDS: np.array(tokens, np.int32),
            POSITIONS: np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            MASK: np.zeros((length, length), np.float32),
            POOL: np.tile(share.astype(np.float32), (rows, 1, 1)),
        }
    text = np.repeat(np.arange(len(tokens)), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    own = text == np.arange(len(tokens))[:, None]
    shares = own / lengths[:, None] if pooling == "mean" else own & (positions == 0)
    return {
        INPUT_IDS: np.concatenate([np.asarray(ids, np.int32) for ids in tokens])[None],
        POSITIONS: positions.astype(np.int32)[None],
        MASK: np.where(text == text[:, None], np.float32(0), np.float32(-np.inf)),
        POOL: shares.astype(np.float32)[None],
    }
