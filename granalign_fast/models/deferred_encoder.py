"""A sentence encoder that is loaded when it is first used: a search by frames never needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.protocols import Progress, TextEncoder, query_encoder


class DeferredEncoder:
    """A `TextEncoder` that another one stands behind.

    Args:
        load: returns the encoder; called at most once, by the first `encode`.
        asks: whether it is the encoder of queries already.
    """

    def __init__(self, load: Callable[[], TextEncoder], *, asks: bool = False) -> None:
        self._load = load
        self._encoder: TextEncoder | None = None
        self._asks = asks

    def encode(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings `(texts, dim)`, rows of unit length.

        Raises:
            GranAlignError: as the encoder that is loaded.
        """
        return self._loaded().encode(texts, progress=progress)

    @property
    def for_queries(self) -> DeferredEncoder:
        """The encoder of queries, which is loaded when it is first used."""
        if self._asks:
            return self
        return DeferredEncoder(lambda: query_encoder(self._loaded()), asks=True)

    def _loaded(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder
