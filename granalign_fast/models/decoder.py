"""Greedy decoding: append the likeliest token to each row, again and again.

Token ids and logits stay on the model's device. The host reads the token ids only every few steps
and queues the next step meanwhile. Tokens behind a row's end are cut off afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from granalign_fast.runtime.array_device import Array, ArrayDevice

Cache = tuple[Array, ...]
"""Keys and values of every layer in turn, each (rows, kv_heads, tokens, head_dim)."""

Ids = npt.NDArray[np.int64]
"""Token ids."""

Feed = Callable[[Array, Array], dict[str, Array]]
"""Function from token ids and positions, both (rows, tokens), to inputs of a model's decoder."""


class Batch(Protocol):
    """Rows of tokens that are decoded together, and their KV cache."""

    can_shrink: bool
    """Whether `keep` can drop rows that have ended."""

    def extend(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Append one prompt to each row; return the logits (rows, vocabulary) that follow."""

    def extend_with(self, positions: Array, **inputs: Array) -> None:
        """Append equally many tokens to each row, given as the decoder's own inputs."""

    def append(self, tokens: Array) -> Array:
        """Append a token (rows,) to each row; return the logits (rows, vocabulary) that follow."""

    def keep(self, rows: Array) -> None:
        """Keep the rows with these indices and drop the others."""

    def cache(self) -> Cache:
        """Return the keys and values, with padding where rows have different lengths."""

    def mask(self) -> Ids:
        """Return a mask (rows, tokens) of `cache` on the host: 0 for padding."""


class Decoder(Protocol):
    """An exported decoder."""

    captures: int
    """How many batch shapes have a decode step that is a CUDA graph so far."""

    def begin(self, rows: int, prefix: Any, tokens: int, steps: int, feed: Feed) -> Batch:
        """Start a batch.

        Args:
            rows: its number of rows.
            prefix: the `Prefix` whose rows they begin with, in turn; None for empty rows.
            tokens: the greatest number of tokens that `extend` will append to a row.
            steps: the greatest number of tokens that `append` will append after that.
            feed: makes the decoder's inputs from token ids and positions.
        """

    def execute(self, work: Callable[[], Any]) -> Any:
        """Run `work`, which uses batches of this decoder, on the thread that the decoder needs.

        Returns:
            The result of `work`.
        """


class _Answers:
    """The tokens generated for each prompt, and which of the remaining rows answers which prompt.

    Attributes:
        tokens: new tokens of each prompt.
    """

    def __init__(self, count: int, stops: Ids) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self._stops = frozenset(stops.tolist())
        self._prompts = np.arange(count)  # of each remaining row
        self._ended = np.zeros(count, bool)

    def add(self, steps: npt.NDArray[np.int64]) -> None:
        """Add tokens (steps, rows); each row is cut off before the token that ends it."""
        for row in np.flatnonzero(~self._ended):
            answer = self.tokens[self._prompts[row]]
            for token in steps[:, row].tolist():
                if token in self._stops:
                    self._ended[row] = True
                    break
                answer.append(token)

    @property
    def complete(self) -> bool:
        """Whether every row has ended."""
        return bool(self._ended.all())

    def drop_ended(self, share: float) -> npt.NDArray[np.intp] | None:
        """Drop the rows that have ended, if they are at least this share of all rows.

        Returns:
            Indices of the other rows, or None if no row was dropped. A mask would not do: before a
            GPU can index by one, the host must wait for the number of rows that it selects.
        """
        if not self._ended.any() or self._ended.mean() < share:
            return None
        active = np.flatnonzero(~self._ended)
        self._prompts, self._ended = self._prompts[active], self._ended[active]
        return active


def decode(
    batch: Batch,
    logits: Array,
    *,
    max_new_tokens: int,
    stops: Ids,
    device: ArrayDevice,
    look_every: int,
) -> list[list[int]]:
    """Decode greedily until every row has ended.

    Args:
        batch: rows with the prompts in them.
        logits: (rows, vocabulary) that follow the prompts.
        max_new_tokens: the length of an answer that no stop token ends.
        stops: tokens that end a row.
        device: of all arrays.
        look_every: steps between two reads of the tokens by the host. With 1, the host reads before
            the next step, so a row that has ended costs no further step. With more, the next step
            is queued before the host reads.

    Returns:
        New tokens of each row, without the one that ended it.
    """
    answers = _Answers(len(logits), stops)
    reads_each_step = look_every == 1
    unread: list[Array] = []
    for remaining in range(max_new_tokens, 0, -1):
        with device.guarded():
            # 1. Choose the likeliest token of each row, on the device.
            tokens = logits.argmax(axis=1)
            unread.append(tokens)
            # 2. Every `look_every` steps, and after the last one, start to copy the tokens of all
            #    unread steps to the host. The copy does not wait.
            is_last, fetched = remaining == 1, None
            if is_last or len(unread) == look_every:
                fetched, unread = device.fetch(unread), []
            # 3. Queue the next step before waiting for the copy, so that the GPU stays busy.
            if not (is_last or reads_each_step):
                logits = batch.append(tokens)
            if fetched is None:
                continue
            # 4. Wait for the copy, collect the tokens, and finish if every row has ended.
            answers.add(fetched())
            if is_last or answers.complete:
                break
            # 5. Drop rows that have ended. On a CPU each row costs time, so they go at once. On a
            #    GPU a step takes hardly longer for a few more rows, but dropping rows copies the
            #    cache: wait until half of them have ended.
            min_share = 0.0 if reads_each_step else 0.5
            active = answers.drop_ended(min_share) if batch.can_shrink else None
            if active is not None:
                rows = device.put(active)
                batch.keep(rows)
                logits, tokens = logits[rows], tokens[rows]
            # 6. If the host reads after each step, the next step runs only now, without the
            #    dropped rows.
            if reads_each_step:
                logits = batch.append(tokens)
    return answers.tokens


def is_cut_off(answer: Sequence[int], max_new_tokens: int) -> bool:
    """Whether an answer of `decode` has no end, because it reached the greatest length.

    An answer that a stop token ends is shorter, since it does not hold that token.
    """
    return len(answer) == max_new_tokens
