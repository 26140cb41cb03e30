"""A sentence encoder on a server: OpenAI's ``/v1/embeddings``, or TEI's ``/embed``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.models.encoder import distinct

from .served_model import ServedModel, checked_name
from .server import Server

BATCH = 32
"""Texts of a request: the most that TEI takes as it is installed."""
_MOST_DIM = 65_536


class RemoteEncoder(ServedModel):
    """A `TextEncoder` on a server. Threads may share one.

    Args:
        server: speaks TEI's protocol if its URL ends in ``/embed``, and OpenAI's otherwise.
        model: the model's name there; None for the only one that it has.
    """

    def __init__(self, server: Server, model: str | None = None) -> None:
        super().__init__(server, model)
        self._tei = server.address.route == "/embed"
        self._dim: int | None = None

    @property
    def fingerprint(self) -> str:
        """The name of the embeddings: equal for equal server and model."""
        return f"{self.identity[:16]}-remote {self.name}"

    @property
    def content_key(self) -> str:
        """The fingerprint: a server does not say what its files are."""
        return self.fingerprint

    @property
    def dim(self) -> int:
        """Number of values in an embedding; the server is asked for one, once."""
        if self._dim is None:
            self._dim = int(self.encode(["a"]).shape[1])
        return self._dim

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings (texts, dim), float32, C-contiguous, rows of unit length.

        Equal texts are sent once.

        Args:
            texts: any strings that are not empty.
            progress: called with the number of texts finished since the last call.

        Raises:
            GranAlignError: a text is not a string, the server fails, or its reply holds no
                embeddings of one length.
        """
        unique, row_of = distinct(texts)
        if not unique:
            return np.empty((0, self.dim), np.float32)
        copies = np.bincount(row_of, minlength=len(unique))
        step = BATCH * self.server.requests
        parts = []
        for start in range(0, len(unique), step):
            window = unique[start : start + step]
            parts += self._embed([window[i : i + BATCH] for i in range(0, len(window), BATCH)])
            if progress:
                progress(int(copies[start : start + step].sum()))
        if len({part.shape[1] for part in parts}) != 1:
            raise self._wrong("embeddings of several lengths")
        rows = np.concatenate(parts)
        return np.ascontiguousarray(rows[row_of])

    def _embed(self, batches: Sequence[list[str]]) -> list[npt.NDArray[np.float32]]:
        """Return the embeddings of each batch of texts."""
        # Servers refuse a text of no character. A space has the same tokens.
        batches = [[text or " " for text in batch] for batch in batches]
        if self._tei:
            bodies: list[dict[str, Any]] = [
                {"inputs": batch, "normalize": True, "truncate": True} for batch in batches
            ]
            replies = self.server.post_many("/embed", bodies)
        else:
            common = {"model": self.model, "encoding_format": "float"}
            bodies = [common | {"input": batch} for batch in batches]
            replies = self.server.post_many("/embeddings", bodies)
        return [
            self._rows(reply if self._tei else self._in_order(reply), len(batch))
            for reply, batch in zip(replies, batches, strict=True)
        ]

    def _in_order(self, reply: Any) -> list[Any]:
        """Return the embeddings of OpenAI's reply in the order of the texts."""
        data = reply.get("data") if isinstance(reply, dict) else None
        rows = {
            entry.get("index"): entry.get("embedding")
            for entry in (data if isinstance(data, list) else ())
            if isinstance(entry, dict) and isinstance(entry.get("index"), int)
        }
        return [rows.get(number) for number in range(len(rows))]

    def _rows(self, values: Any, count: int) -> npt.NDArray[np.float32]:
        """Return `count` embeddings of unit length, or raise if the server gave something else."""
        if not isinstance(values, list) or len(values) != count:
            got = len(values) if isinstance(values, list) else short_repr(values)
            raise self._wrong(f"{got} embeddings of {count} texts")
        try:
            rows = np.array(values, np.float64)
        except (ValueError, TypeError, OverflowError):
            raise self._wrong("lists of other things than numbers") from None
        if rows.ndim != 2 or not 0 < rows.shape[1] <= _MOST_DIM:
            raise self._wrong(f"an array of the shape {rows.shape}")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not (lengths > 0).all():
            raise self._wrong("an embedding that is zero or not a number")
        unit: npt.NDArray[np.float32] = (rows / lengths).astype(np.float32)
        return unit

    def _wrong(self, got: str) -> GranAlignError:
        return GranAlignError(
            f"{self.server.address.url}: got {got}, expected an embedding of each text; check "
            f"that {self.server.address.option} is a server of embeddings"
        )

    def _only_model(self) -> str:
        """Return the name and the commit of the server's model."""
        if not self._tei:
            return super()._only_model()
        info = self.server.get("/info")
        name = info.get("model_id") if isinstance(info, dict) else None
        if not isinstance(name, str):
            raise GranAlignError(
                f"{self.server.address.url}: does not say in /info which model it has; name it "
                f"with --embed-model"
            )
        commit = info.get("model_sha")
        return checked_name(f"{name}@{commit}" if isinstance(commit, str) and commit else name)
