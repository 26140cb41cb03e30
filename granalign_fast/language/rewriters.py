"""Queries to rewrites, by rules or from a file. A rewriter of your own needs one method."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Sequence

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.jsonl import iter_jsonl
from granalign_fast.types import Rewrites, check_queries

# Stop words: articles, auxiliaries, pronouns and prepositions name no entity and no action.
_STOP_WORD_LIST = """
a an the this that these those some any each every such is are was were be been being am do does did
doing has have had having will would can could should and or but if then while as at by for from in
into of off on onto out over to up with about after again before below above during through under
here there very just too so than i you he she it we they me him her us them my your his its our
their one's who whom whose which what when where how
"""
STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
# The end of the clause that names who does what; the circumstances follow.
_CIRCUMSTANCES = re.compile(
    r"[,;:.]|\b(?:while|as|when|and|who|which|that|because|before|after|during|with|near|next to|"
    r"in|inside|outside|at|on|from|by|for|about|through|into|to)\b",
    re.IGNORECASE,
)
# Roles that a query may name, but that a captioner cannot see: it writes "person".
_PEOPLE = re.compile(
    r"\b(?:man|woman|boy|girl|guy|lady|gentleman|couple|host|vlogger|blogger|youtuber|reporter|"
    r"journalist|presenter|anchor)\b",
    re.IGNORECASE,
)
WORD = re.compile(r"[\w'’-]+")
_SHORTEST_CLAUSE = 3
"""Words of a clause; a shorter one names no action."""


class RuleRewriter:
    """Simplified rewrites of English queries by four rules, where there is no language model.

    The rules give the query without stop words; the clause before the first circumstance; the
    circumstances; and the query with "person" for people of every kind. Equal rewrites are kept
    once. On QVHighlights val with the `tuned` preset these rewrites give 43.6 mAP, the query alone
    42.3, five rewrites by a language model 44.5. There are no detailed rewrites: rules do not know
    what a sentence leaves unsaid.

    The clause of a query without circumstances is the query without its full stop. It is kept: an
    encoder embeds both, and not alike. With all-MiniLM-L6-v2 such pairs of QVHighlights val have
    cosines of 0.942 to 0.999, and are 241 of 6,782 texts.
    """

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """Return one `Rewrites` for each query; a query that no rule changes has none.

        Raises:
            GranAlignError: a query is empty or not valid text.
        """
        check_queries(queries)
        return [self._rewrite(query) for query in queries]

    def _rewrite(self, query: str) -> Rewrites:
        text = query.strip()
        clause = _first_clause(text)
        rest = text[len(clause) :].strip(" ,;:.")
        variants = [
            " ".join(word for word in WORD.findall(text) if word.lower() not in STOP_WORDS),
            clause,
            rest if len(WORD.findall(rest)) > 1 else "",
            _PEOPLE.sub("person", text),
        ]
        distinct = dict.fromkeys(variant for variant in variants if variant and variant != text)
        return Rewrites(query, tuple(distinct))


class NoRewriter:
    """No rewrites: a query is searched by its own words alone."""

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """Return each query without rewrites.

        Raises:
            GranAlignError: a query is empty or not valid text.
        """
        check_queries(queries)
        return [Rewrites(query) for query in queries]


def _first_clause(query: str) -> str:
    """Return the query up to its first circumstance, or all of it if it has none."""
    words = [word.start() for word in WORD.finditer(query)]
    for circumstance in _CIRCUMSTANCES.finditer(query):
        end = circumstance.start()
        if bisect_left(words, end) >= _SHORTEST_CLAUSE:  # words that begin before it
            return query[:end].strip()
    return query


def fallback_warning(rewrites: Rewrites) -> str | None:
    """Return a warning if more than half of the rewrites are the query itself; None otherwise."""
    count = len(rewrites.simplified) + len(rewrites.detailed)
    if 2 * rewrites.fallbacks <= count:
        return None
    return (
        f"query {short_repr(rewrites.query)}: {rewrites.fallbacks} of {count} rewrites are the "
        f"query itself, because the language model's answers held none; choose a larger or an "
        f"instruction-tuned model without thinking"
    )


class StoredRewriter:
    """Rewrites from JSON Lines of `query`, and `rewrites` or `simplified` and `detailed`.

    Raises:
        GranAlignError: the file cannot be read, a line is no such record, or a query repeats with
            other rewrites.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise GranAlignError(f"path: got {short_repr(path)}, expected that of a file")
        self.path = os.fspath(path)
        self.known: dict[str, Rewrites] = {}
        for location, record in iter_jsonl(path, required=("query",)):
            rewrites = Rewrites.from_record(record, location)
            if self.known.setdefault(rewrites.query, rewrites) != rewrites:
                raise GranAlignError(
                    f"{location}: query {short_repr(rewrites.query)} repeats with other rewrites; "
                    f"keep one line"
                )

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """Return the stored rewrites of each query.

        Raises:
            GranAlignError: the file has no rewrites of a query.
        """
        check_queries(queries)
        for query in queries:
            if query not in self.known:
                raise GranAlignError(
                    f"{self.path}: has no rewrites of {short_repr(query)}; expected a line with "
                    f"this query"
                )
        return [self.known[query] for query in queries]
