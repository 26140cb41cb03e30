"""Pack prompts with a common beginning into one row: a tree of tokens, without copies of it.

The root (a system message, and an image) is followed by heads (the beginning of every prompt of one
task), and each head by segments (the rest of a prompt and its answer). A token attends to its own
segment up to itself, to the head and to the root, and has the position that it would have in the
lone prompt. So its logits are those of the lone prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""Truth value of a token that demands nothing: no loss is computed for it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The end of one prompt, and its answer.

    Attributes:
        head: number of the head that it continues.
        prompt: token ids between the head and the answer; at most one segment of a head has none.
        answer: token ids of the answer.
        weights: weights of the answer's tokens in the loss; empty for ones.
        truths: for each token of `prompt` two values of 0, 1 and `IGNORED`; empty if all are
            ignored.
        spared: pairs of an index into `answer` and a token id. The loss leaves this id out at that
            token, so it does not become less likely although it is not the answer.
    """

    head: int
    prompt: Sequence[int]
    answer: Sequence[int]
    weights: Sequence[float] = ()
    truths: Sequence[tuple[int, int]] = ()
    spared: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """The heads and segments after one root.

    Attributes:
        heads: token ids of each head.
        segments: the segments in any order; at most one of a head has an empty prompt.
    """

    heads: Sequence[Sequence[int]]
    segments: Sequence[Segment]

    @property
    def length(self) -> int:
        """Number of tokens after the root."""
        return sum(map(len, self.heads)) + sum(
            len(segment.prompt) + len(segment.answer) for segment in self.segments
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of tokens; `length` counts those after the root.

    Attributes:
        ids: int64 (rows, length).
        positions: int64 (rows, length), from ``first`` at every head.
        shared: number of first tokens of a row that contain the root and heads of every row.
        mask: bool (rows, 1, shared, shared), whether each of these tokens attends to each other.
        tokens: int64 (segments, longest), indices of each segment's tokens among those of all
            rows, roots included; -1 after its end.
        context: int64 (segments, longest), indices of its root's and its head's tokens; -1
            after their end.
        targets: int64 (rows, length), the next token.
        weights: float32 (rows, length), weights of the targets; 0 without a target.
        truths: int64 (rows, length, 2), 0, 1 or `IGNORED`.
        spared: int64 (3, n), row, column and id of tokens that the loss leaves out.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    shared: int
    mask: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]
    context: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    truths: npt.NDArray[np.int64]
    spared: npt.NDArray[np.int64]


def pack(rows: Sequence[Row], *, root: int, first: int) -> Packed:
    """Lay out every row's heads, then its segments, padded to the longest row.

    Args:
        rows: the rows.
        root: number of tokens before the heads, the same in every row.
        first: position of the first token after the root.
    """
    length = max(row.length for row in rows)
    shape = (len(rows), length)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    truths = np.full((*shape, 2), IGNORED, np.int64)
    spared: list[tuple[int, int, int]] = []
    shared = root + max(sum(map(len, row.heads)) for row in rows)
    mask = np.tril(np.ones((len(rows), 1, shared, shared), np.bool_))
    tokens: list[npt.NDArray[np.int64]] = []
    context: list[npt.NDArray[np.int64]] = []
    for number, row in enumerate(rows):
        row_start = number * (root + length)  # index of the row's first token among all rows'
        ends = np.cumsum([len(head) for head in row.heads]).tolist()
        for head, end in zip(row.heads, ends, strict=True):
            span = slice(end - len(head), end)
            ids[number, span] = head
            positions[number, span] = first + np.arange(len(head))
            mask[number, 0, root + end :, root + end - len(head) : root + end] = False
        offset = ends[-1]
        for segment in row.segments:
            prompt, size = len(segment.prompt), len(segment.prompt) + len(segment.answer)
            span = slice(offset, offset + size)
            ids[number, span] = [*segment.prompt, *segment.answer]
            opened, end = len(row.heads[segment.head]), ends[segment.head]
            positions[number, span] = np.arange(first + opened, first + opened + size)
            tokens.append(row_start + root + np.arange(offset, offset + size))
            before = root + np.arange(end - opened, end)
            context.append(row_start + np.concatenate([np.arange(root), before]))
            if segment.truths:
                truths[number, offset : offset + prompt] = segment.truths
            first_target = offset + prompt - 1 if prompt else end - 1
            target_columns = [first_target, *range(offset + prompt, offset + size - 1)]
            targets[number, target_columns] = segment.answer
            weights[number, target_columns] = segment.weights or 1.0
            spared += [(number, target_columns[i], token) for i, token in segment.spared]
            offset += size
    return Packed(
        ids,
        positions,
        shared,
        mask,
        _padded(tokens),
        _padded(context),
        targets,
        weights,
        truths,
        np.array(spared, np.int64).reshape(-1, 3).T,
    )


