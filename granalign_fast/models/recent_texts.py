"""A sentence encoder that keeps the embeddings of the last texts in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from granalign_fast.protocols import TextEncoder, query_encoder


class RecentTexts:
    """An encoder in front of another one, for a program that embeds the same texts again and again.

    A search of a library embeds a query twice, once for each of its stages, and people ask the same
    again. It may be called on several threads.

    Args:
        encoder: embeds the texts that are not kept.
        most: texts that are kept, the last used ones. 8,192 of MiniLM take 13 MB.
        seen: called with the number of texts that were kept, and of those that were not.

    Example:
        >>> encoder = RecentTexts(SentenceEncoder())
        >>> encoder.encode(["a red car", "a dog"]).shape
        (2, 384)
        >>> len(encoder)
        2
    """

    def __init__(
        self,
        encoder: TextEncoder,
        most: int = 8192,
        seen: Callable[[int, int], None] | None = None,
    ) -> None:
        self.encoder = encoder
        self._most, self._seen = most, seen
        self._kept: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        # A model with a prompt for queries has other embeddings for them: they are kept apart.
        asking = query_encoder(encoder)
        self._asking = self if asking is encoder else RecentTexts(asking, most, seen)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def for_queries(self) -> RecentTexts:
        """The encoder of queries, with the texts that it keeps; itself if the model has one."""
        return self._asking

    @property
    def fingerprint(self) -> str | None:
        """The encoder's, whose embeddings these are."""
        return getattr(self.encoder, "fingerprint", None)

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings `(texts, dim)`, rows of unit length; arguments are the encoder's."""
        if not texts:
            return self.encoder.encode(texts, progress=progress)
        # 1. Take what is kept.
        with self._lock:
            rows = {text: self._kept[text] for text in dict.fromkeys(texts) if text in self._kept}
            for text in rows:
                self._kept.move_to_end(text)
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        if self._seen is not None:
            self._seen(len(rows), len(new))
        # 2. Embed the others, in one call.
        if new:
            rows |= zip(new, self.encoder.encode(new), strict=True)
            with self._lock:
                # Copies, because a row would keep the whole array.
                self._kept |= {text: rows[text].copy() for text in new[-self._most :]}
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
        if progress is not None:
            progress(len(texts))
        return np.stack([rows[text] for text in texts])
