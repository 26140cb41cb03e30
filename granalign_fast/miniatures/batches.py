"""Many prompts behind one common beginning, as one row: a tree of tokens instead of copies of it.

The root (a system message, and an image) is followed by heads (the words that every prompt of a
task begins with), and each head by segments (the rest of a prompt and its answer). A token sees its
own segment up to itself, the head and the root, and has the position it would have in the lone
prompt: so its logits are those of the lone prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""The truth of a token that has none."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The end of one prompt, and its answer.

    Attributes:
        head: number of the head that it continues.
        prompt: token ids after the head, up to where the answer begins; may be empty once a head.
        answer: token ids.
        weights: of the answer's tokens in the loss; empty for ones.
        truths: for each token of `prompt` two of 0, 1 and `IGNORED`; empty for all ignored.
        spared: numbers of answer tokens, each with a token id that is not to be made less likely
            there, although it is not the answer.
    """

    head: int
    prompt: Sequence[int]
    answer: Sequence[int]
    weights: Sequence[float] = ()
    truths: Sequence[tuple[int, int]] = ()
    spared: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What stands behind one root.

    Attributes:
        heads: token ids of each.
        segments: in any order; one with an empty prompt at most to a head.
    """

    heads: Sequence[Sequence[int]]
    segments: Sequence[Segment]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(map(len, self.heads)) + sum(
            len(segment.prompt) + len(segment.answer) for segment in self.segments
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of tokens; `length` counts those after the root.

    Attributes:
        ids: int64 (rows, length).
        positions: int64 (rows, length), from ``first`` at every head.
        shared: how many tokens at the beginning of every row hold its root and heads, at least.
        mask: bool (rows, 1, shared, shared), what each of these sees.
        own: int64 (segments, longest), where each segment's tokens are among those of all rows,
            roots included; -1 behind its end.
        context: int64 (segments, longest), where its root's and its head's tokens are; likewise.
        targets: int64 (rows, length), the token to come.
        weights: float32 (rows, length), of the targets; 0 for none.
        truths: int64 (rows, length, 2), 0, 1 or `IGNORED`.
        spared: int64 (3, n), row, place and id of tokens that are no alternatives to the target.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    shared: int
    mask: npt.NDArray[np.bool_]
    own: npt.NDArray[np.int64]
    context: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    truths: npt.NDArray[np.int64]
    spared: npt.NDArray[np.int64]


def pack(rows: Sequence[Row], *, root: int, first: int) -> Packed:
    """Lay out every row's heads, then its segments, padded to the longest row.

    Args:
        rows: what is packed.
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
    own: list[npt.NDArray[np.int64]] = []
    context: list[npt.NDArray[np.int64]] = []
    for number, row in enumerate(rows):
        here = number * (root + length)  # the row's first token among those of all rows
        ends = np.cumsum([len(head) for head in row.heads]).tolist()
        for head, end in zip(row.heads, ends, strict=True):
            span = slice(end - len(head), end)
            ids[number, span] = head
            positions[number, span] = first + np.arange(len(head))
            mask[number, 0, root + end :, root + end - len(head) : root + end] = False
        at = ends[-1]
        for segment in row.segments:
            prompt, size = len(segment.prompt), len(segment.prompt) + len(segment.answer)
            span = slice(at, at + size)
            ids[number, span] = [*segment.prompt, *segment.answer]
            opened, end = len(row.heads[segment.head]), ends[segment.head]
            positions[number, span] = np.arange(first + opened, first + opened + size)
            own.append(here + root + np.arange(at, at + size))
            before = root + np.arange(end - opened, end)
            context.append(here + np.concatenate([np.arange(root), before]))
            if segment.truths:
                truths[number, at : at + prompt] = segment.truths
            asked = at + prompt - 1 if prompt else end - 1
            places = [asked, *range(at + prompt, at + size - 1)]
            targets[number, places] = segment.answer
            weights[number, places] = segment.weights or 1.0
            spared += [(number, places[i], token) for i, token in segment.spared]
            at += size
    return Packed(
        ids,
        positions,
        shared,
        mask,
        _padded(own),
        _padded(context),
        targets,
        weights,
        truths,
        np.array(spared, np.int64).reshape(-1, 3).T,
    )


def _padded(lists: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """One under the other, with -1 behind the shorter ones."""
    table = np.full((len(lists), max(map(len, lists))), -1)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table


class TreeAttention:
    """What tokens of packed rows see, computed part by part: most pairs of a row are unrelated.

    transformers calls it in the place of its own attention of the same inputs and outputs.

    Args:
        packed: the rows that the next forward is about.
    """

    NAME = "granalign_fast_tree"

    def __init__(self, packed: Packed) -> None:
        import torch

        own, context = torch.from_numpy(packed.own), torch.from_numpy(packed.context)
        self.shared = packed.shared
        self.shared_mask = _additive(torch.from_numpy(packed.mask))
        self.kept = (own >= 0).flatten()
        self.queries = own.clamp(min=0).flatten()
        self.keys = torch.cat([context, own], 1).clamp(min=0).flatten()
        self.segments, longest = own.shape
        behind = torch.ones(longest, longest, dtype=torch.bool).tril()
        seen = [(context >= 0)[:, None].expand(-1, longest, -1), behind & (own >= 0)[:, None]]
        self.mask = _additive(torch.cat(seen, 2)[:, None])

    @classmethod
    def install(cls, config: Any) -> None:
        """Let a language model of this configuration attend so; it takes ``tree=`` then."""
        from transformers import AttentionInterface

        AttentionInterface.register(cls.NAME, _attend)
        config._attn_implementation = cls.NAME

    def __call__(self, query: Any, key: Any, value: Any) -> Any:
        """Outputs (rows, length, heads, size) of (rows, heads, length, size)."""
        import torch
        from torch.nn import functional

        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        rows, heads, length, size = query.shape
        first = slice(0, self.shared)
        begun = functional.scaled_dot_product_attention(
            query[:, :, first], key[:, :, first], value[:, :, first], attn_mask=self.shared_mask
        )
        flat = (x.transpose(1, 2).reshape(rows * length, -1) for x in (query, key, value))
        places = (self.queries, self.keys, self.keys)
        q, k, v = (
            x.index_select(0, place).view(self.segments, -1, heads, size).transpose(1, 2)
            for x, place in zip(flat, places, strict=True)
        )
        ended = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        ended = ended.transpose(1, 2).reshape(-1, heads * size)[self.kept]
        begun = begun.transpose(1, 2).reshape(rows, self.shared, -1)
        padding = begun.new_zeros(rows, length - self.shared, heads * size)
        out = torch.cat([begun, padding], 1).flatten(0, 1)
        # Where a row's heads are shorter than others', its first segment has been in both.
        out = out.index_copy(0, self.queries[self.kept], ended)
        return out.view(rows, length, heads, size)


def _additive(seen: Any) -> Any:
    """Numbers to add for truth values: attention's way back is a third faster with them."""
    import torch

    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def _attend(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, tree: TreeAttention, **unused: Any
) -> tuple[Any, None]:
    return tree(query, key, value), None
