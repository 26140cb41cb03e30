"""A text encoder that embeds only the texts whose embeddings are not known yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.protocols import Progress, TextEncoder

Known = Mapping[str, npt.NDArray[np.float32]]
"""The embedding `(dim,)` of each text, by the encoder of a search."""


class KnownTexts:
    """Takes embeddings from a table, and embeds the other texts. A `TextEncoder`.

    Args:
        encoder: made the embeddings of the table, and embeds the other texts.
        known: the table.
    """

    def __init__(self, encoder: TextEncoder, known: Known) -> None:
        self._encoder, self._known = encoder, known

    def encode(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings `(texts, dim)`, rows of unit length."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        rows = dict(zip(new, self._encoder.encode(new), strict=True)) if new else {}
        if progress is not None:
            progress(len(texts))
        return np.stack([rows[text] if text in rows else self._known[text] for text in texts])
