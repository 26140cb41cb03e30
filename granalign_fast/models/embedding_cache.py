"""An on-disk cache of embeddings: an encoder embeds the same list of texts only once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.files import check_private, make_private, replacing
from granalign_fast.parsing.limits import MOST_INDEX_BYTES
from granalign_fast.protocols import TextEncoder, query_encoder
from granalign_fast.reading import read_file
from granalign_fast.runtime.cache_folder import evict, mark_used

_log = logging.getLogger(__name__)


class NamedEncoder(TextEncoder, Protocol):
    """A `TextEncoder` whose embeddings have a name."""

    @property
    def fingerprint(self) -> str:
        """The name of the embeddings: equal for equal model and precision."""
        ...

    @property
    def content_key(self) -> str:
        """The fingerprint, and what tells apart models whose files have other content."""
        ...

    @property
    def dim(self) -> int:
        """Number of values in an embedding."""
        ...


class CachedEncoder:
    """A sentence encoder that stores the embeddings of each list of texts in a file of `folder`.

    The file's name is a hash of the content of the encoder's files and of the texts, so another
    model, precision or text has another file. A file that cannot be read, has another shape or
    type, or holds NaN or infinity is computed again. If the folder cannot be written, the
    embeddings are returned without being stored. The folder is bounded, see `cache_folder.evict`.

    Args:
        encoder: computes the embeddings that are not stored.
        folder: created when the first file is written.
    """

    def __init__(self, encoder: NamedEncoder, folder: str | os.PathLike[str]) -> None:
        self.encoder = encoder
        self.folder = Path(folder)

    @property
    def fingerprint(self) -> str:
        """The encoder's, whose embeddings these are."""
        return self.encoder.fingerprint

    @property
    def for_queries(self) -> CachedEncoder:
        """The encoder of queries, with files of its own; itself if the model has one for both."""
        asking: Any = query_encoder(self.encoder)
        return self if asking is self.encoder else CachedEncoder(asking, self.folder)

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings (texts, dim), float32, rows of unit length, from the file or encoder.

        Args:
            texts: as for the encoder.
            progress: called with the number of texts finished since the last call.

        Raises:
            GranAlignError: as for the encoder.
        """
        from safetensors.numpy import save

        # The name of the file: a hash over the model's content and each text with its length.
        key = hashlib.sha256(self.encoder.content_key.encode())
        for text in texts:
            key.update(len(text).to_bytes(8, "little") + text.encode("utf-8", "surrogatepass"))
        path = self.folder / f"embeddings-{key.hexdigest()}.safetensors"
        kept = self._read(path, (len(texts), self.encoder.dim))
        if kept is not None:
            mark_used(path)
            _log.info("read the embeddings of %d texts from %s", len(texts), path)
            if progress:
                progress(len(texts))
            return kept
        embeddings = self.encoder.encode(texts, progress=progress)
        # A file that cannot be written costs only time: the next call embeds the texts again.
        with contextlib.suppress(OSError, GranAlignError):
            make_private(self.folder)
            with replacing(path, private=True) as sink:
                sink.write(save({"embeddings": embeddings}))
            _log.info("kept the embeddings of %d texts in %s", len(texts), path)
        evict(self.folder)
        return embeddings

    def _read(self, path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
        """Return the embeddings of a file; None if there is none, or it holds anything else."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        with contextlib.suppress(OSError, GranAlignError, SafetensorError, KeyError, ValueError):
            check_private(self.folder)
            content = read_file(path, MOST_INDEX_BYTES, inside=self.folder)
            embeddings = load(content)["embeddings"]
            fits = embeddings.shape == shape and embeddings.dtype == np.float32
            if fits and np.isfinite(embeddings).all():
                return embeddings
        return None
