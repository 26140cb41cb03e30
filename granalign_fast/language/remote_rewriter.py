"""Queries to rewrites by a language model on a chat server."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from granalign_fast.models.remote.chat import ChatServer
from granalign_fast.types import Rewrites, check_queries

from . import prompts
from .assembly import assemble
from .rewriters import fallback_warning

_log = logging.getLogger(__name__)


class RemoteRewriter:
    """A `Rewriter` with the tasks and the rules of `LlmRewriter`, by a model on a server.

    Each task of each query is a request. All begin with the same system message and the task, so
    that a server which keeps prefixes computes them once.

    Args:
        chat: an instruction-tuned model.
        max_new_tokens: where an answer is cut off.
    """

    def __init__(self, chat: ChatServer, *, max_new_tokens: int = 64) -> None:
        self.chat = chat
        self.max_new_tokens = max_new_tokens

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """Return one `Rewrites` for each query.

        Raises:
            GranAlignError: a query is empty or not valid text, or the server fails.
        """
        check_queries(queries)  # before any request
        chats = [
            prompts.rewriting(task, query) for query in queries for task in prompts.REWRITING_TASKS
        ]
        answers = iter(self.chat.answers(chats, self.max_new_tokens))
        size = len(prompts.REWRITING_TASKS)
        rewrites = [assemble(query, list(itertools.islice(answers, size))) for query in queries]
        for warning in filter(None, map(fallback_warning, rewrites)):
            _log.warning("%s", warning)
        return rewrites
