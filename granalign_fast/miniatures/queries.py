"""Queries: sentences that people might type, with rare words in the place of common ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .meaning import Mention, Spec
from .scenes import BACKGROUNDS, Pair, pick
from .words import LEADS, NUMBERS, SAYINGS, article, plural


@dataclass(frozen=True, slots=True)
class Context:
    """What a query says of another moment, which a frame of its own does not show.

    Attributes:
        when: ``"after"`` or ``"before"``: the queried moment comes after or before this one.
        spec: what is seen then.
    """

    when: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Query:
    """A sentence that somebody types.

    Attributes:
        text: the sentence.
        spec: its meaning.
        moving: whether it says that something moves.
        context: another moment that it mentions, or None.
        so_far: for each of its words, what is demanded up to there; None where nothing was added.
        alone: likewise, what the mention, sign, background or texture demands that it belongs to;
            None as well where another moment is spoken of.
    """

    text: str
    spec: Spec
    moving: bool
    context: Context | None
    so_far: tuple[Spec | None, ...]
    alone: tuple[Spec | None, ...]


class _Speaker:
    """Collects words and what they have demanded so far."""

    def __init__(self, rng: np.random.Generator, rare: float) -> None:
        self.rng, self.rare = rng, rare
        self.words: list[str] = []
        self.so_far: list[Spec | None] = []
        self.alone: list[Spec | None] = []

    def saying(self, meaning: str) -> str:
        """One way to say it, a rare one with the given probability."""
        common, *rare = SAYINGS[meaning]
        return pick(self.rng, tuple(rare)) if self.rng.random() < self.rare else common

    def say(self, text: str, demand: Spec | None = None, alone: Spec | None = None) -> None:
        """Add words; the last of them completes the demand."""
        words = text.split()
        self.words += words
        for told, meaning in ((self.so_far, demand), (self.alone, alone)):
            told += [None] * (len(words) - 1) + [meaning] if words else []


def sample_query(
    rng: np.random.Generator, spec: Spec, pairs: tuple[Pair, ...], contexts: float = 0.2
) -> Query:
    """A sentence of that meaning, a share `contexts` of which name another moment as well."""
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
    """A sentence of that meaning.

    Args:
        rng: random numbers.
        spec: the meaning.
        context: another moment to mention.
        rare: probability of a rare word in the place of a common one.
    """
    speaker = _Speaker(rng, rare)
    speaker.say(pick(rng, LEADS))
    moving = bool(rng.random() < 0.4)
    _say_spec(speaker, spec, moving)
    if context:
        speaker.say(speaker.saying(context.when))
        told = len(speaker.words)
        _say_spec(speaker, context.spec, False)
        # Whatever is said of another moment, the frame is as true as before.
        speaker.so_far[told:] = [spec] * (len(speaker.words) - told)
        speaker.alone[told:] = [None] * (len(speaker.words) - told)
    words, so_far, alone = speaker.words, tuple(speaker.so_far), tuple(speaker.alone)
    return Query(" ".join(words), spec, moving, context, so_far, alone)


def _say_spec(speaker: _Speaker, spec: Spec, moving: bool) -> None:
    told = Spec(())
    for i, mention in enumerate(spec.mentions):
        if i:
            speaker.say(speaker.saying("and"))
        told = _say_mention(speaker, told, mention)
        if moving and not i:
            speaker.say(speaker.saying("moving"))
    if spec.sign is not None:
        speaker.say(speaker.saying("and"))
        noun = speaker.saying("sign")
        told = replace(told, sign="")
        speaker.say(f"{article(noun)} {noun}", told, Spec((), ""))
        if spec.sign:
            told = replace(told, sign=spec.sign)
            speaker.say(f"{speaker.saying('that says')} {spec.sign}", told, Spec((), spec.sign))
    if spec.background:
        on = pick(speaker.rng, ("on", "over", "against"))
        ground = speaker.saying(spec.background)
        told, alone = replace(told, background=spec.background), Spec((), None, spec.background)
        speaker.say(f"{on} {article(ground)}")
        speaker.say(ground, told, alone)
        speaker.say(speaker.saying("background"), told, alone)
    if spec.texture:
        speaker.say(speaker.saying(spec.texture), spec, Spec((), None, None, spec.texture))


def _say_mention(speaker: _Speaker, told: Spec, mention: Mention) -> Spec:
    """Say one mention; returns what is told with it."""
    before = told.mentions
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
        speaker.say(number, replace(told, mentions=(*before, several)), Spec((several,)))
    for word, partial in words:
        told = replace(told, mentions=(*before, partial))
        speaker.say(word, told, Spec((partial,)))
    if mention.place:
        told = replace(told, mentions=(*before, mention))
        speaker.say(speaker.saying(mention.place), told, Spec((mention,)))
    return told
