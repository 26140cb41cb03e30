"""A ranker on a GPU: one chain of kernels, of which only the results come back to the host."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from granalign_fast.config import RetrieverConfig
from granalign_fast.kernels import Curves, Ranked, Ranking, RankingRules
from granalign_fast.protocols import TextEncoder
from granalign_fast.runtime.array_device import Array, ArrayDevice
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK

from .batches import (
    PreparedQuery,
    Variants,
    aware_rows,
    check_finite,
    distinct_videos,
    embedding_rows,
)
from .clock import Clock
from .derived_cache import DerivedArrayCache
from .frame_curves import FrameCurve, with_frames
from .host_ranker import cut_moments
from .mixed_captions import mix
from .ranker import TextEmbeddings, embed_roles

_CAPTION_CACHE_BYTES = 1 << 29
"""Bytes of mixed caption embeddings that stay on a GPU, 512 MiB: some 2300 videos of 150 seconds,
by MiniLM and `tuned`, which keeps two arrays of the size of a video's embeddings."""
_CACHED_RANKINGS = 16
"""Batch shapes whose tables and result arrays stay on a GPU; an LRU cache bounded by count."""
_MOST_CACHED_CLIPS = 1 << 14
"""Clips of a batch's queries, summed, up to which its tables and result arrays are cached for the
next batch of its shape. A search of one video for one query is such a batch. For a larger batch
the work outweighs the time to make the tables anew."""


@runtime_checkable
class DeviceTextEncoder(TextEncoder, Protocol):
    """An encoder that can leave embeddings on the GPU that computed them, as `SentenceEncoder`.

    The embeddings of any other encoder are uploaded.
    """

    def encode_on(self, texts: Sequence[str], device: ArrayDevice) -> Array:
        """Embed texts as `encode` does, into a float32 array on the device.

        The array is ready for whatever is queued on the device's stream afterwards.
        """
        ...


