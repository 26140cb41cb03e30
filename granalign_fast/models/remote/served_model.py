"""A model on a server: its name, and what tells it from every other model."""

from __future__ import annotations

import functools
import hashlib
import json

from granalign_fast.errors import GranAlignError, listed

from .server import RemoteError, Server

_MOST_NAME = 200
"""Characters of a model's name."""


class ServedModel:
    """A model on a server.

    Args:
        server: the server.
        model: the model's name there; None for the only one that it has.
    """

    def __init__(self, server: Server, model: str | None = None) -> None:
        self.server = server
        self._named = model

    @functools.cached_property
    def model(self) -> str:
        """The model's name at the server.

        Raises:
            GranAlignError: none is given, and the server has none or several, or does not say.
        """
        return self._only_model() if self._named is None else self._named

    @property
    def name(self) -> str:
        """The model and the server in words."""
        return f"{self.model} at {self.server.address.url}"

    @property
    def identity(self) -> str:
        """A SHA-256 of the server's URL and the model's name; local models have that of files."""
        parts = ["remote", self.server.address.url, self.model]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _only_model(self) -> str:
        """Return the name of the only model of the server, which OpenAI's API tells."""
        address = self.server.address
        option = f"--{address.role}-model"
        try:
            reply = self.server.get("/models")
        except RemoteError as error:
            if error.status not in (404, 405, 501):
                raise
            raise GranAlignError(
                f"{address.url}: does not say which models it has; name one with {option}, and "
                f"check {address.option}"
            ) from None
        entries = reply.get("data") if isinstance(reply, dict) else None
        entries = entries if isinstance(entries, list) else []
        found = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        names = [checked_name(name) for name in found if isinstance(name, str) and name]
        if len(names) != 1:
            got = f"several models: {listed(names)}" if names else "no model"
            raise GranAlignError(f"{address.url}: got {got}, expected one; name one with {option}")
        return names[0]


def checked_name(name: str) -> str:
    """Return the name of a model, or raise if it is not one that can be shown.

    Raises:
        GranAlignError: it is empty, too long, or holds characters that cannot be seen.
    """
    if not name.strip() or not name.isprintable() or len(name) > _MOST_NAME:
        raise GranAlignError(
            f"model: got a name of {len(name)} characters, expected up to {_MOST_NAME} that can "
            f"be seen; give the model another name at the server"
        )
    return name
