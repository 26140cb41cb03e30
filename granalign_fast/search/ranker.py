"""The protocol of rankers: from texts to curves and ranked moments.

A scorer calls a ranker twice. First the ranker embeds all texts of a search, and leaves the
embeddings on its own device. Then it computes curves and moments for each batch of queries that
have equal numbers of variants. `HostRanker` works in NumPy, `DeviceRanker` on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from granalign_fast.kernels import Curves, Ranked
from granalign_fast.protocols import TextEncoder
from granalign_fast.runtime.array_device import Array

from .batches import PreparedQuery, Variants, first_rows
from .clock import Clock
from .frame_curves import FrameCurve


class TextEmbeddings(NamedTuple):
    """The embeddings of all texts of a search."""

    embeddings: Array
    """`(texts, dim)` float32, on the ranker's device."""
    row: Mapping[str, int]
    """The row of each query and each rewrite."""
    captions: Mapping[str, int]
    """The row of each query-aware caption."""


def embed_roles(
    encode: Callable[[TextEncoder, Sequence[str]], Array],
    join: Callable[[Sequence[Array]], Array],
    asking: TextEncoder,
    queries: Sequence[str],
    encoder: TextEncoder | None,
    captions: Sequence[str],
) -> TextEmbeddings:
    """Embed queries and captions for `Ranker.embed`, whose arguments these are.

    Args:
        encode: embeds texts with an encoder.
        join: concatenates arrays of rows.
        asking: as for `Ranker.embed`.
        queries: likewise.
        encoder: likewise.
        captions: likewise.
    """
    if encoder is None or encoder is asking or not captions:
        row = first_rows([*queries, *captions])
        return TextEmbeddings(encode(asking, [*queries, *captions]), row, row)
    embeddings = join([encode(asking, queries), encode(encoder, captions)])
    behind = {text: len(queries) + row for text, row in first_rows(captions).items()}
    return TextEmbeddings(embeddings, first_rows(queries), behind)


class Ranker(Protocol):
    """Embeds texts, and ranks the moments of batches of queries."""

    def embed(
        self,
        asking: TextEncoder,
        queries: Sequence[str],
        encoder: TextEncoder | None = None,
        captions: Sequence[str] = (),
    ) -> TextEmbeddings:
        """Embed texts; some may be equal.

        Args:
            asking: embeds the queries.
            queries: with their rewrites.
            encoder: embeds the captions; if it is `asking`, all texts are one call.
            captions: aware of a query.
        """
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