class DeviceRanker:
    """Runs the kernels on a GPU. A `Ranker`. Threads may share one: they take turns to queue work.

    Embeddings never leave the GPU. For a batch, the row numbers of its texts are uploaded; its
    curves and moments come back in one copy. From equal curves the moments are those of
    `HostRanker` to the bit; the curves differ by the order in which products are summed.

    A video's captions are uploaded when it is first searched, and mixed by `context`. They stay as
    long as the embeddings array of the video's index, up to `_CAPTION_CACHE_BYTES` for all videos;
    the least recently searched go first.

    The last shapes of batches each keep a `Ranking`. It is not captured as a CUDA graph: a graph
    would read copies of its inputs, and there are as many of these copies as kernel launches.
    """

    def __init__(self, config: RetrieverConfig, device: ArrayDevice) -> None:
        self._config = config
        self._rules = RankingRules(
            context=config.context,
            power=config.power,
            feedback=config.feedback,
            proposals=config.proposals,
            threshold=config.nms_threshold,
            top=config.top,
        )
        self._device = device
        self._captions = DerivedArrayCache(_CAPTION_CACHE_BYTES)
        self._rankings: OrderedDict[Any, Ranking] = OrderedDict()
        # A ranking overwrites its last results: only one thread at a time may queue a ranking and
        # the copy of its results.
        self._queue_lock = Lock()

    def embed(
        self,
        asking: TextEncoder,
        queries: Sequence[str],
        encoder: TextEncoder | None = None,
        captions: Sequence[str] = (),
    ) -> TextEmbeddings:
        """Embed texts; arguments as in `Ranker`. Rows of an encoder on a CPU are uploaded."""
        return embed_roles(self._encode, self._join, asking, queries, encoder, captions)

    def _encode(self, encoder: TextEncoder, texts: Sequence[str]) -> Array:
        """Return the embeddings of texts on the GPU."""
        if isinstance(encoder, DeviceTextEncoder):
            return encoder.encode_on(texts, self._device)
        embeddings = encoder.encode(texts)
        with CAPTURE_LOCK.shared():
            return self._device.put(embeddings)

    def _join(self, parts: Sequence[Array]) -> Array:
        """Concatenate embeddings on the GPU."""
        with self._device.guarded():
            return self._concatenate(list(parts))

    def rank(
        self,
        batch: Sequence[PreparedQuery],
        variants: Sequence[Variants],
        texts: TextEmbeddings,
        clock: Clock,
        *,
        frames: Sequence[FrameCurve] = (),
    ) -> tuple[Curves, Ranked]:
        """Return the curves and the moments of queries; arguments and errors as in `Ranker`.

        All of it is the stage ``rank``: the host waits only at the end.
        """
        embeddings, row, caption_row = texts
        dim = embeddings.shape[1]

        # On the host: which video and which rows of the embeddings each query needs.
        matrices, offsets, videos = distinct_videos(batch, dim)
        simplified = embedding_rows(row, [simplified for simplified, _ in variants])
        detailed = embedding_rows(row, [detailed for _, detailed in variants])
        aware = aware_rows(batch, caption_row)
        counts = simplified.shape[1], detailed.shape[1]

        with CAPTURE_LOCK.shared():  # allocations and waits are forbidden during a capture
            with self._queue_lock, self._device.guarded():
                # Queue the kernels: nothing here waits for the GPU.
                aware_texts = 0 if aware is None else len(embeddings)
                ranking = self._ranking(offsets, videos, counts, aware_texts, dim)
                simplified_rows, detailed_rows, clip_rows = self._upload(
                    simplified, detailed, aware
                )
                captions = [self._captions.get_or_create(video, self._mix) for video in matrices]
                rows = self._concatenate(captions, axis=1)
                ranked = ranking(
                    embeddings[simplified_rows],
                    rows[0],
                    detailed=embeddings[detailed_rows] if counts[1] else None,
                    aware=None if aware is None else embeddings,
                    aware_rows=None if aware is None else clip_rows,
                    second=rows[1] if len(rows) > 1 else None,
                )
                # Queue one copy of all results, as one array of 32-bit words.
                results = (ranked.scores, *ranked[:2], ranked.counts, *ranking.curves[:2])
                words = [array.reshape(-1).view(np.int32) for array in results]
                fetch = self._device.fetch([self._concatenate(words)])
            # Wait for the copy. Copied again: otherwise results would hold pinned memory.
            flat = fetch()[0].copy()

        scores, starts, ends, moment_counts, variant_curves, fused = _split(flat, results)
        curves = Curves(variant_curves, fused, ranking.pair_offsets)
        check_finite(batch, curves)
        clock.lap("rank")
        if frames:
            # The frames' curve was computed on the host: moments are cut there once more.
            curves = with_frames(curves, frames, self._config.frames_weight)
            return curves, cut_moments(curves, self._config, clock)
        return curves, Ranked(starts, ends, scores, moment_counts)

    def _ranking(
        self,
        offsets: npt.NDArray[np.int64],
        videos: npt.NDArray[np.int64],
        counts: tuple[int, int],
        aware_texts: int,
        dim: int,
    ) -> Ranking:
        """Return a ranking for batches of this shape, from the cache if it is there.

        Args:
            offsets: of the videos' clips, `(videos + 1,)`.
            videos: of each query, `(queries,)`.
            counts: of simplified and of detailed variants.
            aware_texts: rows of the embeddings that aware captions may refer to; 0 for none.
            dim: numbers of an embedding.
        """
        # Rounded up to a power of two, so that one more caption makes no new shape.
        most = 1 << (aware_texts - 1).bit_length() if aware_texts else 0
        key = offsets.tobytes(), videos.tobytes(), counts, most, dim
        ranking = self._rankings.pop(key, None)
        if ranking is None:
            ranking = Ranking(
                offsets,
                dim=dim,
                simplified=counts[0],
                detailed=counts[1],
                aware=most,
                videos=videos,
                rules=self._rules,
                mixed=True,
                device="cuda",
            )
        if ranking.total <= _MOST_CACHED_CLIPS:
            self._rankings[key] = ranking  # at the end: the most recently used
            if len(self._rankings) > _CACHED_RANKINGS:
                self._rankings.popitem(last=False)
        return ranking

    def _upload(self, *rows: npt.NDArray[np.integer[Any]] | None) -> list[Array]:
        """Upload row numbers as int32, all in one copy; None becomes an empty array."""
        parts = [np.asarray([] if part is None else part, np.int32) for part in rows]
        return _split(self._device.put(np.concatenate([part.ravel() for part in parts])), parts)

    def _mix(self, captions: npt.NDArray[Any]) -> Array:
        """Upload the caption embeddings of one video, and mix each with its neighbours'.

        Returns:
            `(matrices, clips, dim)` float32 on the device.
        """
        uploaded = self._device.xp.ascontiguousarray(self._device.put(captions), dtype=np.float32)
        return self._concatenate([rows[None] for rows in mix(uploaded, self._config)])

    def _concatenate(self, parts: Sequence[Array], axis: int = 0) -> Array:
        return parts[0] if len(parts) == 1 else self._device.xp.concatenate(parts, axis)


def _split(flat: Array, templates: Sequence[Array]) -> list[Array]:
    """Split one array of int32 into arrays with the shapes and dtypes of the templates."""
    parts, begin = [], 0
    for template in templates:
        end = begin + template.nbytes // flat.itemsize
        parts.append(flat[begin:end].view(template.dtype).reshape(template.shape))
        begin = end
    return parts
