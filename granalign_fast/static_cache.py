"""A decoder whose cache stays where it is, with room for what is to come: what a GPU runs.

A step then reads and writes the same memory as the one before it, and can be a CUDA graph: one
launch in the place of twenty a layer, which take the host longer than the GPU needs for them. Rows
of different lengths are padded on their right, where causality hides the padding from what comes
before it, and the next token is written over it.

None of this has met a GPU yet. ONNX Runtime's CPU provider runs the same graph, and is what it is
tested on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from .decoding import Cache, Feed
from .errors import GranAlignError
from .onnx_run import BoundRun
from .place import Array, Place
from .session import Session

if TYPE_CHECKING:
    from .generation import LlmManifest, Prefix

_ROOM = 256
"""Tokens: capacities are multiples of it. Prompts of one task differ by less, and share a graph."""
_KEPT = 4
"""Shapes whose memory is kept for the next batch: a rewriter has one, a captioner one for each
task, and one more for what is left over of a video."""
_GRAPHS = 64
"""Captures in all. ONNX Runtime keeps a graph as long as its session, used or not."""


class StaticDecoder:
    """``static.onnx`` of an export. Threads may share it; their batches come one after the other.

    Args:
        session: of the graph, made with `capturable`.
        manifest: of the model.
        place: where the session runs, and caches are.
    """

    def __init__(self, session: Session, manifest: LlmManifest, place: Place) -> None:
        self.session = session
        self.place = place
        self.manifest = manifest
        self.past = [name for name in session.inputs if name.startswith("past_key_values.")]
        self.captures = 0
        self._slots: OrderedDict[tuple[int, int], _Slot] = OrderedDict()
        # ONNX Runtime keeps a graph for the thread that captured it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def alone(self, work: Callable[[], Any]) -> Any:
        """Do work with rows, after all that was asked for before."""
        return self._thread.submit(work).result()

    def begin(
        self, rows: int, prefix: Prefix | None, tokens: int, steps: int, feed: Feed
    ) -> StaticRows:
        """New rows, of which there may be one batch at a time; see `Decoder`."""
        length = 0 if prefix is None else prefix.length
        capacity = -(-(length + tokens + steps) // _ROOM) * _ROOM
        slot = self._slot(rows, capacity) if steps else self._new(rows, capacity)
        if prefix is not None:
            heads, size = self.manifest.kv_heads, self.manifest.head_dim
            with self.place.work():
                for there, cached in zip(slot.cache, prefix.cache, strict=True):
                    split = there.reshape(rows, capacity, heads, size)
                    split[:, :length] = cached.swapaxes(1, 2)
        position = 0 if prefix is None else prefix.next_position
        return StaticRows(self, slot, length, position, feed)

    def _slot(self, rows: int, capacity: int) -> _Slot:
        """The memory of a shape; from its second time on, its step is a CUDA graph."""
        slot, failed = self._slots.pop((rows, capacity), None), None
        if slot is not None and slot.is_plain and self._may_capture:
            try:
                slot.capture(self.captures + 1)
                self.captures += 1
            except GranAlignError as error:
                failed = str(error)
        if failed is not None:
            slot = None
            self._slots.clear()
            self.session.give_up_graphs(failed)
        if slot is None:
            while len(self._slots) >= _KEPT:
                self._slots.popitem(last=False)
            slot = self._new(rows, capacity)
        self._slots[rows, capacity] = slot
        return slot

    @property
    def _may_capture(self) -> bool:
        return self.session.capturable and self.captures < _GRAPHS

    def _new(self, rows: int, capacity: int) -> _Slot:
        with self.place.work():
            return _Slot(self, rows, capacity)


class _Slot:
    """The memory of batches of one shape, and the step that is bound to it.

    Attributes:
        cache: keys and values of every layer in turn, each (rows, capacity, kv_heads * head_dim).
        ids: (rows, 1), the token of each row that a step adds.
        state: (3, rows): where it goes in the cache, how many tokens are there with it, and its
            position.
        positions: the last of these, (rows, 1).
    """

    def __init__(self, decoder: StaticDecoder, rows: int, capacity: int) -> None:
        self._decoder = decoder
        xp, manifest = decoder.place.xp, decoder.manifest
        kind, width = manifest.cache_dtype, manifest.kv_heads * manifest.head_dim
        # Zeros: what nobody has written is multiplied by nothing, and must not be NaN.
        self.cache = [xp.zeros((rows, capacity, width), kind) for _ in decoder.past]
        self.ids = xp.zeros((rows, 1), np.int64)
        self.state = xp.zeros((3, rows), np.int64)
        self.positions = self.state[2][:, None]
        self._last = xp.ones((rows, 1, 1), kind)
        self._inputs: dict[str, Array] = {}
        self._logits: Array = None
        self._step: BoundRun | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is a step that could become a CUDA graph."""
        return self._step is not None and not self._step.captured

    def capture(self, graph: int) -> None:
        """Make the step a CUDA graph; it is run meanwhile, on the first place of the cache."""
        assert self._step is not None
        with self._decoder.place.work():
            self.state[...] = 0
            self.state[1] = 1
        with self._decoder.place.here():
            self._step.capture(graph)

    def bind(
        self, inputs: dict[str, Array], write: Array, cached: Array, last: Array
    ) -> tuple[BoundRun, Array]:
        """A run that adds tokens to the cache, and where its logits (rows, 1, vocabulary) go."""
        decoder, rows = self._decoder, len(self.ids)
        manifest = decoder.manifest
        logits = decoder.place.xp.empty((rows, 1, manifest.vocabulary), manifest.cache_dtype)
        past = dict(zip(decoder.past, self.cache, strict=True))
        present = {n.replace("past_key_values", "present"): a for n, a in past.items()}
        inputs = inputs | {"write_indices": write, "cached_tokens": cached, "last": last}
        return decoder.session.bind(inputs | past, present | {"logits": logits}), logits

    def step(self, inputs: dict[str, Array]) -> Array:
        """Logits (rows, vocabulary) after one more token a row, until the next step."""
        if self._step is None:
            self._inputs = inputs
            self._step, self._logits = self.bind(inputs, self.state[0], self.state[1], self._last)
        for name, array in inputs.items():
            if array is not self._inputs[name]:
                self._inputs[name][...] = array
        self._step()
        return self._logits[:, 0]


