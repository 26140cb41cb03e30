"""Pack texts of different lengths into one row, so that few texts read a model's weights once.

On a CPU, reading the weights for a text of twenty tokens takes as long as multiplying with them.
The graph of packed texts (`graph_contract.PACKED_GRAPH`) shares that cost among texts of any
lengths.
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
"""Tokens of a row, about. Attention compares each token with all others of its row, which costs
more than reading the weights in longer rows."""


def batches(tokens: list[list[int]], budget: int, workers: int) -> list[npt.NDArray[np.int64]]:
    """Group token lists into batches: of equal length, or to be packed into one row.

    Args:
        tokens: ids of each text.
        budget: the greatest number of tokens in a batch of equal length.
        workers: threads that run batches at the same time.

    Returns:
        Indices into `tokens` of each batch.
    """
    equal: list[npt.NDArray[np.int64]] = []
    rest: list[int] = []
    # A batch of equal length that fills a row needs no packing.
    for batch in equal_length_batches(tokens, budget):
        if len(batch) * len(tokens[batch[0]]) > _ROW_TOKENS:
            equal.append(batch)
        else:
            rest += batch.tolist()
    return equal + _rows(rest, [len(ids) for ids in tokens], 1 if equal else workers)


def _rows(
    texts: Sequence[int], lengths: Sequence[int], workers: int
) -> list[npt.NDArray[np.int64]]:
    """Distribute texts, given the longest first, over rows of about equally many tokens.

    Each text goes into the row with the fewest tokens so far. The number of rows is a multiple of
    `workers`, so that all of them have work, unless there are fewer texts.
    """
    total = sum(lengths[text] for text in texts)
    count = workers * math.ceil(total / (workers * _ROW_TOKENS))
    rows: list[list[int]] = [[] for _ in range(min(count, len(texts)))]
    shortest = [(0, row) for row in range(len(rows))]  # a heap of (tokens, row)
    for text in texts:
        size, row = heapq.heappop(shortest)
        rows[row].append(text)
        heapq.heappush(shortest, (size + lengths[text], row))
    return [np.array(row, np.int64) for row in rows]


def pack(tokens: Sequence[Sequence[int]], pooling: str) -> dict[str, npt.NDArray[Any]]:
    """Return the graph's inputs for one batch.

    Args:
        tokens: ids of its texts. Texts of equal length get a row each, others share one row.
        pooling: ``"mean"``; or ``"cls"``, the first token alone; or ``"last"``, the last one.
    """
    lengths = np.array([len(ids) for ids in tokens])
    if (lengths == lengths[0]).all():
        rows, length = len(tokens), int(lengths[0])
        only = np.arange(length) == (length - 1 if pooling == "last" else 0)
        share = np.full(length, 1 / length) if pooling == "mean" else only
        return {
            INPUT_IDS: np.array(tokens, np.int32),
            POSITIONS: np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            MASK: np.zeros((length, length), np.float32),
            POOL: np.tile(share.astype(np.float32), (rows, 1, 1)),
        }
    # One row: the text of each token, its position in that text, and (texts, tokens) membership.
    text = np.repeat(np.arange(len(tokens)), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    member = text == np.arange(len(tokens))[:, None]
    chosen = lengths[text] - 1 if pooling == "last" else 0
    shares = member / lengths[:, None] if pooling == "mean" else member & (positions == chosen)
    return {
        INPUT_IDS: np.concatenate([np.asarray(ids, np.int32) for ids in tokens])[None],
        POSITIONS: positions.astype(np.int32)[None],
        MASK: np.where(text == text[:, None], np.float32(0), np.float32(-np.inf)),
        POOL: shares.astype(np.float32)[None],
    }
