"""The answers to the rewriting tasks of one query, joined to `Rewrites`."""

from __future__ import annotations

from collections.abc import Sequence

from granalign_fast.parsing.limits import MOST_TEXTS
from granalign_fast.types import Rewrites

from . import prompts
from .answers import clean, listed_items
from .items import find_items


def assemble(query: str, answers: Sequence[tuple[str, bool]], *, opened: bool = False) -> Rewrites:
    """Make `Rewrites` of a language model's answers to all tasks.

    If an answer is no rewrite by the rules of `answers`, the query itself takes its place, and
    `Rewrites.fallbacks` counts it. Where the model lists no entities or actions, rules find them.

    Args:
        query: what was to be rewritten.
        answers: to `prompts.REWRITING_TASKS` in their order: the text, and whether it was cut off.
        opened: whether the prompt has opened a thought.
    """
    *rewritten, (word_list, list_cut_off) = answers
    cleaned = [
        clean(
            answer,
            query=query,
            request=f"{prompts.SYSTEM} {task}",
            opened=opened,
            cut_off=cut_off,
        )
        for task, (answer, cut_off) in zip(prompts.REWRITING_TASKS, rewritten, strict=False)
    ]
    texts = tuple(text or query for text in cleaned)
    simplified = len(prompts.SIMPLIFIED)
    # What the model lists; rules find what it does not.
    found = {
        label: listed_items(label, word_list, opened=opened, cut_off=list_cut_off)
        for label in ("entities", "actions")
    }
    if None in found.values():
        entities, actions = find_items(query)
        found = {
            label: by_rule if found[label] is None else found[label]
            for label, by_rule in (("entities", entities), ("actions", actions))
        }
    return Rewrites(
        query=query,
        simplified=texts[:simplified],
        detailed=texts[simplified:],
        entities=(found["entities"] or ())[:MOST_TEXTS],
        actions=(found["actions"] or ())[:MOST_TEXTS],
        fallbacks=cleaned.count(None),
    )
