"""A decoder whose cache is made anew with every step, longer by it: what a CPU runs.

Rows of different lengths are padded on their left, and a mask hides the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.session import Session

from .decoder import Cache, Feed, Ids

if TYPE_CHECKING:
    from .manifest import LlmManifest
    from .prefix import Prefix


class GrowingDecoder:
    """``model.onnx`` of an export. Any number of threads may use it.

    Args:
        session: of the graph.
        manifest: of the model.
        device: where the session runs, and caches are.
    """

    captures = 0  # no step has the shape of the one before

    def __init__(self, session: Session, manifest: LlmManifest, device: ArrayDevice) -> None:
        self.session = session
        self.device = device
        self._manifest = manifest
        self._past = [name for name in session.inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]

    def begin(
        self, rows: int, prefix: Prefix | None, tokens: int, steps: int, feed: Feed
    ) -> GrowingRows:
        """New rows; see `Decoder`. Room is found as it is needed."""
        xp, manifest = self.device.xp, self._manifest
        with self.device.guarded():
            if prefix is None:
                shape = (rows, manifest.kv_heads, 0, manifest.head_dim)
                cache = tuple(xp.empty(shape, manifest.cache_dtype) for _ in self._past)
                return GrowingRows(self, cache, 0, feed)
            cache = prefix.cache
            if prefix.rows != rows:
                cache = tuple(xp.repeat(array, rows, axis=0) for array in cache)
            return GrowingRows(self, cache, prefix.next_position, feed)

    def alone(self, work: Callable[[], Any]) -> Any:
        """Do it; rows have nothing in common."""
        return work()

    def run(self, cache: Cache, mask: Array, inputs: dict[str, Array]) -> tuple[Array, Cache]:
        """Logits (rows, vocabulary) of the last position, and the cache with the inputs in it."""
        # Stock exports of some families tell places by the mask, and all give every position.
        if "position_ids" not in self.session.inputs:
            inputs.pop("position_ids", None)
        outputs = self.session(
            **inputs, attention_mask=mask, **dict(zip(self._past, cache, strict=True))
        )
        return outputs["logits"][:, -1], tuple(outputs[name] for name in self._present)


class GrowingRows:
    """Rows of a `GrowingDecoder`; see `Rows`."""

    shrinks = True

    def __init__(self, decoder: GrowingDecoder, cache: Cache, position: int, feed: Feed) -> None:
        self._decoder = decoder
        self._cache = cache
        self._feed = feed
        self._position = position
        self._positions: Array = None  # of the last token, (rows, 1)
        self._mask: Array = None

    def extend(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Add tokens, of each row its own; the logits that follow them."""
        put, past = self._decoder.device.put, self._cache[0].shape[2]
        ids, positions, mask = left_padded(prompts, past, self._position)
        positions = put(positions)
        self._positions, self._mask = positions[:, -1:], put(mask)
        return self._run(self._feed(put(ids), positions))

    def extend_with(self, positions: Array, **inputs: Array) -> None:
        """Add as many tokens to each row, given as what the decoder takes for them."""
        shape = (self._cache[0].shape[0], self._cache[0].shape[2] + positions.shape[-1])
        self._mask = self._decoder.device.put(np.ones(shape, np.int64))
        self._run({"position_ids": positions, **inputs})

    def append(self, tokens: Array) -> Array:
        """Add a token to each row; the logits that follow."""
        xp, self._positions = self._decoder.device.xp, self._positions + 1
        # Padding is on the left: the last column is of ones.
        self._mask = xp.concatenate([self._mask, self._mask[:, -1:]], axis=1)
        return self._run(self._feed(tokens[:, None], self._positions))

    def keep(self, rows: Array) -> None:
        """Go on with these alone."""
        self._cache = tuple(array[rows] for array in self._cache)
        self._positions, self._mask = self._positions[rows], self._mask[rows]

    def cache(self) -> Cache:
        """Keys and values."""
        return self._cache

    def _run(self, inputs: dict[str, Array]) -> Array:
        logits, self._cache = self._decoder.run(self._cache, self._mask, inputs)
        return logits


def left_padded(prompts: Sequence[Sequence[int]], past: int, position: int) -> tuple[Ids, Ids, Ids]:
    """Token ids, positions and mask of prompts after `past` tokens, the first one at `position`.

    Padded, and not in batches of equal length: the prompts of a rewriter differ by a few tokens,
    and a step reads every weight once for all rows. On a CPU the mask costs nothing measurable.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    # Padded with the first token of each: hidden, it takes part multiplied by 0, and must not be
    # one that overflows.
    padded = [[*[prompt[0]] * (longest - len(prompt)), *prompt] for prompt in prompts]
    ids = np.array(padded, np.int64)
    places = np.arange(longest) - (longest - lengths)[:, None]
    seen = np.ones((len(prompts), past), np.int64)
    mask = np.concatenate([seen, (places >= 0).astype(np.int64)], axis=1)
    return ids, position + np.maximum(places, 0), mask
