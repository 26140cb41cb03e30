"""Target answers of the models: captions of scenes and rewrites of queries, in common words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .meaning import Mention, Spec
from .queries import Query
from .scenes import Pair, Scene
from .words import ACTIONS_LABEL, ENTITIES_LABEL, NUMBERS, SAYINGS, article, plural


def agnostic_caption(scene: Scene) -> str:
    """Return a scene's query-agnostic caption: things, sign and background, without details."""
    nouns = [_noun(Mention(t.shape, t.colour, None, int(t.count == 1))) for t in scene.things]
    return _sentence(nouns, None if scene.word is None else "", scene.background, None)


@dataclass(frozen=True, slots=True)
class Focus:
    """The focus of a query-aware caption: the pairs, sign and background it tells in detail."""

    pairs: frozenset[Pair]
    sign: bool = False
    background: bool = False

    @classmethod
    def of(cls, spec: Spec) -> Focus:
        """Return the focus of a query's meaning."""
        pairs = frozenset((m.shape, m.colour) for m in spec.mentions if m.shape and m.colour)
        return cls(pairs, spec.sign is not None, spec.background is not None)


def aware_caption(scene: Scene, focus: Focus) -> str:
    """Return a scene's query-aware caption: the agnostic one, with all details of the focus."""
    nouns = []
    for t in scene.things:
        plain = Mention(t.shape, t.colour, None, int(t.count == 1))
        full = Mention(t.shape, t.colour, t.size, t.count, t.place)
        nouns.append(_noun(full if (t.shape, t.colour) in focus.pairs else plain))
    sign = None if scene.word is None else scene.word if focus.sign else ""
    return _sentence(nouns, sign, scene.background, scene.texture if focus.background else None)


def simplified(query: Query) -> tuple[str, str, str]:
    """Return the target answers to `prompts.SIMPLIFIED`, in its order."""
    core = query.spec.core()
    nouns = [_noun(mention) for mention in core.mentions]
    bare = [noun.removeprefix("a ").removeprefix("an ") for noun in nouns]
    return (
        _sentence(nouns, core.sign, core.background, None),
        _sentence(bare, None, None, None) + (f" on {core.background}" if core.background else ""),
        _sentence(nouns, core.sign, None, None),
    )


def detailed(query: Query) -> tuple[str, str, str]:
    """Return the target answers to `prompts.DETAILED`, in its order."""
    text = spoken(query.spec)
    if query.context:
        text += f" {query.context.when} {spoken(query.context.spec)}"
    return (
        text,
        f"a video of {text}" + (" , moving" if query.moving else ""),
        f"a frame with {text}",
    )


def spoken(spec: Spec) -> str:
    """Express a meaning in common words, with every detail."""
    nouns = [_noun(mention) for mention in spec.mentions]
    return _sentence(nouns, spec.sign, spec.background, spec.texture)


def entities(spec: Spec) -> tuple[str, ...]:
    """Return a query's entities, for the focus of query-aware captions."""
    names = [
        " ".join(word for word in _noun(mention).split() if word not in ("a", "an"))
        for mention in spec.core().mentions
    ]
    names += ["sign"] if spec.sign is not None else []
    names += [f"{spec.background} background"] if spec.background else []
    return tuple(names)


def actions(moving: bool) -> tuple[str, ...]:
    """Return a query's actions."""
    return ("moving",) if moving else ()


def entity_list(query: Query) -> str:
    """Return the target answer to `prompts.ENTITIES`: two lines."""
    listed = " , ".join(entities(query.spec))
    done = " , ".join(actions(query.moving))
    return f"{ENTITIES_LABEL} {listed}\n{ACTIONS_LABEL} {done}".rstrip()


def _noun(m: Mention) -> str:
    """Express a mention as a noun phrase in common words."""
    words = [word for word in (m.size, m.colour) if word] + [
        f"{m.shape if m.count == 1 else plural(str(m.shape))}"
    ]
    if m.count == 1:
        words = [article(words[0]), *words]
    elif m.count:
        words = [NUMBERS[m.count], *words]
    return " ".join(words + ([f"at the {m.place}"] if m.place else []))


def _sentence(
    nouns: Iterable[str], sign: str | None, background: str | None, texture: str | None
) -> str:
    """Return ``nouns and a sign on a background``."""
    named = list(nouns)
    if sign is not None:
        named.append(f"a sign that says {sign}" if sign else "a sign")
    text = " and ".join(named)
    if background:
        text += f" on {article(background)} {background} background"
    if texture in SAYINGS:
        text += f" {SAYINGS[texture][0]}"
    return text
