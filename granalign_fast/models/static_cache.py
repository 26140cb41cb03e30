"""A decoder whose cache stays where it is, with room for what is to come: what a GPU runs.

A step then reads and writes the same memory as the one before it, and can be a CUDA graph: one
launch in the place of twenty a layer, which take the host longer than the GPU needs for them. Rows
of different lengths are padded on their right, where causality hides the padding from what comes
before it, and the next token is written over it.

None of this has met a GPU yet. ONNX Runtime's CPU provider runs the same graph, and is what results
are tested on; its CUDA provider captures it over a runtime that computes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.onnx_run import BoundRun
from granalign_fast.runtime.session import OnnxSession

from .decoder import Cache, Feed

if TYPE_CHECKING:
    from .manifest import LlmManifest
    from .prefix import Prefix

_ROOM = 256
"""Tokens: capacities are multiples of it. Prompts of one task differ by less, and share a graph."""
_KEPT = 6
"""Shapes whose memory is kept for the next batch: a rewriter has one, a captioner some for each
task, as rows are rounded."""
_KEPT_BYTES = 4 << 30
"""Of all of them: 64 rows of 512 tokens are 1.9 GB for Qwen2.5-VL 7B in fp16."""
_GRAPHS = 64
"""Captures in all. ONNX Runtime keeps a graph as long as its session, used or not."""


class _Parts(NamedTuple):
    """What a cache is made with."""

    session: OnnxSession
    manifest: LlmManifest
    device: ArrayDevice
    past: list[str]

    @property
    def width(self) -> int:
        """Numbers of a token in each of the arrays."""
        return self.manifest.kv_heads * self.manifest.head_dim

    def size(self, rows: int, capacity: int) -> int:
        """Bytes of a cache."""
        token = len(self.past) * self.width * self.manifest.cache_dtype.itemsize
        return rows * capacity * token


class StaticDecoder:
    """``static.onnx`` of an export. Threads may share it; their batches come one after the other.

    Args:
        session: of the graph, made with `capturable`.
        manifest: of the model.
        device: where the session runs, and caches are.

    Attributes:
        captures: see `Decoder`.
    """

    def __init__(self, session: OnnxSession, manifest: LlmManifest, device: ArrayDevice) -> None:
        past = [name for name in session.inputs if name.startswith("past_key_values.")]
        self._parts = _Parts(session, manifest, device, past)
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
        device, manifest = self._parts.device, self._parts.manifest
        length = 0 if prefix is None else prefix.length
        room = length + tokens + steps
        if steps:
            slot = self._slot(_rounded(rows), -(-room // _ROOM) * _ROOM)
        else:
            slot = self._new(rows, room)
        position = 0
        if prefix is not None:
            position, shape = prefix.next_position, (rows, -1, manifest.kv_heads, manifest.head_dim)
            with device.guarded():
                for there, cached in zip(slot.cache, prefix.cache, strict=True):
                    split = there[:rows].reshape(shape)
                    split[:, :length] = device.put(cached).swapaxes(1, 2)
        return StaticRows(slot, rows, length, position, feed)

    def _slot(self, rows: int, capacity: int) -> _Slot:
        """The memory of a shape; from its second time on, its step is a CUDA graph."""
        session, failed = self._parts.session, None
        slot = self._slots.pop((rows, capacity), None)
        if slot is not None:
            slot.clear()
            if slot.is_plain and session.capturable and self.captures < _GRAPHS:
                try:
                    slot.capture(self.captures + 1)
                    self.captures += 1
                except GranAlignError as error:
                    failed = str(error)
        if failed is not None:
            slot = None
            self._slots.clear()
            session.give_up_graphs(failed)
        keep = self._make_room(self._parts.size(rows, capacity))
        slot = self._new(rows, capacity) if slot is None else slot
        if keep:
            self._slots[rows, capacity] = slot
        return slot

    def _make_room(self, size: int) -> bool:
        """Whether one more shape can be kept, if need be by forgetting those longest unused."""
        kept = self._slots
        while len(kept) >= _KEPT or size + sum(slot.nbytes for slot in kept.values()) > _KEPT_BYTES:
            oldest = list(kept)
            if self.captures >= _GRAPHS:  # there will be no other graphs
                oldest = [key for key in oldest if not kept[key].is_graph]
            if not oldest:
                return False
            del kept[oldest[0]]
        return True

    def _new(self, rows: int, capacity: int) -> _Slot:
        try:
            with self._parts.device.guarded():
                return _Slot(self._parts, rows, capacity)
        except GranAlignError:  # no memory: that of other shapes may do
            if not self._slots:
                raise
        self._slots.clear()
        return self._new(rows, capacity)


def _rounded(rows: int) -> int:
    """Rows of a step: few numbers, so that batches share a graph; a row more takes next to nothing.

    >>> [_rounded(rows) for rows in (1, 2, 3, 5, 7, 9, 17, 40, 64)]
    [1, 2, 3, 6, 8, 12, 24, 48, 64]
    """
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if rows <= power * 3 // 4 else power


class _Slot:
    """The memory of batches of one shape, and the step that is bound to it.

    Attributes:
        parts: what it is made with.
        nbytes: of its cache.
        cache: keys and values of every layer in turn, each (rows, capacity, kv_heads * head_dim).
        ids: (rows, 1), the token of each row that a step adds.
        state: (3, rows): where it goes in the cache, how many tokens are there with it, and its
            position.
        positions: the last of these, (rows, 1).
    """

    def __init__(self, parts: _Parts, rows: int, capacity: int) -> None:
        self.parts = parts
        xp, kind = parts.device.xp, parts.manifest.cache_dtype
        self.nbytes = parts.size(rows, capacity)
        self._whole = xp.zeros((len(parts.past), rows, capacity, parts.width), kind)
        self.cache = [self._whole[layer] for layer in range(len(parts.past))]
        self.ids = xp.zeros((rows, 1), np.int64)
        self.state = xp.zeros((3, rows), np.int64)
        self.state[1] = 1
        self.positions = self.state[2][:, None]
        self._last = xp.ones((rows, 1, 1), kind)
        self._inputs: dict[str, Array] = {}
        self._logits: Array = None
        self._step: BoundRun | None = None

    @property
    def is_graph(self) -> bool:
        """Whether its step is a CUDA graph."""
        return self._step is not None and self._step.captured

    @property
    def is_plain(self) -> bool:
        """Whether it has a step that is none."""
        return self._step is not None and not self._step.captured

    def clear(self) -> None:
        """Forget the batch before: places that nobody writes to must hold no NaN of its."""
        with self.parts.device.guarded():
            self._whole[...] = 0
            self.state[...] = 0
            self.state[1] = 1

    def capture(self, graph: int) -> None:
        """Make the step a CUDA graph; it is run meanwhile, on the first device of the cache."""
        assert self._step is not None
        with self.parts.device.activate():
            self._step.capture(graph)

    def bind(
        self, rows: int, inputs: dict[str, Array], write: Array, cached: Array, last: Array
    ) -> tuple[BoundRun, Array]:
        """A run that adds tokens to the first rows, and where its logits (rows, 1, vocabulary) go.

        Args:
            rows: how many.
            inputs: what it is about.
            write: where in the cache the new tokens go.
            cached: how many tokens are there with them.
            last: of which token the logits are wanted.
        """
        session, manifest, device, names = self.parts
        logits = device.xp.empty((rows, 1, manifest.vocabulary), np.float32)
        past = {name: cache[:rows] for name, cache in zip(names, self.cache, strict=True)}
        present = {name.replace("past_key_values", "present"): past[name] for name in names}
        inputs = inputs | {"write_indices": write, "cached_tokens": cached, "last": last}
        return session.bind(inputs | past, present | {"logits": logits}), logits

    def step(self, inputs: dict[str, Array]) -> Array:
        """Logits (rows, vocabulary) after one more token a row, until the next step."""
        if self._step is None:
            self._inputs, write, cached = inputs, self.state[0], self.state[1]
            self._step, self._logits = self.bind(len(self.ids), inputs, write, cached, self._last)
        for name, array in inputs.items():
            if array is not self._inputs[name]:
                self._inputs[name][...] = array
        self._step()
        return self._logits[:, 0]


class StaticRows:
    """Rows of a `StaticDecoder`, the first ones of a slot; see `Rows`."""

    shrinks = False

    def __init__(self, slot: _Slot, rows: int, length: int, position: int, feed: Feed) -> None:
        self._slot = slot
        self._rows = rows
        self._length = length
        self._position = position
        self._feed = feed

    def extend(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Add tokens, of each row its own; the logits that follow them."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        # Padded with the last token of each: hidden from those before it, it takes part multiplied
        # by 0, and must not be one that overflows.
        padded = [[*prompt, *[prompt[-1]] * (longest - len(prompt))] for prompt in prompts]
        ids = np.array(padded, np.int64)
        positions = np.tile(self._position + np.arange(longest), (len(ids), 1))
        put, ends = self._slot.parts.device.put, self._length + lengths
        logits = self._run(longest, lengths, self._feed(put(ids), put(positions)))
        state = np.stack([ends, ends + 1, self._position + lengths])
        self._slot.state[:, : self._rows] = put(state)
        return logits

    def extend_with(self, positions: Array, **inputs: Array) -> None:
        """Add as many tokens to each row, given as what the decoder takes for them."""
        more = positions.shape[-1]
        self._run(more, np.full(self._rows, more), {"position_ids": positions, **inputs})

    def _run(self, more: int, lengths: Any, inputs: dict[str, Array]) -> Array:
        """Run `more` tokens a row, of which `lengths` count."""
        put, kind = self._slot.parts.device.put, self._slot.parts.manifest.cache_dtype
        write = np.full(self._rows, self._length)
        last = np.arange(more) == lengths[:, None] - 1
        run, logits = self._slot.bind(
            *(self._rows, inputs, put(write), put(write + more)),
            put(last[:, None].astype(kind)),
        )
        run()
        self._length += more
        return logits[:, 0]

    def append(self, tokens: Array) -> Array:
        """Add a token to each row; the logits that follow, until the next one is added."""
        slot = self._slot
        slot.ids[: self._rows, 0] = tokens
        logits = slot.step(self._feed(slot.ids, slot.positions))
        slot.state += 1
        return logits[: self._rows]

    def keep(self, rows: Array) -> None:
        """Not to be asked for: a cache that stays where it is loses no row."""
        raise NotImplementedError

    def cache(self) -> Cache:
        """Keys and values of as many tokens as each row has, in memory of their own."""
        manifest, found = self._slot.parts.manifest, []
        shape = (self._rows, -1, manifest.kv_heads, manifest.head_dim)
        for array in self._slot.cache:
            split = array[: self._rows].reshape(shape)[:, : self._length]
            found.append(split.swapaxes(1, 2).copy())
        return tuple(found)
