"""A decoder whose KV cache grows with every step, for a CPU.

Each run returns a new, longer cache. Rows of different lengths are padded on the left, and a mask
hides the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.session import Session

from .decoder import Cache, Feed, Ids
from .graph_contract import LOGITS, POSITION_IDS, is_past, present_of

if TYPE_CHECKING:
    from .manifest import LlmManifest
    from .prefix import Prefix


class GrowingDecoder:
    """The decoder of `graph_contract.GRAPH`. Any number of threads may use it at the same time.

    Args:
        session: of the graph.
        manifest: of the model.
        device: runs the session and holds the caches.
    """

    captures = 0  # no two steps have equal shapes, so none can be a CUDA graph

    def __init__(self, session: Session, manifest: LlmManifest, device: ArrayDevice) -> None:
        self.session = session
        self.device = device
        self._manifest = manifest
        self._past = [name for name in session.inputs if is_past(name)]
        self._present = [present_of(name) for name in self._past]

    def begin(
        self, rows: int, prefix: Prefix | None, tokens: int, steps: int, feed: Feed
    ) -> GrowingBatch:
        """Start a batch; see `Decoder`. The cache grows as needed, so no capacity is reserved."""
        xp, manifest = self.device.xp, self._manifest
        with self.device.guarded():
            if prefix is None:
                shape = (rows, manifest.kv_heads, 0, manifest.head_dim)
                cache = tuple(xp.empty(shape, manifest.cache_dtype) for _ in self._past)
                return GrowingBatch(self, cache, np.zeros(rows, np.int64), None, feed)
            # The rows take those of the prefix in turn.
            cache, mask, turns = prefix.cache, prefix.mask, rows // prefix.rows
            if turns > 1:
                cache = tuple(xp.tile(array, (turns, 1, 1, 1)) for array in cache)
                mask = None if mask is None else np.tile(mask, (turns, 1))
            return GrowingBatch(self, cache, np.tile(prefix.next_positions, turns), mask, feed)

    def execute(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the caller's thread: batches share no memory."""
        return work()

    def run(self, cache: Cache, mask: Array, inputs: dict[str, Array]) -> tuple[Array, Cache]:
        """Run the graph once.

        Args:
            cache: keys and values of all earlier tokens.
            mask: (rows, past + tokens), 0 for padding.
            inputs: the new tokens, as the decoder's other inputs.

        Returns:
            Logits (rows, vocabulary) of the last position, and the cache with the new tokens.
        """
        # Stock exports of some model families derive positions from the mask and have no such
        # input. Our models always give positions.
        if POSITION_IDS not in self.session.inputs:
            inputs.pop(POSITION_IDS, None)
        outputs = self.session(
            **inputs, attention_mask=mask, **dict(zip(self._past, cache, strict=True))
        )
        return outputs[LOGITS][:, -1], tuple(outputs[name] for name in self._present)


class GrowingBatch:
    """A batch of a `GrowingDecoder`; see `Batch`.

    Args:
        decoder: runs the batch.
        cache: keys and values that the rows begin with.
        positions: of each row's next token.
        mask: (rows, tokens) of the cache, 0 for padding; None if there is none.
        feed: makes the decoder's inputs.
    """

    can_shrink = True

    def __init__(
        self, decoder: GrowingDecoder, cache: Cache, positions: Ids, mask: Ids | None, feed: Feed
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._feed = feed
        if mask is None:
            mask = np.ones((len(positions), cache[0].shape[2]), np.int64)
        self._first, self._past = positions, mask
        self._positions: Array = None  # of the last token, (rows, 1)
        self._mask: Array = None

    def extend(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Append one prompt to each row; return the logits (rows, vocabulary) that follow."""
        put = self._decoder.device.put
        ids, positions, mask = left_padded(prompts, self._first, self._past)
        positions = put(positions)
        self._positions, self._mask = positions[:, -1:], put(mask)
        return self._run(self._feed(put(ids), positions))

    def extend_with(self, positions: Array, **inputs: Array) -> None:
        """Append equally many tokens to each row, given as the decoder's own inputs."""
        new = np.ones((len(self._past), positions.shape[-1]), np.int64)
        self._mask = self._decoder.device.put(np.concatenate([self._past, new], axis=1))
        self._run({POSITION_IDS: positions, **inputs})

    def append(self, tokens: Array) -> Array:
        """Append a token (rows,) to each row; return the logits (rows, vocabulary) that follow."""
        xp, self._positions = self._decoder.device.xp, self._positions + 1
        # Padding is on the left, so the last column holds ones. Repeating it unmasks the new token.
        self._mask = xp.concatenate([self._mask, self._mask[:, -1:]], axis=1)
        return self._run(self._feed(tokens[:, None], self._positions))

    def keep(self, rows: Array) -> None:
        """Keep the rows with these indices and drop the others."""
        self._cache = tuple(array[rows] for array in self._cache)
        self._positions, self._mask = self._positions[rows], self._mask[rows]

    def cache(self) -> Cache:
        """Return the keys and values."""
        return self._cache

    def mask(self) -> Ids:
        """Return which of them are no padding."""
        mask: Ids = self._decoder.device.to_host(self._mask)
        return mask

    def _run(self, inputs: dict[str, Array]) -> Array:
        logits, self._cache = self._decoder.run(self._cache, self._mask, inputs)
        return logits


def left_padded(prompts: Sequence[Sequence[int]], first: Ids, past: Ids) -> tuple[Ids, Ids, Ids]:
    """Pad prompts on the left to equal length.

    Prompts are padded rather than split into batches of equal length: a rewriter's prompts differ
    by a few tokens, and a step reads every weight once for all rows. On a CPU the mask costs
    nothing measurable.

    Args:
        prompts: token ids of each row.
        first: the position of each prompt's first token.
        past: mask (rows, tokens) of the tokens in the cache.

    Returns:
        Token ids and positions, both (rows, longest), and the mask (rows, past + longest).
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    # Pad each row with its own first token. Padding is masked but still multiplied by 0, so it must
    # not be a token whose embedding overflows: infinity times 0 is NaN.
    padded = [[*[prompt[0]] * (longest - len(prompt)), *prompt] for prompt in prompts]
    ids = np.array(padded, np.int64)
    # The index of each token in its prompt; negative for padding.
    offsets = np.arange(longest) - (longest - lengths)[:, None]
    mask = np.concatenate([past, (offsets >= 0).astype(np.int64)], axis=1)
    return ids, first[:, None] + np.maximum(offsets, 0), mask
