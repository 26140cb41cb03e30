"""Stand-ins for models."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt


class BagOfWords:
    """An encoder that counts words, hashed into 64 numbers: cosines measure shared words."""

    dim = 64
    fingerprint = content_key = "bag-of-words"

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        rows = np.full((len(texts), self.dim), 1e-3, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % self.dim] += 1
        if progress:
            progress(len(texts))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class SeenWords:
    """A frame encoder of texts alone, in another space than `BagOfWords` has."""

    fingerprint = content_key = "seen-words"

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(BagOfWords().encode(texts)[:, ::-1])

    def encode_frames(self, frames: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        raise AssertionError("no frame is embedded in a search")
