"""Queries to rewrites by a language model: all of them in one batch behind one common prefix."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from granalign_fast.errors import GranAlignError, PromptTooLongError, short_repr
from granalign_fast.models.chat import Message, common_start
from granalign_fast.types import Rewrites, check_queries

from . import prompts


class ChatModel(Protocol):
    """The interface of a language model for the rewriter; `CausalLM` is one."""

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to the assistant's turn."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        ...

    def prefill(self, token_ids: Sequence[int]) -> Any:
        """Return a prefix for `generate`."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, prefix: Any = None, max_new_tokens: int
    ) -> list[list[int]]:
        """Return the likeliest continuation of each prompt, which follows the prefix."""
        ...


_TASKS = (*prompts.SIMPLIFIED, *prompts.DETAILED, prompts.ENTITIES)
"""The prompts of one query."""


class LlmRewriter:
    """Three simplified and three detailed rewrites, entities and actions, by a language model.

    Models put text around their answer ("Sure, here is ...:", thoughts, numbering, quotation
    marks); it is stripped. If the rest is empty, a refusal, endless or repetitive, the query itself
    takes the rewrite's place, and `Rewrites.fallbacks` counts it.

    Args:
        model: an instruction-tuned language model.
        rows: prompts in a batch; a query takes seven.
        max_new_tokens: where an answer is cut off.
    """

    def __init__(self, model: ChatModel, *, rows: int = 56, max_new_tokens: int = 64) -> None:
        self.model = model
        self.queries_per_batch = max(rows // len(_TASKS), 1)
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

    def _rewrite_batch(self, queries: Sequence[str]) -> list[Rewrites]:
        # Every task of every query is one prompt.
        token_ids = [self._prompt(task, query) for query in queries for task in _TASKS]

        # Leave out the common prefix, whose keys and values are computed already.
        start, prefix = self._prefix
        if all(ids[: len(start)] == start for ids in token_ids):
            token_ids = [ids[len(start) :] for ids in token_ids]
        else:  # the chat template lets the query change what stands before it
            prefix = None

        try:
            answers = self.model.generate(
                token_ids, prefix=prefix, max_new_tokens=self.max_new_tokens
            )
        except PromptTooLongError as error:
            query = queries[error.prompt // len(_TASKS)]
            raise GranAlignError(
                f"query {short_repr(query)}: {error.size}; shorten the query"
            ) from None

        # The answers of one query stand next to each other.
        texts = [self.model.decode(ids) for ids in answers]
        return [
            _assemble(query, texts[i * len(_TASKS) : (i + 1) * len(_TASKS)])
            for i, query in enumerate(queries)
        ]

    def _prompt(self, task: str, query: str) -> list[int]:
        """Return the token ids of a prompt."""
        content = prompts.user_message(task, query)
        return self.model.chat(
            [{"role": "system", "content": prompts.SYSTEM}, {"role": "user", "content": content}]
        )

    @functools.cached_property
    def _prefix(self) -> tuple[list[int], Any]:
        """The token ids that all prompts begin with, and their prefix; None if there are none."""
        one, other = self._prompt("Rewrite this.", "a dog"), self._prompt("List words.", "the sea")
        start = common_start(one, other)
        return start, self.model.prefill(start) if start else None


def _assemble(query: str, answers: Sequence[str]) -> Rewrites:
    """Make `Rewrites` of the answers to all tasks, in the order of `_TASKS`."""
    *rewritten, word_list = answers
    cleaned = [clean(answer) for answer in rewritten]
    texts = tuple(text or query for text in cleaned)
    simplified = len(prompts.SIMPLIFIED)
    return Rewrites(
        query=query,
        simplified=texts[:simplified],
        detailed=texts[simplified:],
        entities=_items("entities", word_list),
        actions=_items("actions", word_list),
        fallbacks=cleaned.count(None),
    )


# What models put around an answer; `clean` removes it.
_HELLO = "sure(?: thing)?|certainly|of course|okay|ok|absolutely|great|yes"
_GREETING = re.compile(rf"^(?:{_HELLO})(?:[!.]+(?!\S)|,?$)\s*", re.IGNORECASE)
# A colon right before a letter or digit belongs to a time, such as 10:45.
_PREAMBLE = re.compile(
    rf"^(?:{_HELLO}|here(?:'s| is| are))\b[^:\n]*:(?!\w)\s*",
    re.IGNORECASE,
)
_KIND = "simplified|detailed|rewritten|revised|general|precise|final"
_TEXT = "sentence|rewrite|version|answer|caption|output"
_LABEL = re.compile(
    rf"^(?:the )?(?:(?:{_KIND})\s+(?:{_TEXT})\s*(?::(?!\w)|$)|(?:{_KIND}|{_TEXT})\s*:(?!\w))\s*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"^\s*(?:\(?\d{1,2}[.):]|[-*\u2022])\s+")
_REFUSAL = re.compile(r"\b(?:I(?:'m| am) sorry|I can(?:'t|not| not)|as an AI)\b", re.IGNORECASE)
_NOTHING = frozenset(("none", "(none)", "n/a", "(n/a)"))
_QUOTES = "\"'`\u201c\u201d\u2018\u2019*"
_MOST_WORDS = 60
"""Words of a rewrite; a longer one is an essay, or does not end."""
_MOST_REPEATS = 3
"""How often a word may stand in a row; a model that is stuck repeats it more often."""
_LOOP_WORDS, _LOOP_SHARE = 12, 3
"""A model that is stuck in a loop of several words: at least so many words, of which less than one
in so many is distinct."""


def clean(answer: str) -> str | None:
    """Return the rewrite in a model's answer, or `None` if it holds none.

    >>> clean('Sure, here is the simplified sentence:\\n\\n1. "A dog runs."')
    'A dog runs.'
    """
    for line in _visible_text(answer).replace("\u2019", "'").splitlines():
        text = line.strip()
        for pattern in (_GREETING, _PREAMBLE, _NUMBER, _LABEL):
            text = pattern.sub("", text)
        text = text.strip().strip(_QUOTES).strip()
        if text and not text.endswith(":"):
            return None if _is_degenerate(text) else text
    return None


def _visible_text(answer: str) -> str:
    """Return the answer without thoughts, finished or cut off, and without bold marks."""
    return answer.rpartition("</think>")[2].partition("<think>")[0].replace("**", "")


def _is_degenerate(text: str) -> bool:
    """Whether an answer is a refusal, too long, or repeats itself."""
    words = re.findall(r"\w+", text.lower())
    if not words or len(words) > _MOST_WORDS or _REFUSAL.search(text):
        return True
    run = 1
    for before, word in pairwise(words):
        run = run + 1 if word == before else 1
        if run > _MOST_REPEATS:
            return True
    return len(words) >= _LOOP_WORDS and len(set(words)) < len(words) / _LOOP_SHARE


def _items(label: str, answer: str) -> tuple[str, ...]:
    """Return the items that an answer lists after ``label:``, in lower case, each once."""
    line = re.search(rf"\b{label}\b[^:\n]*:([^\n]*)", _visible_text(answer), re.IGNORECASE)
    if not line:
        return ()
    items = (item.strip(" .;" + _QUOTES).lower() for item in line[1].split(","))
    named = (item for item in items if re.search(r"\w", item) and item not in _NOTHING)
    return tuple(dict.fromkeys(named))
