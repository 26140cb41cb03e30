"""Queries to rewrites by a language model: all in one batch, behind the prefixes of the tasks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from granalign_fast.errors import GranAlignError, PromptTooLongError, short_repr
from granalign_fast.models.chat import common_start
from granalign_fast.models.chat_template import Message
from granalign_fast.models.decoder import is_cut_off
from granalign_fast.models.thoughts import opens_thought
from granalign_fast.types import Rewrites, check_queries

from . import prompts
from .assembly import assemble
from .rewriters import fallback_warning

_log = logging.getLogger(__name__)


class ChatModel(Protocol):
    """The interface of a language model for the rewriter; `CausalLM` is one."""

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to the assistant's turn."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens but those that mark a thought."""
        ...

    def prefill(self, token_ids: Sequence[int]) -> Any:
        """Return a prefix for `generate`."""
        ...

    def prefill_rows(self, prompts: Sequence[Sequence[int]], *, prefix: Any = None) -> Any:
        """Return a prefix of a row for each prompt, which follows `prefix`."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, prefix: Any = None, max_new_tokens: int
    ) -> list[list[int]]:
        """Return the likeliest continuation of each prompt, which follows the prefix.

        The prompts take the rows of the prefix in turn.
        """
        ...


class LlmRewriter:
    """Three simplified and three detailed rewrites, entities and actions, by a language model.

    Models put text around their answer ("Sure, here is ...:", thoughts, numbering, quotation
    marks); it is stripped. If the rest is no rewrite by the rules of `answers`, the query itself
    takes its place, and `Rewrites.fallbacks` counts it. Where the model lists no entities or
    actions, rules find them.

    Args:
        model: an instruction-tuned language model.
        rows: prompts in a batch; a query takes seven.
        max_new_tokens: where an answer is cut off.
        kept_bytes: the keys and values of the tasks' beginnings are kept if they take no more;
            otherwise those of their common beginning are. None to keep all.

    Example:
        Any object with the methods of a `ChatModel` serves, here one whose tokens are bytes:

        >>> class Constant:
        ...     def chat(self, messages):
        ...         return list(messages[-1]["content"].encode())
        ...     def decode(self, ids):
        ...         return bytes(ids).decode()
        ...     def prefill(self, token_ids):
        ...         return None
        ...     def prefill_rows(self, prompts, *, prefix=None):
        ...         return None
        ...     def generate(self, prompts, *, prefix=None, max_new_tokens):
        ...         return [list(b"Sure! Here it is: A dog runs.")] * len(prompts)
        >>> (rewrites,) = LlmRewriter(Constant()).rewrite(["a brown dog is running"])
        >>> rewrites.simplified, rewrites.entities, rewrites.actions
        (('A dog runs.', 'A dog runs.', 'A dog runs.'), ('brown dog',), ('running',))
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        rows: int = 56,
        max_new_tokens: int = 64,
        kept_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.kept_bytes = kept_bytes
        self.queries_per_batch = max(rows // len(prompts.REWRITING_TASKS), 1)
        self.max_new_tokens = max_new_tokens

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """Return one `Rewrites` for each query.

        Raises:
            GranAlignError: a query is empty, not valid text, or too long for the model's context;
                the message names the query.
        """
        check_queries(queries)  # before any work
        step = self.queries_per_batch
        batches = [queries[i : i + step] for i in range(0, len(queries), step)]
        return [rewrites for batch in batches for rewrites in self._rewrite_batch(batch)]

    def prompt_ids(self, queries: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the prompts of queries: one for each task of each query."""
        return [self._prompt(task, query) for query in queries for task in prompts.REWRITING_TASKS]

    def answers(self, queries: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the model's answers to the prompts of `prompt_ids`, in one batch.

        Raises:
            GranAlignError: a query is too long for the model's context.
        """
        token_ids = self.prompt_ids(queries)

        # Leave out the beginning of each task, whose keys and values are computed already.
        starts, prefix = self._beginnings
        pairs = list(zip(token_ids, starts * len(queries), strict=True))
        if all(ids[: len(start)] == start for ids, start in pairs):
            token_ids = [ids[len(start) :] for ids, start in pairs]
        else:  # the chat template lets the query change what stands before it
            prefix = None

        try:
            return self.model.generate(token_ids, prefix=prefix, max_new_tokens=self.max_new_tokens)
        except PromptTooLongError as error:
            query = queries[error.prompt // len(prompts.REWRITING_TASKS)]
            raise GranAlignError(
                f"query {short_repr(query)}: {error.size}; shorten the query"
            ) from None

    def _rewrite_batch(self, queries: Sequence[str]) -> list[Rewrites]:
        answers = self.answers(queries)
        # The answers of one query stand next to each other.
        size = len(prompts.REWRITING_TASKS)
        rewrites = [
            self._assemble(query, answers[i * size : (i + 1) * size])
            for i, query in enumerate(queries)
        ]
        for warning in filter(None, map(fallback_warning, rewrites)):
            _log.warning("%s", warning)
        return rewrites

    def _assemble(self, query: str, answers: Sequence[Sequence[int]]) -> Rewrites:
        """Make `Rewrites` of the answers to all tasks, in the order of the tasks."""
        texts = [(self.model.decode(ids), is_cut_off(ids, self.max_new_tokens)) for ids in answers]
        return assemble(query, texts, opened=self._opened)

    def _prompt(self, task: str, query: str) -> list[int]:
        """Return the token ids of a prompt."""
        return self.model.chat(prompts.rewriting(task, query))

    @functools.cached_property
    def _opened(self) -> bool:
        """Whether the template opens a thought, so that an answer begins in the midst of it."""
        return opens_thought(self.model.decode(self._prompt(prompts.ENTITIES, "a dog")))

    @functools.cached_property
    def _beginnings(self) -> tuple[list[list[int]], Any]:
        """The token ids of each task before the query, and their prefix; None if there are none."""
        tasks = prompts.REWRITING_TASKS
        starts = [
            common_start(self._prompt(task, "a dog"), self._prompt(task, "the sea"))
            for task in tasks
        ]
        # What all tasks begin with is computed once. Each keeps a token of its own.
        first, *_, last = sorted(start[:-1] for start in starts)
        shared = common_start(first, last)
        if not shared:  # the query comes first
            return [[] for _ in tasks], None
        prefix = self.model.prefill(shared)
        if self.kept_bytes is not None:
            tokens = len(starts) * max(map(len, starts))
            if prefix.nbytes // len(shared) * tokens > self.kept_bytes:
                return [shared for _ in tasks], prefix
        owns = [start[len(shared) :] for start in starts]
        return starts, self.model.prefill_rows(owns, prefix=prefix)
