"""A decoder whose KV cache has a fixed address and a fixed capacity, for a GPU.

Each decode step reads and writes the same memory as the one before, so it can be a CUDA graph: one
launch instead of twenty a layer, which take the host longer than the GPU needs to run them. Rows of
different lengths are padded on the right, where causality hides the padding from the tokens before
it. The next token is written over the padding.

This code has not run on a GPU yet. Tests check its results with ONNX Runtime's CPU provider, which
runs the same graph. ONNX Runtime's CUDA provider captures the graph in tests over a runtime that
computes nothing.
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

from .decoder import Cache, Feed, Ids
from .graph_contract import (
    CACHED_TOKENS,
    LAST,
    LOGITS,
    POSITION_IDS,
    WRITE_INDICES,
    is_past,
    present_of,
)

if TYPE_CHECKING:
    from .manifest import LlmManifest
    from .prefix import Prefix

_CAPACITY_STEP = 256
"""Tokens. Capacities are multiples of it: prompts of one task differ by less, and share a graph."""

_MAX_SLOTS = 6
"""Slots that are kept for later batches. A rewriter uses one, a captioner a few for each task, as
its numbers of rows are rounded."""

_MAX_SLOT_BYTES = 4 << 30
"""Bytes of all kept slots. 64 rows of 512 tokens are 1.9 GB for Qwen2.5-VL 7B in fp16."""

_MAX_GRAPHS = 64
"""Captures in all. ONNX Runtime keeps a captured graph as long as its session, even if unused."""


class _SlotContext(NamedTuple):
    """The session, manifest, device and cache inputs that all slots of a decoder share."""

    session: OnnxSession
    manifest: LlmManifest
    device: ArrayDevice
    past: list[str]

    @property
    def width(self) -> int:
        """Values of one token in each cache array."""
        return self.manifest.kv_heads * self.manifest.head_dim

    def nbytes(self, rows: int, capacity: int) -> int:
        """Return the bytes of a slot's cache."""
        token = len(self.past) * self.width * self.manifest.cache_dtype.itemsize
        return rows * capacity * token


