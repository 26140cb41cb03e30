"""Texts of different lengths in one run, the shorter ones filled up: for a GPU.

A run of a small encoder is some sixty launches, which take as long for a few texts as for dozens.
So a graph of padded texts (`export.specs.PADDED_IDS`) takes them together, where those of one
length alone would be as many runs, and as many CUDA graphs, as there are lengths. Lengths are
multiples of eight, as ONNX Runtime's memory-efficient attention wants them where there is a mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_STEP = 8
_RUN_COST = 16
"""What a run costs before its first token is that part of its budget. On a GPU 2048 tokens: sixty
launches of 3 us, and a token of all-MiniLM-L6-v2 is 42 million operations and 0.15 MB of
activations, about 0.1 us on an H200. On a CPU a few, where nothing is gained by padding."""


def batches(lengths: Sequence[int], budget: int, longest: int) -> list[npt.NDArray[np.int64]]:
    """Indices of texts, each batch to be filled up to its longest, which together cost the least.

    The longest come first, so that the last batches to run are short.

    Args:
        lengths: in tokens, of each text.
        budget: tokens of a run, filled up.
        longest: the model's greatest length.
    """
    own = np.asarray(lengths, np.int64)
    order = np.argsort(-own, kind="stable")
    widths = _width(own[order], longest)
    starts = sorted({0, *(np.flatnonzero(np.diff(widths)) + 1).tolist(), len(order)})
    # The least cost of all texts from each start on, and where the next width should begin.
    least, following = {len(order): 0}, dict[int, int]()
    run = budget // _RUN_COST
    for at in reversed(range(len(starts) - 1)):
        start, width = starts[at], int(widths[starts[at]])
        rows = _rows(budget, width)
        costs = {
            end: math.ceil((end - start) / rows) * run + (end - start) * width + least[end]
            for end in starts[at + 1 :]
        }
        following[start] = min(costs, key=lambda end: costs[end])
        least[start] = costs[following[start]]
    found, start = [], 0
    while start < len(order):
        end, rows = following[start], _rows(budget, int(widths[start]))
        found += [order[i : min(i + rows, end)] for i in range(start, end, rows)]
        start = end
    return found


def padded(tokens: Sequence[Sequence[int]], longest: int) -> npt.NDArray[np.int32]:
    """The graph's input for one batch, as `export.specs.PADDED_IDS` says.

    Args:
        tokens: ids of its texts.
        longest: the model's greatest length.
    """
    lengths = np.array([len(ids) for ids in tokens])
    rows = np.zeros((len(tokens), _width(lengths, longest).max()), np.int32)
    ids = np.fromiter(itertools.chain.from_iterable(tokens), np.int32, lengths.sum())
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = ids + 1
    return rows


def _width(lengths: npt.NDArray[np.int64], longest: int) -> npt.NDArray[np.int64]:
    """What texts of these lengths are filled up to."""
    return np.minimum(-(-lengths // _STEP) * _STEP, longest)


def _rows(budget: int, width: int) -> int:
    """Texts of a run: a power of two, as the sizes of runs are, of which it so fills some whole."""
    return 1 << max(0, (budget // width).bit_length() - 1)
