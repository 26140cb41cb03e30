"""Queries: sentences that people might type, with rare words instead of common ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .meaning import Mention, Spec
from .scenes import BACKGROUNDS, Pair, pick
from .words import LEADS, NUMBERS, SAYINGS, article, plural


@dataclass(frozen=True, slots=True)
class Context:
    """Another moment that a query mentions; frames of the queried moment do not show it.

    Attributes:
        when: ``"after"`` or ``"before"``: the queried moment comes after or before this one.
        spec: meaning of what that moment shows.
    """

    when: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Query:
    """A query: its text, and its meaning as a whole and word by word.

    Attributes:
        text: the sentence.
        spec: its meaning.
        moving: whether it says that something moves.
        context: another moment that it mentions, or None.
        so_far: for each word, all demands up to and including it; None if the word adds none.
        alone: for each word, the demands of the mention, sign, background or texture that it
            belongs to; None if the word adds none, or is about another moment.
    """

    text: str
    spec: Spec
    moving: bool
    context: Context | None
    so_far: tuple[Spec | None, ...]
    alone: tuple[Spec | None, ...]


class _Speaker:
    """Collects the words of a query, and the demands up to each."""

    def __init__(self, rng: np.random.Generator, rare: float) -> None:
        self.rng, self.rare = rng, rare
        self.words: list[str] = []
        self.so_far: list[Spec | None] = []
        self.alone: list[Spec | None] = []

    def saying(self, meaning: str) -> str:
        """Return an expression for a meaning, a rare one with probability `rare`."""
        common, *rare = SAYINGS[meaning]
        return pick(self.rng, tuple(rare)) if self.rng.random() < self.rare else common

    def say(self, text: str, demand: Spec | None = None, alone: Spec | None = None) -> None:
        """Add words; the last of them completes the demand."""
        words = text.split()
        self.words += words
        for demand_so_far, meaning in ((self.so_far, demand), (self.alone, alone)):
            demand_so_far += [None] * (len(words) - 1) + [meaning] if words else []


def sample_query(
    rng: np.random.Generator, spec: Spec, pairs: tuple[Pair, ...], contexts: float = 0.2
) -> Query:
    """Express a meaning; a share `contexts` of the queries mentions another moment as well."""
    if rng.random() >= contexts:
        return phrase(rng, spec)
    shape, colour = pairs[rng.integers(len(pairs))]
    other = Spec(
        (Mention(shape, colour, None, int(rng.random() < 0.6)),),
        background=pick(rng, tuple(BACKGROUNDS)) if rng.random() < 0.7 else None,
    )
    return phrase(rng, spec, Context(pick(rng, ("after", "before")), other))


def phrase(
    rng: np.random.Generator, spec: Spec, context: Context | None = None, rare: float = 0.7
) -> Query:
    """Express a meaning as a query.

    Args:
        rng: random numbers.
        spec: the meaning.
        context: another moment to mention.
        rare: probability of each rare word instead of a common one.
    """
    speaker = _Speaker(rng, rare)
    speaker.say(pick(rng, LEADS))
    moving = bool(rng.random() < 0.4)
    _say_spec(speaker, spec, moving)
    if context:
        speaker.say(speaker.saying(context.when))
        demand_so_far = len(speaker.words)
        _say_spec(speaker, context.spec, False)
        # Words about another moment do not change what the query demands of a frame.
        speaker.so_far[demand_so_far:] = [spec] * (len(speaker.words) - demand_so_far)
        speaker.alone[demand_so_far:] = [None] * (len(speaker.words) - demand_so_far)
    words, so_far, alone = speaker.words, tuple(speaker.so_far), tuple(speaker.alone)
    return Query(" ".join(words), spec, moving, context, so_far, alone)


def _say_spec(speaker: _Speaker, spec: Spec, moving: bool) -> None:
    demand_so_far = Spec(())
    for i, mention in enumerate(spec.mentions):
        if i:
            speaker.say(speaker.saying("and"))
        demand_so_far = _say_mention(speaker, demand_so_far, mention)
        if moving and not i:
            speaker.say(speaker.saying("moving"))
    if spec.sign is not None:
        speaker.say(speaker.saying("and"))
        noun = speaker.saying("sign")
        demand_so_far = replace(demand_so_far, sign="")
        speaker.say(f"{article(noun)} {noun}", demand_so_far, Spec((), ""))
        if spec.sign:
            demand_so_far = replace(demand_so_far, sign=spec.sign)
            speaker.say(
                f"{speaker.saying('that says')} {spec.sign}", demand_so_far, Spec((), spec.sign)
            )
    if spec.background:
        on = pick(speaker.rng, ("on", "over", "against"))
        ground = speaker.saying(spec.background)
        demand_so_far, alone = (
            replace(demand_so_far, background=spec.background),
            Spec((), None, spec.background),
        )
        speaker.say(f"{on} {article(ground)}")
        speaker.say(ground, demand_so_far, alone)
        speaker.say(speaker.saying("background"), demand_so_far, alone)
    if spec.texture:
        speaker.say(speaker.saying(spec.texture), spec, Spec((), None, None, spec.texture))


def _say_mention(speaker: _Speaker, demand_so_far: Spec, mention: Mention) -> Spec:
    """Say one mention; return all demands up to its end."""
    before = demand_so_far.mentions
    words: list[tuple[str, Mention]] = []
    partial = Mention(count=mention.count)
    for name in ("size", "colour", "shape"):
        meaning = getattr(mention, name)
        if meaning:
            partial = replace(partial, **{name: meaning})
            saying = speaker.saying(meaning)
            words.append(
                (plural(saying) if name == "shape" and mention.count != 1 else saying, partial)
            )
    if mention.count == 1:
        speaker.say(article(words[0][0]))
    elif mention.count:
        number = speaker.saying(NUMBERS[mention.count])
        several = Mention(count=mention.count)
        speaker.say(number, replace(demand_so_far, mentions=(*before, several)), Spec((several,)))
    for word, partial in words:
        demand_so_far = replace(demand_so_far, mentions=(*before, partial))
        speaker.say(word, demand_so_far, Spec((partial,)))
    if mention.place:
        demand_so_far = replace(demand_so_far, mentions=(*before, mention))
        speaker.say(speaker.saying(mention.place), demand_so_far, Spec((mention,)))
    return demand_so_far