def _padded(lists: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Stack lists into one array, with -1 after the shorter ones."""
    table = np.full((len(lists), max(map(len, lists))), -1)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table


class TreeAttention:
    """Attention of packed rows, computed part by part: most pairs of a row's tokens are masked.

    transformers calls it instead of its own attention, with the same inputs and outputs.

    Args:
        packed: the rows of the next forward pass.
    """

    NAME = "granalign_fast_tree"

    def __init__(self, packed: Packed) -> None:
        import torch

        tokens, context = torch.from_numpy(packed.tokens), torch.from_numpy(packed.context)
        self.shared = packed.shared
        self.shared_mask = _additive(torch.from_numpy(packed.mask))
        self.filled = (tokens >= 0).flatten()
        self.queries = tokens.clamp(min=0).flatten()
        self.keys = torch.cat([context, tokens], 1).clamp(min=0).flatten()
        self.segments, longest = tokens.shape
        behind = torch.ones(longest, longest, dtype=torch.bool).tril()
        seen = [(context >= 0)[:, None].expand(-1, longest, -1), behind & (tokens >= 0)[:, None]]
        self.mask = _additive(torch.cat(seen, 2)[:, None])

    @classmethod
    def install(cls, config: Any) -> None:
        """Make language models of this configuration use it; their forward then takes ``tree=``."""
        from transformers import AttentionInterface

        AttentionInterface.register(cls.NAME, _attend)
        config._attn_implementation = cls.NAME

    def __call__(self, query: Any, key: Any, value: Any) -> Any:
        """Attend: return (rows, length, heads, size) for inputs (rows, heads, length, size)."""
        import torch
        from torch.nn import functional

        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        rows, heads, length, size = query.shape
        first = slice(0, self.shared)
        shared_outputs = functional.scaled_dot_product_attention(
            query[:, :, first], key[:, :, first], value[:, :, first], attn_mask=self.shared_mask
        )
        flat = (x.transpose(1, 2).reshape(rows * length, -1) for x in (query, key, value))
        target_columns = (self.queries, self.keys, self.keys)
        q, k, v = (
            x.index_select(0, index).view(self.segments, -1, heads, size).transpose(1, 2)
            for x, index in zip(flat, target_columns, strict=True)
        )
        segment_outputs = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        segment_outputs = segment_outputs.transpose(1, 2).reshape(-1, heads * size)[self.filled]
        shared_outputs = shared_outputs.transpose(1, 2).reshape(rows, self.shared, -1)
        padding = shared_outputs.new_zeros(rows, length - self.shared, heads * size)
        out = torch.cat([shared_outputs, padding], 1).flatten(0, 1)
        # If a row's heads are shorter than others', both parts computed its first segment's tokens.
        out = out.index_copy(0, self.queries[self.filled], segment_outputs)
        return out.view(rows, length, heads, size)


def _additive(seen: Any) -> Any:
    """Convert a boolean mask to an additive one: attention's backward is a third faster with it."""
    import torch

    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def _attend(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, tree: TreeAttention, **unused: Any
) -> tuple[Any, None]:
    return tree(query, key, value), None
