"""The entities and actions of an English query, found by rules where no model lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .rewriters import STOP_WORDS, WORD

_VERBS = frozenset(
    """
    act add apply arrive ask bake beat bend bike bite blow boil bounce break bring brush build burn
    buy call carry catch chase check cheer chew chop clap clean climb close comb come cook count
    cover crawl cross cry cut dance decorate demonstrate describe dig dive do drag draw dress drink
    drive drop dry eat enter examine exercise explain fall feed fight fill film find fish fix fly
    fold follow fry get give go grab grill guide hang help hike hit hold hop hug hunt iron jog join
    juggle jump keep kick kiss kneel knit laugh lay lead lean leave lick lie lift light listen load
    look lower make march mix move open order pack paddle paint park pass pay peel pet pick place
    play plug point pose pour practice pray prepare present press pull push put race read record
    remove repair rest ride roll row run sail say scrub search sell serve set sew shake shave shoot
    shop show sing sit skate ski slap sleep slice slide smell smile smoke speak spin splash spray
    spread squat stand stare start stir stop stretch stroll study surf swim swing take talk taste
    teach throw tie touch train try turn type unpack use vacuum visit wait walk wash watch wave wear
    weave weld whisper wipe work wrap write yell zoom
    """.split()  # noqa: SIM905
)
_NO_ACTIONS = frozenset(
    """
    thing something anything nothing everything morning evening building ceiling clothing wedding
    earring railing pudding sibling string spring darling dumpling lightning painting drawing
    stocking swing
    """.split()  # noqa: SIM905
)
"""Words in -ing that name a thing."""
_NO_ENTITIES = frozenset(
    """
    up down off over together around outside inside next away alone still front back apart other
    others another several many few more most much own same different along across behind beside
    between toward towards near while without within everyone someone anyone something anything
    everything
    """.split()  # noqa: SIM905
)
"""Words that are neither stop words nor entities."""
_BE = frozenset("is are was were be been being am gets get got".split())  # noqa: SIM905
_FINITE = _BE | frozenset("has have had can will does did do".split())  # noqa: SIM905
_ARTICLES = frozenset(
    "a an the this that his her its their my our your some any each every no".split()  # noqa: SIM905
)


def find_items(query: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the entities and the actions of an English query.

    An action is a word in -ing; a common verb in the third person behind a noun, a pronoun or
    "and"; any word in -s behind the first noun of a clause that has no other verb; and a word in
    -ed behind a noun or a form of "be". The entities are what is left between stop words and
    adverbs. A query in which nothing is left is an entity as a whole.

    >>> find_items("a woman walks her dog in the park, wearing a red coat")
    (('woman', 'dog', 'park', 'red coat'), ('walks', 'wearing'))
    """
    entities: list[str] = []
    actions: list[str] = []
    for clause in re.split(r"[,;:.!?]|\b(?:while|who|which)\b", query):
        words = [word.lower() for word in WORD.findall(clause)]
        run: list[str] = []  # the words of an entity so far
        known = len(actions)
        for i, word in enumerate(words):
            is_first = len(actions) == known and i == len(run) + (words[0] in _ARTICLES)
            if _is_action(words, i, run, is_first):
                actions.append(word)
            elif not (word in STOP_WORDS or word in _NO_ENTITIES or word.endswith("ly")):
                run.append(word)
                continue
            entities += [" ".join(run)] if run else []
            run = []
        entities += [" ".join(run)] if run else []
    if not entities and not actions:
        entities = [query.strip()]
    return tuple(dict.fromkeys(entities)), tuple(dict.fromkeys(actions))


def _is_action(words: Sequence[str], i: int, run: Sequence[str], is_first: bool) -> bool:
    """Whether a word of a clause is a verb, by its ending and the words around it.

    Args:
        words: of the clause, in lower case.
        i: the word's index.
        run: the words before it that may belong to one entity.
        is_first: whether they begin the clause.
    """
    word, before = words[i], words[i - 1] if i else ""
    behind = words[i + 1] if i + 1 < len(words) else ""
    if word in STOP_WORDS or len(word) < 4:
        return False
    if word.endswith("ing"):
        # "a running man" has an adjective.
        adjective = before in _ARTICLES and bool(behind) and behind not in STOP_WORDS
        return len(word) > 4 and word not in _NO_ACTIONS and not adjective
    if word.endswith("ed") and not word.endswith("eed"):
        return len(word) > 4 and (bool(run) or before in _BE)
    # "walks in and sits": the subject may stand further back.
    continued = before in ("and", "then", "he", "she", "it", "they")
    if not (run or continued) or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return False
    if any(stem in _VERBS for stem in (word[:-1], word[:-2], f"{word[:-3]}y")):
        return True
    lone = is_first and bool(run) and not run[-1].endswith("s") and _FINITE.isdisjoint(words)
    return lone and (not behind or behind in STOP_WORDS)
