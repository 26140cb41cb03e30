"""Pad texts of different lengths to one width, so that a GPU embeds them in few runs.

A run of a small encoder is some sixty launches, which take as long for a few texts as for dozens.
The graph of padded texts (`graph_contract.PADDED_IDS`) therefore takes texts of several lengths
together. Batches of equal length would need as many runs, and as many CUDA graphs, as there are
lengths. Widths are multiples of eight, which ONNX Runtime's memory-efficient attention requires of
a masked input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_STEP = 8
"""Tokens. Widths are multiples of it, or the model's greatest length."""

_RUN_COST = 16
"""A run's fixed cost is its token budget divided by this. On a GPU that is 2048 tokens: sixty
launches of 3 us, where a token of all-MiniLM-L6-v2 takes 42 million operations and 0.15 MB of
activations, about 0.1 us on an H200. On a CPU it is a few tokens, as padding gains nothing there.
"""


def batches(lengths: Sequence[int], budget: int, longest: int) -> list[npt.NDArray[np.int64]]:
    """Group texts into batches, each padded to its longest text, at the least total cost.

    The cost of a run is a fixed one (`_RUN_COST`) plus its tokens, padding included. Batches are
    ordered from long to short, so that the last ones to run are short.

    Args:
        lengths: tokens of each text.
        budget: the greatest number of tokens in a run, padding included.
        longest: the model's greatest length.

    Returns:
        Indices into `lengths` of each batch.
    """
    sizes = np.asarray(lengths, np.int64)
    order = np.argsort(-sizes, kind="stable")
    widths = _width(sizes[order], longest)
    # Indices into `order` at which the width changes. A group of batches may begin only there.
    starts = sorted({0, *(np.flatnonzero(np.diff(widths)) + 1).tolist(), len(order)})
    # Dynamic programming from the shortest texts to the longest: `least` is the least cost of all
    # texts from a start on, and `following` is the start of the next group in that solution.
    least, following = {len(order): 0}, dict[int, int]()
    run_cost = budget // _RUN_COST
    for i in reversed(range(len(starts) - 1)):
        start, width = starts[i], int(widths[starts[i]])
        rows = _rows(budget, width)
        costs = {
            end: math.ceil((end - start) / rows) * run_cost + (end - start) * width + least[end]
            for end in starts[i + 1 :]
        }
        following[start] = min(costs, key=lambda end: costs[end])
        least[start] = costs[following[start]]
    # Follow the solution, and split each group into runs within the budget.
    groups, start = [], 0
    while start < len(order):
        end, rows = following[start], _rows(budget, int(widths[start]))
        groups += [order[i : min(i + rows, end)] for i in range(start, end, rows)]
        start = end
    return groups


def pad(tokens: Sequence[Sequence[int]], longest: int) -> npt.NDArray[np.int32]:
    """Return the graph's input for one batch, in the form of `graph_contract.PADDED_IDS`.

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
    """Return the padded lengths of texts."""
    return np.minimum(-(-lengths // _STEP) * _STEP, longest)


def _rows(budget: int, width: int) -> int:
    """Return the number of texts in a run: the greatest power of two within the budget.

    Fixed batch sizes are powers of two as well (`runtime.shapes.runs`), so such runs fill them.
    """
    return 1 << max(0, (budget // width).bit_length() - 1)
