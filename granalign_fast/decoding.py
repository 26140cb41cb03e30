"""The greedy loop: the likeliest token after each row, again and again, without waiting for it.

Tokens, positions and masks stay where the model computes. The host looks at the tokens only every
few steps, and meanwhile queues the next step: what comes after a row's end is cut off afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .place import Array, Place

Cache = tuple[Array, ...]
"""Keys and values of every layer in turn, each (rows, kv_heads, tokens, head_dim)."""
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenBatch:
    """Rows of token ids that end together, all three arrays in one place.

    Attributes:
        ids: (rows, tokens).
        positions: (rows, tokens).
        mask: (rows, all tokens), 0 for padding, over what the cache holds as well; None where the
            model takes none.
    """

    ids: Array
    positions: Array
    mask: Array | None

    def keep(self, rows: Array) -> TokenBatch:
        """The rows that go on, by their numbers."""
        mask = None if self.mask is None else self.mask[rows]
        return TokenBatch(self.ids[rows], self.positions[rows], mask)

    def append(self, tokens: Array, xp: Any) -> TokenBatch:
        """The next step: one token a row."""
        mask = self.mask
        if mask is not None:  # padding is on the left: the last column is of ones
            mask = xp.concatenate([mask, mask[:, -1:]], axis=1)
        return TokenBatch(tokens[:, None], self.positions[:, -1:] + 1, mask)


def left_padded(prompts: Sequence[Sequence[int]], past: int, position: int) -> TokenBatch:
    """Prompts after `past` tokens, their first one at `position`, as one batch of NumPy's.

    Padded, and not in batches of equal length: the prompts of a rewriter differ by a few tokens,
    and a step reads every weight once for all rows. On a CPU the mask costs nothing measurable.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = np.zeros((len(prompts), longest), np.int64)  # any token will do for padding
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    places = np.arange(longest) - (longest - lengths)[:, None]
    seen = np.ones((len(prompts), past), np.int64)
    mask = np.concatenate([seen, (places >= 0).astype(np.int64)], axis=1)
    return TokenBatch(ids, position + np.maximum(places, 0), mask)


class _Answers:
    """What each prompt has been answered so far, and which of the rows that go on is whose."""

    def __init__(self, count: int, stops: Ids) -> None:
        self.found: list[list[int]] = [[] for _ in range(count)]
        self._stops = frozenset(stops.tolist())
        self._rows = np.arange(count)
        self._ended = np.zeros(count, bool)

    def take(self, steps: npt.NDArray[np.int64]) -> None:
        """Add tokens (steps, rows), of each row up to one that ends it."""
        for column in np.flatnonzero(~self._ended):
            answer = self.found[self._rows[column]]
            for token in steps[:, column].tolist():
                if token in self._stops:
                    self._ended[column] = True
                    break
                answer.append(token)

    @property
    def complete(self) -> bool:
        """Whether every row has ended."""
        return bool(self._ended.all())

    def drop(self, share: float) -> npt.NDArray[np.intp] | None:
        """Forget rows that have ended, if they are this share of all; the numbers of the others.

        Not a mask of them: to index by one, a GPU must first tell the host how many it leaves.
        """
        if not self._ended.any() or self._ended.mean() < share:
            return None
        going = np.flatnonzero(~self._ended)
        self._rows, self._ended = self._rows[going], self._ended[going]
        return going


def decode(
    step: Callable[[TokenBatch, Cache], tuple[Array, Cache]],
    logits: Array,
    cache: Cache,
    batch: TokenBatch,
    *,
    most: int,
    stops: Ids,
    place: Place,
    look_every: int,
) -> list[list[int]]:
    """New tokens of each row, without the one that ended it.

    Args:
        step: gives the logits (rows, vocabulary) that follow a batch, and the cache with it.
        logits: that follow the prompts.
        cache: with the prompts in it.
        batch: the prompts.
        most: tokens of a row that does not end by itself.
        stops: tokens that end a row.
        place: of all arrays.
        look_every: steps between two looks at the tokens. After 1, a row that has ended costs no
            further step; after more, the next step is queued before the host looks.
    """
    answers = _Answers(len(batch.ids), stops)
    at_once = look_every == 1
    unseen: list[Array] = []
    for left in range(most, 0, -1):
        with place.work():
            tokens = logits.argmax(axis=1)
            unseen.append(tokens)
            last, arriving = left == 1, None
            if last or len(unseen) == look_every:
                arriving, unseen = place.fetch(unseen), []
            if not (last or at_once):
                batch = batch.append(tokens, place.xp)
                logits, cache = step(batch, cache)
            if arriving is None:
                continue
            answers.take(arriving())
            if last or answers.complete:
                break
            # On a GPU a step takes hardly longer for a few rows more, but a cache has to be copied
            # to get rid of them: not before half of them have ended.
            going = answers.drop(0.0 if at_once else 0.5)
            if going is not None:
                kept = place.put(going)
                batch, cache = batch.keep(kept), tuple(array[kept] for array in cache)
                logits, tokens = logits[kept], tokens[kept]
            if at_once:
                batch = batch.append(tokens, place.xp)
                logits, cache = step(batch, cache)
    return answers.found
