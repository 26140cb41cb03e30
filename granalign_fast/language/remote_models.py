"""The models of a search that run on servers, each opened when it is first used."""

from __future__ import annotations

import functools
import logging

from granalign_fast.errors import GranAlignError
from granalign_fast.models.manifest import LLM, SENTENCE_ENCODER, VLM
from granalign_fast.models.remote.address import Address
from granalign_fast.models.remote.chat import ChatServer
from granalign_fast.models.remote.embeddings import RemoteEncoder
from granalign_fast.models.remote.served_model import checked_name
from granalign_fast.models.remote.server import Server

from .remote_captioner import RemoteCaptioner, RemoteRecogniser, no_odds, open_captioner
from .remote_rewriter import RemoteRewriter

_log = logging.getLogger(__name__)

_ROLES = {LLM: "llm", VLM: "vlm", SENTENCE_ENCODER: "embed"}
"""The name of each kind of model in options and variables."""


class RemoteModels:
    """The models that servers run, by kind. Each takes the place of a local one.

    Keys come from the environment: ``GRANALIGN_LLM_API_KEY``, ``GRANALIGN_VLM_API_KEY`` and
    ``GRANALIGN_EMBED_API_KEY``.

    Args:
        llm_url: a chat server whose model rewrites queries, such as ``http://localhost:8000/v1``.
        vlm_url: a chat server whose model captions frames and recognises queries in them.
        embed_url: a server of embeddings: OpenAI's protocol, or TEI's if it ends in ``/embed``.
        llm_model: the model's name at the server; None for the only one that it has.
        vlm_model: likewise.
        embed_model: likewise.
        requests: sent to each server at a time, at most.
        timeout: seconds for a request with its repetitions.

    Raises:
        GranAlignError: a URL, a key or a number cannot be used, or a model is named without its
            server. No server is asked yet.
        MissingExtraError: the extra ``[remote]`` is not installed.
    """

    def __init__(
        self,
        *,
        llm_url: str | None = None,
        vlm_url: str | None = None,
        embed_url: str | None = None,
        llm_model: str | None = None,
        vlm_model: str | None = None,
        embed_model: str | None = None,
        requests: int = 8,
        timeout: float = 120.0,
    ) -> None:
        urls = {LLM: llm_url, VLM: vlm_url, SENTENCE_ENCODER: embed_url}
        names = {LLM: llm_model, VLM: vlm_model, SENTENCE_ENCODER: embed_model}
        self._servers: dict[str, Server] = {}
        self._names: dict[str, str | None] = {}
        for kind, role in _ROLES.items():
            url, name = urls[kind], names[kind]
            if url is not None:
                address = Address.parse(role, url)
                self._servers[kind] = Server(address, requests=requests, timeout=timeout)
                self._names[kind] = None if name is None else checked_name(name)
            elif name is not None:
                raise GranAlignError(
                    f"--{role}-model: got a name without a server, expected --{role}-url as well"
                )

    def __contains__(self, kind: object) -> bool:
        return kind in self._servers

    def __bool__(self) -> bool:
        return bool(self._servers)

    @functools.cached_property
    def rewriter(self) -> RemoteRewriter:
        """The rewriter; there must be a server of it."""
        return RemoteRewriter(self._chat(LLM))

    @functools.cached_property
    def captioner(self) -> RemoteCaptioner:
        """The captioner, which is a recogniser too if the server gives log probabilities.

        Raises:
            GranAlignError: the server cannot be reached, or takes no pictures.
        """
        captioner = open_captioner(self._chat(VLM))
        if not isinstance(captioner, RemoteRecogniser):
            _log.warning(
                "%s: the server gives no log probabilities, so that no model judges whether a "
                "video shows the query",
                captioner.chat.server.address.url,
            )
        return captioner

    @functools.cached_property
    def encoder(self) -> RemoteEncoder:
        """The sentence encoder; there must be a server of it."""
        return RemoteEncoder(self._servers[SENTENCE_ENCODER], self._names[SENTENCE_ENCODER])

    @property
    def sources(self) -> dict[str, tuple[str, str]]:
        """The name and the SHA-256 that stand for each model, by kind.

        Raises:
            GranAlignError: a server that is to name its model does not.
        """
        models: dict[str, ChatServer | RemoteEncoder] = {
            kind: self._chat(kind) for kind in (LLM, VLM) if kind in self
        }
        if SENTENCE_ENCODER in self:
            models[SENTENCE_ENCODER] = self.encoder
        return {kind: (model.name, model.identity) for kind, model in models.items()}

    def check_recognition(self) -> None:
        """Raise unless the server of the vision-language model gives log probabilities.

        Raises:
            GranAlignError: it does not, or cannot be reached.
        """
        if not isinstance(self.captioner, RemoteRecogniser):
            raise GranAlignError(no_odds(self.captioner.chat))

    @functools.cached_property
    def _chats(self) -> dict[str, ChatServer]:
        return {
            kind: ChatServer(server, self._names[kind])
            for kind, server in self._servers.items()
            if kind != SENTENCE_ENCODER
        }

    def _chat(self, kind: str) -> ChatServer:
        return self._chats[kind]
