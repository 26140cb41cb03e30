"""From texts to curves and ranked moments: on the host, or on a GPU, which gives back these alone.

A retriever asks a ranker for two things: the embeddings of all texts of a search, kept where the
ranker works, and then, for each batch of requests that are alike, its curves and moments.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock, RLock
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import (
    Curves,
    Ranked,
    Ranking,
    RankingRules,
    context,
    nms,
    proposals,
    similarity,
)
from granalign_fast.protocols import TextEncoder
from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK

from .batches import Question, Variants, aware_rows, check_finite, pack, rows_of, videos_of
from .clock import Clock

_KEPT_BYTES = 1 << 29
"""Captions of videos that stay on a GPU: some 4000 videos of 150 seconds, by MiniLM."""
_KEPT_RANKINGS = 16
_KEPT_CLIPS = 1 << 14
"""Clips of all pairs up to which a batch's tables and results stay, for the next one of its shape.
A search of one video for one query is such a batch; a larger one is worth its tables."""


@runtime_checkable
class DeviceTextEncoder(TextEncoder, Protocol):
    """An encoder that can leave embeddings on the GPU that made them; `SentenceEncoder` is one.

    What any other encoder gives is uploaded.
    """

    def encode_on(self, texts: Sequence[str], device: ArrayDevice) -> Array:
        """As `encode`, float32, an array of the device's, ready in the order of its stream."""
        ...


class Texts(NamedTuple):
    """The embeddings of all texts of a search."""

    embeddings: Array
    """`(texts, dim)` float32, where the ranker works."""
    row: Mapping[str, int]
    """The row of each text."""


class Ranker(Protocol):
    """Embeds texts, and ranks the moments of batches of requests."""

    def embed(self, encoder: TextEncoder, texts: Sequence[str]) -> Texts:
        """The embeddings of texts, of which some may be equal."""
        ...

    def rank(
        self, batch: Sequence[Question], asked: Sequence[Variants], texts: Texts, clock: Clock
    ) -> tuple[Curves, Ranked]:
        """The curves and moments of requests, NumPy arrays.

        Args:
            batch: the requests, with equally many variants of each granularity.
            asked: their variants.
            texts: of all variants and aware captions.
            clock: told of each stage.

        Raises:
            GranAlignError: a video was indexed with another encoder, an aware caption names no
                clip, or an embedding is not a number.
        """
        ...


def ranker_on(device: ArrayDevice, config: RetrieverConfig) -> Ranker:
    """Return the ranker that runs on a device."""
    return HostRanker(config) if device.index is None else DeviceRanker(config, device)


class HostRanker:
    """The kernels' NumPy twins, one after the other, each a stage of its own."""

    def __init__(self, config: RetrieverConfig) -> None:
        self.config = config

    def embed(self, encoder: TextEncoder, texts: Sequence[str]) -> Texts:
        """As the encoder gives them."""
        return Texts(encoder.encode(texts), _first_rows(texts))

    def rank(
        self, batch: Sequence[Question], asked: Sequence[Variants], texts: Texts, clock: Clock
    ) -> tuple[Curves, Ranked]:
        """Stages ``context``, ``similarity``, ``proposals``, ``nms``."""
        embedded, row = texts
        agnostic, offsets, videos = pack(batch, embedded.shape[1])
        if self.config.context is not None:
            agnostic = context(agnostic, offsets, rules=self.config.context)
        clock.lap("context")
        aware = aware_rows(batch, row)
        curves = similarity(
            embedded[rows_of(row, [simplified for simplified, _ in asked])],
            agnostic,
            offsets,
            videos=videos,
            detailed=embedded[rows_of(row, [detailed for _, detailed in asked])],
            aware=None if aware is None else embedded,
            aware_rows=aware,
            power=self.config.power,
        )
        check_finite(batch, curves)
        clock.lap("similarity")
        return curves, moments_of(curves, self.config, clock)


def moments_of(curves: Curves, config: RetrieverConfig, clock: Clock) -> Ranked:
    """What is cut out of curves on the host; stages ``proposals``, ``nms``."""
    found = proposals(curves.variants, curves.fused, curves.offsets, rules=config.proposals)
    clock.lap("proposals")
    ranked = nms(*found, threshold=config.nms_threshold, top=config.top)
    clock.lap("nms")
    return ranked