class StaticRows:
    """Rows of a `StaticDecoder`; see `Rows`."""

    shrinks = False

    def __init__(
        self, decoder: StaticDecoder, slot: _Slot, length: int, position: int, feed: Feed
    ) -> None:
        self._decoder = decoder
        self._slot = slot
        self._feed = feed
        self._length = length
        self._position = position

    def extend(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Add tokens, of each row its own; the logits that follow them."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        ids = np.zeros((len(prompts), longest), np.int64)  # any token will do for padding
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        positions = np.tile(self._position + np.arange(longest), (len(ids), 1))
        put = self._decoder.place.put
        logits = self._run(longest, lengths, self._feed(put(ids), put(positions)))
        ends = self._length + lengths
        state = np.stack([ends, ends + 1, self._position + lengths])
        self._slot.state[...] = put(state)
        self._length += longest
        return logits

    def extend_with(self, positions: Array, **inputs: Array) -> None:
        """Add as many tokens to each row, given as what the decoder takes for them."""
        rows, more = len(self._slot.ids), positions.shape[-1]
        self._run(more, np.full(rows, more), {"position_ids": positions, **inputs})
        self._length += more

    def _run(self, more: int, lengths: Any, inputs: dict[str, Array]) -> Array:
        """Run `more` tokens a row, of which `lengths` count."""
        put, slot = self._decoder.place.put, self._slot
        last = np.arange(more) == lengths[:, None] - 1
        run, logits = slot.bind(
            inputs,
            put(np.full(len(lengths), self._length)),
            put(np.full(len(lengths), self._length + more)),
            put(last[:, None].astype(self._decoder.manifest.cache_dtype)),
        )
        run()
        return logits[:, 0]

    def append(self, tokens: Array) -> Array:
        """Add a token to each row; the logits that follow, until the next one is added."""
        slot = self._slot
        slot.ids[:, 0] = tokens
        logits = slot.step(self._feed(slot.ids, slot.positions))
        slot.state += 1
        return logits

    def keep(self, rows: Array) -> None:
        """Not to be asked for: a cache that stays where it is loses no row."""
        raise NotImplementedError

    def cache(self) -> Cache:
        """Keys and values of as many tokens as each row has, in memory of their own."""
        decoder, slot = self._decoder, self._slot
        heads, size = decoder.manifest.kv_heads, decoder.manifest.head_dim
        found = []
        for array in slot.cache:
            split = array.reshape(*array.shape[:2], heads, size)[:, : self._length]
            found.append(decoder.place.xp.ascontiguousarray(split.swapaxes(1, 2)))
        return tuple(found)
