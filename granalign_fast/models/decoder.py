"""The greedy loop: the likeliest token after each row, again and again, without waiting for it.

Tokens and what they are computed from stay where the model computes. The host looks at the tokens
only every few steps, and meanwhile queues the next step: what comes after a row's end is cut off
afterwards.
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
"""From token ids and positions (rows, tokens) to what a model's decoder takes for them."""


class Rows(Protocol):
    """Rows of tokens under way, with the keys and values of all that they have so far."""

    shrinks: bool
    """Whether rows that have ended can be left out."""

    def extend(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Add tokens, of each row its own; the logits (rows, vocabulary) that follow them."""

    def extend_with(self, positions: Array, **inputs: Array) -> None:
        """Add as many tokens to each row, given as what the decoder takes for them."""

    def append(self, tokens: Array) -> Array:
        """Add a token (rows,) to each row; the logits (rows, vocabulary) that follow."""

    def keep(self, rows: Array) -> None:
        """Go on with these alone, by their numbers."""

    def cache(self) -> Cache:
        """Keys and values, where all rows are equally long."""


class Decoder(Protocol):
    """An exported decoder."""

    captures: int
    """How many shapes of rows have a step that is a CUDA graph by now."""

    def begin(self, rows: int, prefix: Any, tokens: int, steps: int, feed: Feed) -> Rows:
        """New rows.

        Args:
            rows: how many.
            prefix: the `Prefix` that they begin with, of one row for all or of one for each; None
                for nothing.
            tokens: that they will be extended by, at most.
            steps: tokens that will be appended then, at most.
            feed: of the model.
        """

    def alone(self, work: Callable[[], Any]) -> Any:
        """Do work with rows where, and when, the decoder wants it done."""


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
    rows: Rows,
    logits: Array,
    *,
    most: int,
    stops: Ids,
    device: ArrayDevice,
    look_every: int,
) -> list[list[int]]:
    """New tokens of each row, without the one that ended it.

    Args:
        rows: with the prompts in them.
        logits: (rows, vocabulary) that follow the prompts.
        most: tokens of a row that does not end by itself.
        stops: tokens that end a row.
        device: of all arrays.
        look_every: steps between two looks at the tokens. After 1, a row that has ended costs no
            further step; after more, the next step is queued before the host looks.
    """
    answers = _Answers(len(logits), stops)
    at_once = look_every == 1
    unseen: list[Array] = []
    for left in range(most, 0, -1):
        with device.guarded():
            tokens = logits.argmax(axis=1)
            unseen.append(tokens)
            last, arriving = left == 1, None
            if last or len(unseen) == look_every:
                arriving, unseen = device.fetch(unseen), []
            if not (last or at_once):
                logits = rows.append(tokens)
            if arriving is None:
                continue
            answers.take(arriving())
            if last or answers.complete:
                break
            # On a GPU a step takes hardly longer for a few rows more, but a cache has to be copied
            # to get rid of them: not before half of them have ended.
            going = answers.drop(0.0 if at_once else 0.5) if rows.shrinks else None
            if going is not None:
                kept = device.put(going)
                rows.keep(kept)
                logits, tokens = logits[kept], tokens[kept]
            if at_once:
                logits = rows.append(tokens)
    return answers.found