class DeviceRanker:
    """The kernels on a GPU. Threads may share it: they take turns to queue their work.

    Embeddings never leave it. What goes there for a batch are the row numbers of its texts; what
    comes back, in one copy, are its curves and moments. From the same curves the moments are those
    of `HostRanker` to the bit; the curves differ by the order in which the products are summed.

    A video's captions go there when it is searched for the first time, are mixed by `context`, and
    stay as long as the array that its index holds, up to `_KEPT_BYTES` of all videos, those last
    searched.

    A `Ranking` is kept for each of the last shapes, and not captured: a graph would read copies of
    its inputs, of which there are as many as launches.
    """

    def __init__(self, config: RetrieverConfig, device: ArrayDevice) -> None:
        self._context = config.context
        self._rules = RankingRules(
            power=config.power,
            proposals=config.proposals,
            threshold=config.nms_threshold,
            top=config.top,
        )
        self._device = device
        self._captions = Kept(_KEPT_BYTES)
        self._rankings: OrderedDict[Any, Ranking] = OrderedDict()
        # A ranking overwrites what it has returned: until that is in the stream to be fetched.
        self._turn = Lock()

    def embed(self, encoder: TextEncoder, texts: Sequence[str]) -> Texts:
        """Left where the encoder made them, if it can do that; otherwise uploaded."""
        if isinstance(encoder, DeviceTextEncoder):
            return Texts(encoder.encode_on(texts, self._device), _first_rows(texts))
        found = encoder.encode(texts)
        with CAPTURE_LOCK.shared():
            return Texts(self._device.put(found), _first_rows(texts))

    def rank(
        self, batch: Sequence[Question], asked: Sequence[Variants], texts: Texts, clock: Clock
    ) -> tuple[Curves, Ranked]:
        """All of it the stage ``rank``: only at its end the host waits."""
        embedded, row = texts
        indices, offsets, videos = videos_of(batch, embedded.shape[1])
        simplified = rows_of(row, [simplified for simplified, _ in asked])
        detailed = rows_of(row, [detailed for _, detailed in asked])
        aware = aware_rows(batch, row)
        counts = simplified.shape[1], detailed.shape[1]
        with CAPTURE_LOCK.shared():  # for allocations and waits must not meet a capture
            with self._turn, self._device.guarded():
                captions = 0 if aware is None else len(embedded)
                ranking = self._ranking(offsets, videos, counts, captions, embedded.shape[1])
                plain, guided, clips = self._upload(simplified, detailed, aware)
                ranked = ranking(
                    embedded[plain],
                    self._joined([self._captions.of(i.embeddings, self._mixed) for i in indices]),
                    detailed=embedded[guided] if counts[1] else None,
                    aware=None if aware is None else embedded,
                    aware_rows=None if aware is None else clips,
                )
                there = (ranked.scores, *ranked[:2], ranked.counts, *ranking.curves[:2])
                words = [array.reshape(-1).view(np.int32) for array in there]
                fetched = self._device.fetch([self._joined(words)])
            found = fetched()[0].copy()  # else results would hold pinned memory
        scores, starts, ends, kept, variants, fused = _apart(found, there)
        curves = Curves(variants, fused, ranking.pair_offsets)
        check_finite(batch, curves)
        clock.lap("rank")
        return curves, Ranked(starts, ends, scores, kept)

    def _ranking(
        self,
        offsets: npt.NDArray[np.int64],
        videos: npt.NDArray[np.int64],
        counts: tuple[int, int],
        captions: int,
        dim: int,
    ) -> Ranking:
        """One for batches of this shape, which may be there from an earlier one."""
        most = 1 << (captions - 1).bit_length() if captions else 0  # one more is no new shape
        key = offsets.tobytes(), videos.tobytes(), counts, most, dim
        found = self._rankings.pop(key, None)
        if found is None:
            found = Ranking(
                offsets,
                dim=dim,
                simplified=counts[0],
                detailed=counts[1],
                aware=most,
                videos=videos,
                rules=self._rules,
                device="cuda",
            )
        if found.total <= _KEPT_CLIPS:
            self._rankings[key] = found  # the last one now
            if len(self._rankings) > _KEPT_RANKINGS:
                self._rankings.popitem(last=False)
        return found

    def _upload(self, *rows: npt.NDArray[np.integer[Any]] | None) -> list[Array]:
        """Row numbers, int32, in one copy; nothing of what is None."""
        given = [np.asarray([] if part is None else part, np.int32) for part in rows]
        return _apart(self._device.put(np.concatenate([part.ravel() for part in given])), given)

    def _mixed(self, captions: npt.NDArray[Any]) -> Array:
        """The captions of one video as `similarity` compares them."""
        there = self._device.xp.ascontiguousarray(self._device.put(captions), dtype=np.float32)
        if self._context is None:
            return there
        return context(there, [0, len(there)], rules=self._context)

    def _joined(self, parts: Sequence[Array]) -> Array:
        return parts[0] if len(parts) == 1 else self._device.xp.concatenate(parts)


class Kept:
    """What was made of arrays: as long as these are there, up to so many bytes, the last used.

    Threads may share it.
    """

    def __init__(self, capacity: int) -> None:
        self.bytes = 0
        self._capacity = capacity
        self._kept: OrderedDict[int, tuple[weakref.ref[Any], Array]] = OrderedDict()
        self._lock = RLock()  # an array may go, and say so, in any line of any thread

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, array: npt.NDArray[Any], make: Callable[[npt.NDArray[Any]], Array]) -> Array:
        """What `make` gives of the array, or gave before."""
        key = id(array)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][1]
        made = make(array)
        own = weakref.ref(self)

        def gone(_: object) -> None:
            kept = own()
            if kept is not None:
                kept._drop(key)

        with self._lock:
            self._drop(key)  # another thread may have made it meanwhile
            self._kept[key] = weakref.ref(array, gone), made
            self.bytes += made.nbytes
            while self.bytes > self._capacity and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))
        return made

    def _drop(self, key: int) -> None:
        with self._lock:
            found = self._kept.pop(key, None)
            self.bytes -= 0 if found is None else found[1].nbytes


def _first_rows(texts: Sequence[str]) -> dict[str, int]:
    return {text: number for number, text in reversed(list(enumerate(texts)))}


def _apart(flat: Array, shapes: Sequence[Array]) -> list[Array]:
    """Arrays of these shapes and dtypes, out of one array of int32."""
    found, begin = [], 0
    for like in shapes:
        end = begin + like.nbytes // flat.itemsize
        found.append(flat[begin:end].view(like.dtype).reshape(like.shape))
        begin = end
    return found
