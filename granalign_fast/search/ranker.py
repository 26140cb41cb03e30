"""The protocol of rankers: from texts to curves and ranked moments.

A scorer calls a ranker twice. First the ranker embeds all texts of a search, and leaves the
embeddings on its own device. Then it computes curves and moments for each batch of queries that
have equal numbers of variants. `HostRanker` works in NumPy, `DeviceRanker` on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from granalign_fast.kernels import Curves, Ranked
from granalign_fast.protocols import TextEncoder
from granalign_fast.runtime.array_device import Array

from .batches import PreparedQuery, Variants
from .clock import Clock
from .frame_curves import FrameCurve


class TextEmbeddings(NamedTuple):
    """The embeddings of all texts of a search."""

    embeddings: Array
    """`(texts, dim)` float32, on the ranker's device."""
    row: Mapping[str, int]
    """The row of each text."""


class Ranker(Protocol):
    """Embeds texts, and ranks the moments of batches of queries."""

    def embed(self, encoder: TextEncoder, texts: Sequence[str]) -> TextEmbeddings:
        """Embed texts; some may be equal."""
        ...

    def rank(
        self,
        batch: Sequence[PreparedQuery],
        variants: Sequence[Variants],
        texts: TextEmbeddings,
        clock: Clock,
        *,
        frames: Sequence[FrameCurve] = (),
    ) -> tuple[Curves, Ranked]:
        """Return the curves and the moments of queries, as NumPy arrays.

        Args:
            batch: the queries, with equally many variants of each granularity.
            variants: of each query.
            texts: the embeddings of all variants and all query-aware captions.
            clock: receives a lap for each stage.
            frames: the curve of each query's frames, which becomes one more variant; none for
                curves of texts alone.

        Raises:
            GranAlignError: a video was indexed with another encoder, an aware caption names no
                clip, or an embedding is not a number.
        """
        ...
