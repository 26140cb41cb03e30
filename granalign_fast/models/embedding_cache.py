"""Embeddings kept on disk, so that the same texts are embedded once for an encoder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing
from granalign_fast.runtime.cache_folder import evict, mark_used

if TYPE_CHECKING:
    from .sentence_encoder import OnnxSentenceEncoder


_log = logging.getLogger(__name__)


class CachedEncoder:
    """A sentence encoder that keeps each list of texts it has embedded in a file of `folder`.

    The file's name is a hash of the encoder's fingerprint and of the texts, so another model,
    precision or text never finds it. A file that cannot be read, or does not fit, is made again;
    where none can be written, nothing is kept. The folder is bounded, see `cache_folder.evict`.
    """

    def __init__(self, encoder: OnnxSentenceEncoder, folder: str | os.PathLike[str]) -> None:
        self.encoder = encoder
        self.folder = Path(folder)

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """`(texts, dim)` float32, rows of unit length, from the file or from the encoder."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file, save

        key = hashlib.sha256(self.encoder.fingerprint.encode())
        for text in texts:
            key.update(len(text).to_bytes(8, "little") + text.encode("utf-8", "surrogatepass"))
        path = self.folder / f"embeddings-{key.hexdigest()[:32]}.safetensors"
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            embeddings = load_file(path)["embeddings"]
            if embeddings.shape == (len(texts), self.encoder.dim):
                mark_used(path)
                _log.info("read the embeddings of %d texts from %s", len(texts), path)
                if progress:
                    progress(len(texts))
                return np.asarray(embeddings, dtype=np.float32)
        embeddings = self.encoder.encode(texts, progress=progress)
        with contextlib.suppress(OSError, GranAlignError):  # without it the next call takes as long
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as sink:
                sink.write(save({"embeddings": embeddings}))
            _log.info("kept the embeddings of %d texts in %s", len(texts), path)
        evict(self.folder)
        return embeddings
