"""Queries to rewrites by a language model: all of them in one batch behind one common prefix."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from granalign_fast.models.chat import Message, common_start
from granalign_fast.types import Rewrites

from . import prompts


class ChatModel(Protocol):
    """What the rewriter asks of a language model; `CausalLM` is one."""

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant is to speak."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        ...

    def prefill(self, token_ids: Sequence[int]) -> Any:
        """What `generate` takes as `prefix`."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, prefix: Any = None, max_new_tokens: int
    ) -> list[list[int]]:
        """The likeliest continuation of each prompt, which follows the prefix."""
        ...


_TASKS = (*prompts.SIMPLIFIED, *prompts.DETAILED, prompts.ENTITIES)


class LlmRewriter:
    """Three simplified and three detailed rewrites, entities and actions, by a language model.

    An answer is stripped of what models put around it ("Sure, here is ...:", thoughts, numbering,
    quotation marks). One that is empty, a refusal, endless or stuck falls back to the query and is
    counted.

    Args:
        model: an instruction-tuned language model.
        rows: prompts in a batch; a query takes seven.
        max_new_tokens: at which an answer is cut off.
    """

    def __init__(self, model: ChatModel, *, rows: int = 56, max_new_tokens: int = 64) -> None:
        self.model = model
        self.queries_at_once = max(rows // len(_TASKS), 1)
        self.max_new_tokens = max_new_tokens

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """One `Rewrites` for each query.

        Raises:
            GranAlignError: a query is empty, or too long for the model's context.
        """
        for query in queries:
            Rewrites(query)  # an empty query is refused before any work
        step = self.queries_at_once
        batches = [queries[i : i + step] for i in range(0, len(queries), step)]
        return [rewrites for batch in batches for rewrites in self._batch(batch)]

    def _batch(self, queries: Sequence[str]) -> list[Rewrites]:
        asked = [self._ask(task, query) for query in queries for task in _TASKS]
        start, prefix = self._prefix
        if all(ids[: len(start)] == start for ids in asked):
            asked = [ids[len(start) :] for ids in asked]
        else:  # a template that lets the query change what stands before it
            prefix = None
        answers = self.model.generate(asked, prefix=prefix, max_new_tokens=self.max_new_tokens)
        texts = [self.model.decode(ids) for ids in answers]
        return [
            _assemble(query, texts[i * len(_TASKS) : (i + 1) * len(_TASKS)])
            for i, query in enumerate(queries)
        ]

    def _ask(self, task: str, query: str) -> list[int]:
        content = prompts.user_message(task, query)
        return self.model.chat(
            [{"role": "system", "content": prompts.SYSTEM}, {"role": "user", "content": content}]
        )

    @functools.cached_property
    def _prefix(self) -> tuple[list[int], Any]:
        """The tokens that all prompts begin with, and what the model makes of them."""
        one, other = self._ask("Rewrite this.", "a dog"), self._ask("List words.", "the sea")
        start = common_start(one, other)
        return start, self.model.prefill(start) if start else None


def _assemble(query: str, answers: Sequence[str]) -> Rewrites:
    *rewritten, listed = answers
    cleaned = [clean(answer) for answer in rewritten]
    texts = tuple(text or query for text in cleaned)
    simplified = len(prompts.SIMPLIFIED)
    return Rewrites(
        query=query,
        simplified=texts[:simplified],
        detailed=texts[simplified:],
        entities=_listed("entities", listed),
        actions=_listed("actions", listed),
        fallbacks=cleaned.count(None),
    )


_HELLO = "sure(?: thing)?|certainly|of course|okay|ok|absolutely|great|yes"
_GREETING = re.compile(rf"^(?:{_HELLO})(?:[!.]+(?!\S)|,?$)\s*", re.IGNORECASE)
# A colon before a word's character is that of a time.
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
_MOST_REPEATS = 3


def clean(answer: str) -> str | None:
    """The rewrite in a model's answer, or `None` if it holds none.

    >>> clean('Sure, here is the simplified sentence:\\n\\n1. "A dog runs."')
    'A dog runs.'
    """
    for line in _said(answer).replace("\u2019", "'").splitlines():
        text = line.strip()
        for pattern in (_GREETING, _PREAMBLE, _NUMBER, _LABEL):
            text = pattern.sub("", text)
        text = text.strip().strip(_QUOTES).strip()
        if text and not text.endswith(":"):
            return None if _is_degenerate(text) else text
    return None


def _said(answer: str) -> str:
    """The answer without thoughts, finished or cut off, and without bold marks."""
    return answer.rpartition("</think>")[2].partition("<think>")[0].replace("**", "")


def _is_degenerate(text: str) -> bool:
    words = re.findall(r"\w+", text.lower())
    if not words or len(words) > _MOST_WORDS or _REFUSAL.search(text):
        return True
    run = 1
    for before, word in pairwise(words):
        run = run + 1 if word == before else 1
        if run > _MOST_REPEATS:
            return True
    # Stuck in a loop of several words: hardly any of them is new.
    return len(words) >= 12 and len(set(words)) < len(words) / 3


def _listed(label: str, answer: str) -> tuple[str, ...]:
    """What an answer lists behind ``label:``, lower case, each once."""
    found = re.search(rf"\b{label}\b[^:\n]*:([^\n]*)", _said(answer), re.IGNORECASE)
    if not found:
        return ()
    items = (item.strip(" .;" + _QUOTES).lower() for item in found[1].split(","))
    named = (item for item in items if re.search(r"\w", item) and item not in _NOTHING)
    return tuple(dict.fromkeys(named))
