"""A chat server with OpenAI's API: conversations to answers, or to the odds of the first token.

vLLM, llama.cpp, SGLang, TensorRT-LLM and Ollama have this API.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from granalign_fast.errors import GranAlignError
from granalign_fast.parsing.limits import MOST_CHARACTERS

from .served_model import ServedModel
from .server import REFUSALS, RemoteError, Server

_log = logging.getLogger(__name__)

Message = Mapping[str, Any]

TOP_TOKENS = 20
"""Tokens whose probabilities are asked for; servers give no more."""
_NO_THOUGHT: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
_NO_PENALTY: dict[str, Any] = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
_DIALECTS: tuple[dict[str, Any], ...] = ({**_NO_THOUGHT, **_NO_PENALTY}, _NO_THOUGHT, {})
"""Fields beyond OpenAI's: a thought would use up the tokens of the answer, and a model's folder may
bring a penalty for repetitions. A server that refuses them is asked with fewer."""
_LEAST = -9999
"""The log probability that servers write for minus infinity."""
_CONTROLS = {code: " " for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


class Answer(NamedTuple):
    """A model's answer."""

    text: str
    cut_off: bool
    """Whether it has no end, because the model wrote too long."""


class TokenOdds(NamedTuple):
    """A token and its probability."""

    token: str
    probability: float


class ChatServer(ServedModel):
    """A language model, or a vision-language model, on a chat server. Threads may share one.

    Args:
        server: the server.
        model: the model's name there; None for the only one that it has.
    """

    def __init__(self, server: Server, model: str | None = None) -> None:
        super().__init__(server, model)
        self._dialect = 0

    def answers(self, chats: Sequence[Sequence[Message]], max_tokens: int) -> list[Answer]:
        """Return the likeliest answer to each conversation.

        Args:
            chats: the messages of each.
            max_tokens: where an answer is cut off.

        Raises:
            GranAlignError: the server fails, or its reply has no answer.
        """
        replies = self._complete(chats, {"max_tokens": max_tokens})
        return [self._answer(reply) for reply in replies]

    def first_tokens(self, chats: Sequence[Sequence[Message]]) -> list[list[TokenOdds]]:
        """Return the likeliest first tokens of the answer to each conversation.

        Returns:
            Up to `TOP_TOKENS` for each; none where the server gives no log probabilities.

        Raises:
            GranAlignError: as in `answers`.
        """
        asked = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_TOKENS}
        return [_odds(self._choice(reply)) for reply in self._complete(chats, asked)]

    def _complete(self, chats: Sequence[Sequence[Message]], asked: Mapping[str, Any]) -> list[Any]:
        """Send the conversations, with the first dialect that the server does not refuse."""
        refusal = None
        for dialect in range(self._dialect, len(_DIALECTS)):
            try:
                replies = self._post(chats, {**asked, **_DIALECTS[dialect]})
            except RemoteError as error:
                if error.status not in REFUSALS:
                    raise
                refusal = error
                continue
            if refusal is not None:
                left_out = ", ".join(_DIALECTS[self._dialect].keys() - _DIALECTS[dialect].keys())
                _log.info("%s: takes no %s", self.server.address.url, left_out)
                self._dialect = dialect
            return replies
        # It is not these fields that the server refuses: the last refusal says what it is.
        assert refusal is not None
        raise refusal

    def _post(self, chats: Sequence[Sequence[Message]], fields: Mapping[str, Any]) -> list[Any]:
        common = {"model": self.model, "temperature": 0, "stream": False, **fields}
        bodies = [common | {"messages": list(chat)} for chat in chats]
        return self.server.post_many("/chat/completions", bodies)

    def _choice(self, reply: Any) -> Mapping[str, Any]:
        """Return the only choice of a reply, of which the message is an object."""
        choices = reply.get("choices") if isinstance(reply, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise GranAlignError(
                f"{self.server.address.url}: got a reply without choices[0].message, expected "
                f"that of a chat server; check {self.server.address.option}"
            )
        return choice

    def _answer(self, reply: Any) -> Answer:
        choice = self._choice(reply)
        content = choice["message"].get("content")
        text = content if isinstance(content, str) else ""  # null where all was a thought
        # JSON can hold control characters, and half of a surrogate pair, which is no text. A server
        # that ignores the bound on tokens could write books.
        cut_off = choice.get("finish_reason") == "length" or len(text) > MOST_CHARACTERS
        text = text[:MOST_CHARACTERS].encode("utf-8", "replace").decode().translate(_CONTROLS)
        return Answer(text, cut_off)


def _odds(choice: Mapping[str, Any]) -> list[TokenOdds]:
    """Return the first token's probabilities in a choice; none if it has no log probabilities."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, dict) else None
    odds = []
    for entry in top[:TOP_TOKENS] if isinstance(top, list) else ():
        if not isinstance(entry, dict):
            continue
        token, logprob = entry.get("token"), entry.get("logprob")
        if isinstance(token, str) and isinstance(logprob, int | float) and logprob == logprob:
            odds.append(TokenOdds(token, math.exp(max(min(logprob, 0), _LEAST))))
    return odds