class StaticDecoder:
    """The decoder of `graph_contract.STATIC_GRAPH`. Threads may share it; batches run in turn.

    Args:
        session: of the graph, opened with `capturable`.
        manifest: of the model.
        device: runs the session and holds the caches.

    Attributes:
        captures: see `Decoder`.
    """

    def __init__(self, session: OnnxSession, manifest: LlmManifest, device: ArrayDevice) -> None:
        past = [name for name in session.inputs if is_past(name)]
        self._context = _SlotContext(session, manifest, device, past)
        self.captures = 0
        # By rows and capacity, the least recently used first.
        self._slots: OrderedDict[tuple[int, int], _Slot] = OrderedDict()
        # ONNX Runtime replays a graph only on the thread that captured it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def execute(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the decoder's thread, after all earlier calls; return its result."""
        return self._thread.submit(work).result()

    def begin(
        self, rows: int, prefix: Prefix | None, tokens: int, steps: int, feed: Feed
    ) -> StaticBatch:
        """Start a batch; see `Decoder`. Only one batch may be in use at a time."""
        device, manifest = self._context.device, self._context.manifest
        length = 0 if prefix is None else prefix.length
        capacity = length + tokens + steps
        # Only a batch with decode steps gains from a slot that is kept: its step can be captured.
        if steps:
            capacity = -(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP
            slot = self._take_slot(_round_up_rows(rows), capacity)
        else:
            slot = self._allocate(rows, capacity)
        positions = lengths = np.zeros(rows, np.int64)
        # Copy the prefix: (rows, kv_heads, length, head_dim) to (rows, length, kv_heads, head_dim).
        if prefix is not None:
            turns = rows // prefix.rows  # the rows take those of the prefix in turn
            positions = np.tile(prefix.next_positions, turns)
            lengths = np.full(rows, length) if prefix.mask is None else positions
            shape = (turns, prefix.rows, -1, manifest.kv_heads, manifest.head_dim)
            with device.guarded():
                order = None if prefix.mask is None else device.put(_padding_last(prefix.mask))
                for target, source in zip(slot.cache, prefix.cache, strict=True):
                    split = target[:rows].reshape(shape)
                    tokens = device.put(source).swapaxes(1, 2)
                    if order is not None:
                        tokens = device.xp.take_along_axis(tokens, order, axis=1)
                    split[:, :, :length] = tokens
        return StaticBatch(slot, rows, lengths, positions, feed)

    def _take_slot(self, rows: int, capacity: int) -> _Slot:
        """Return an empty slot; when a slot is used again, its step is captured as a CUDA graph."""
        session, failure = self._context.session, None
        # 1. Use the slot of this shape again. Its second use shows that capturing pays.
        slot = self._slots.pop((rows, capacity), None)
        if slot is not None:
            slot.clear()
            if slot.has_plain_step and session.capturable and self.captures < _MAX_GRAPHS:
                try:
                    slot.capture(self.captures + 1)
                    self.captures += 1
                except GranAlignError as error:
                    failure = str(error)
        # 2. A failed capture makes the session unusable. Drop all slots, whose steps are bound to
        #    it, and load the model again without graphs.
        if failure is not None:
            slot = None
            self._slots.clear()
            session.give_up_graphs(failure)
        # 3. Keep the slot as the most recently used one.
        keep = self._evict_for(self._context.nbytes(rows, capacity))
        slot = self._allocate(rows, capacity) if slot is None else slot
        if keep:
            self._slots[rows, capacity] = slot
        return slot

    def _evict_for(self, nbytes: int) -> bool:
        """Evict the least recently used slots until one of `nbytes` can be kept.

        Returns:
            Whether it can be kept.
        """
        slots = self._slots
        while (
            len(slots) >= _MAX_SLOTS
            or nbytes + sum(slot.nbytes for slot in slots.values()) > _MAX_SLOT_BYTES
        ):
            candidates = list(slots)
            # When no more captures are left, a captured slot is worth more than any new one.
            if self.captures >= _MAX_GRAPHS:
                candidates = [key for key in candidates if not slots[key].has_graph]
            if not candidates:
                return False
            del slots[candidates[0]]
        return True

    def _allocate(self, rows: int, capacity: int) -> _Slot:
        """Return a new slot; if memory is short, free all kept slots and try once more."""
        try:
            with self._context.device.guarded():
                return _Slot(self._context, rows, capacity)
        except GranAlignError:
            if not self._slots:
                raise
        self._slots.clear()
        return self._allocate(rows, capacity)


def _padding_last(mask: Ids) -> Ids:
    """Return the order (rows, tokens, 1, 1) in which a row's padding stands behind its tokens."""
    return np.argsort(mask == 0, axis=1, kind="stable")[:, :, None, None]


def _round_up_rows(rows: int) -> int:
    """Round up to 2^n or 3 * 2^n, so that batches share graphs; a further row costs little time.

    >>> [_round_up_rows(rows) for rows in (1, 2, 3, 5, 7, 9, 17, 40, 64)]
    [1, 2, 3, 6, 8, 12, 24, 48, 64]
    """
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if rows <= power * 3 // 4 else power


class _Slot:
    """The memory of batches of one shape, and the decode step that is bound to it.

    Args:
        context: what all slots share.
        rows: of its batches, at most.
        capacity: tokens of a row.

    Attributes:
        context: what all slots share.
        nbytes: bytes of its cache.
        cache: keys and values of every layer in turn, each (rows, capacity, kv_heads * head_dim).
        ids: (rows, 1), the token of each row that a step adds.
        state: (3, rows): the cache index of the step's token, the number of tokens in the cache
            including it, and its position.
        positions: the positions in `state`, as (rows, 1).
    """

    def __init__(self, context: _SlotContext, rows: int, capacity: int) -> None:
        self.context = context
        xp, dtype = context.device.xp, context.manifest.cache_dtype
        self.nbytes = context.nbytes(rows, capacity)
        self._storage = xp.zeros((len(context.past), rows, capacity, context.width), dtype)
        self.cache = [self._storage[i] for i in range(len(context.past))]
        self.ids = xp.zeros((rows, 1), np.int64)
        self.state = xp.zeros((3, rows), np.int64)
        self.state[1] = 1
        self.positions = self.state[2][:, None]
        self._last = xp.ones((rows, 1, 1), dtype)
        self._inputs: dict[str, Array] = {}
        self._logits: Array = None
        self._step: BoundRun | None = None

    @property
    def has_graph(self) -> bool:
        """Whether its step is a CUDA graph."""
        return self._step is not None and self._step.captured

    @property
    def has_plain_step(self) -> bool:
        """Whether it has a step that is not yet a CUDA graph."""
        return self._step is not None and not self._step.captured

    def clear(self) -> None:
        """Zero the cache: a NaN left by the last batch would leak through unused positions."""
        with self.context.device.guarded():
            self._storage[...] = 0
            self.state[...] = 0
            self.state[1] = 1

    def capture(self, graph: int) -> None:
        """Run the step once and capture it as the CUDA graph of this number.

        The run writes to index 0 of the empty cache, which the batch then overwrites.
        """
        assert self._step is not None
        with self.context.device.activate():
            self._step.capture(graph)

    def bind(
        self, rows: int, inputs: dict[str, Array], write: Array, cached: Array, last: Array
    ) -> tuple[BoundRun, Array]:
        """Bind a run that appends tokens to the first rows.

        Args:
            rows: number of rows.
            inputs: the new tokens, as the decoder's other inputs.
            write: `WRITE_INDICES`, the cache index of each row's first new token.
            cached: `CACHED_TOKENS`, each row's tokens in the cache including the new ones.
            last: `LAST`, which selects the token whose logits are returned.

        Returns:
            The run, and the array (rows, 1, vocabulary) to which it writes logits.
        """
        session, manifest, device, names = self.context
        logits = device.xp.empty((rows, 1, manifest.vocabulary), np.float32)
        past = {name: cache[:rows] for name, cache in zip(names, self.cache, strict=True)}
        # Inputs and outputs of the cache are the same memory.
        present = {present_of(name): past[name] for name in names}
        inputs = inputs | {WRITE_INDICES: write, CACHED_TOKENS: cached, LAST: last}
        return session.bind(inputs | past, present | {LOGITS: logits}), logits

    def step(self, inputs: dict[str, Array]) -> Array:
        """Append one token to each row.

        Returns:
            Logits (rows, vocabulary), valid until the next step.
        """
        # The first step binds the run to the arrays of its inputs. Later steps copy into these.
        if self._step is None:
            self._inputs, write, cached = inputs, self.state[0], self.state[1]
            self._step, self._logits = self.bind(len(self.ids), inputs, write, cached, self._last)
        for name, array in inputs.items():
            if array is not self._inputs[name]:
                self._inputs[name][...] = array
        self._step()
        return self._logits[:, 0]


class StaticBatch:
    """A batch of a `StaticDecoder`, in the first rows of a slot; see `Batch`.

    Args:
        slot: its memory.
        rows: number of rows.
        lengths: tokens of each row in the cache.
        positions: of each row's next token.
        feed: makes the decoder's inputs.
    """

    can_shrink = False

    def __init__(self, slot: _Slot, rows: int, lengths: Ids, positions: Ids, feed: Feed) -> None:
        self._slot = slot
        self._rows = rows
        self._lengths = lengths
        self._positions = positions
        self._feed = feed

    def extend(self, prompts: Sequence[Sequence[int]]) -> Array:
        """Append one prompt to each row; return the logits (rows, vocabulary) that follow."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        # Pad each row with its own last token. Padding is hidden but still multiplied by 0, so it
        # must not be a token whose embedding overflows: infinity times 0 is NaN.
        padded = [[*prompt, *[prompt[-1]] * (longest - len(prompt))] for prompt in prompts]
        ids = np.array(padded, np.int64)
        positions = self._positions[:, None] + np.arange(longest)
        put = self._slot.context.device.put
        logits = self._run(longest, lengths, self._feed(put(ids), put(positions)))
        # The next token of each row goes right behind its prompt, over the padding.
        ends = self._lengths
        state = np.stack([ends, ends + 1, self._positions + lengths])
        self._slot.state[:, : self._rows] = put(state)
        return logits

    def extend_with(self, positions: Array, **inputs: Array) -> None:
        """Append equally many tokens to each row, given as the decoder's own inputs."""
        count = positions.shape[-1]
        self._run(count, np.full(self._rows, count), {POSITION_IDS: positions, **inputs})

    def _run(self, count: int, lengths: Any, inputs: dict[str, Array]) -> Array:
        """Append `count` tokens to each row, of which the first `lengths` are no padding."""
        put, dtype = self._slot.context.device.put, self._slot.context.manifest.cache_dtype
        write = self._lengths
        last = np.arange(count) == lengths[:, None] - 1
        run, logits = self._slot.bind(
            *(self._rows, inputs, put(write), put(write + count)),
            put(last[:, None].astype(dtype)),
        )
        run()
        self._lengths = self._lengths + lengths
        return logits[:, 0]

    def append(self, tokens: Array) -> Array:
        """Append a token (rows,) to each row; return the logits, valid until the next call."""
        slot = self._slot
        slot.ids[: self._rows, 0] = tokens
        logits = slot.step(self._feed(slot.ids, slot.positions))
        slot.state += 1
        return logits[: self._rows]

    def keep(self, rows: Array) -> None:
        """Raise an error: a static cache cannot drop rows."""
        raise NotImplementedError

    def cache(self) -> Cache:
        """Return a copy of the keys and values, as many of each row as the longest has."""
        manifest = self._slot.context.manifest
        shape = (self._rows, -1, manifest.kv_heads, manifest.head_dim)
        arrays = []
        for array in self._slot.cache:
            split = array[: self._rows].reshape(shape)[:, : self._lengths.max()]
            arrays.append(split.swapaxes(1, 2).copy())
        return tuple(arrays)

    def mask(self) -> Ids:
        """Return which of `cache` are no padding, which stands behind the tokens of a row."""
        mask: Ids = (np.arange(self._lengths.max()) < self._lengths[:, None]).astype(np.int64)
        return mask
