"""Meanings of queries: demands on a scene, whether a scene fulfils them, and near misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .scenes import BACKGROUNDS, PLACES, SIZES, TEXTURES, WORDS, Pair, Scene, Thing, pick


@dataclass(frozen=True, slots=True)
class Mention:
    """Demands of a query on one `Thing`; None demands nothing.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: one of `SIZES`.
        count: exactly 1, 2 or 3; 0 for two or three.
        place: one of `PLACES`, for a single object.
    """

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    count: int | None = None
    place: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Return whether a thing fulfils the demands."""
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
            and self.place in (None, thing.place)
            and (self.count in (None, thing.count) or (self.count == 0 and thing.count > 1))
        )


@dataclass(frozen=True, slots=True)
class Spec:
    """The meaning of a query.

    Attributes:
        mentions: demands on one or two things.
        sign: None if it names no sign, "" for any sign, or the sign's word.
        background: colour of the background, or None.
        texture: texture of the background, or None; never "plain", which queries do not name.
    """

    mentions: tuple[Mention, ...]
    sign: str | None = None
    background: str | None = None
    texture: str | None = None

    def holds(self, scene: Scene) -> bool:
        """Return whether a scene fulfils all demands."""
        return (
            all(any(mention.fits(thing) for thing in scene.things) for mention in self.mentions)
            and (self.sign is None or (scene.word is not None and self.sign in ("", scene.word)))
            and self.background in (None, scene.background)
            and self.texture in (None, scene.texture)
        )

    def core(self) -> Spec:
        """Return the meaning without details."""
        return Spec(
            tuple(Mention(m.shape, m.colour, None, int(m.count == 1)) for m in self.mentions),
            None if self.sign is None else "",
            self.background,
        )


def full_spec(scene: Scene) -> Spec:
    """Return the most detailed meaning that is true of a scene."""
    return Spec(
        tuple(Mention(t.shape, t.colour, t.size, t.count, t.place) for t in scene.things),
        scene.word,
        scene.background,
        None if scene.texture == "plain" else scene.texture,
    )


def simple_spec(rng: np.random.Generator, scene: Scene) -> Spec:
    """Draw a meaning that names one thing of a scene, without details."""
    thing = scene.things[rng.integers(len(scene.things))]
    return Spec((Mention(thing.shape, thing.colour, None, int(thing.count == 1)),))


def sample_spec(rng: np.random.Generator, scene: Scene, detail: float | None = None) -> Spec:
    """Draw the meaning of a query that is true of a scene.

    Args:
        rng: random numbers.
        scene: the scene.
        detail: probability of each detail; None draws it.
    """
    order = rng.permutation(len(scene.things))
    things = 1 if rng.random() < 0.5 else 2
    if detail is None:
        detail = float(rng.choice((0.0, 0.3, 0.6, 1.0)))
    mentions = []
    for thing in (scene.things[i] for i in order[:things]):
        count = thing.count if thing.count == 1 or rng.random() < 0.3 + detail else 0
        size = thing.size if rng.random() < detail else None
        place = thing.place if rng.random() < detail else None
        mentions.append(Mention(thing.shape, thing.colour, size, count, place))
    sign = None
    if scene.word is not None and rng.random() < 0.6:
        sign = scene.word if rng.random() < 0.3 + detail else ""
    background = scene.background if rng.random() < 0.65 else None
    has_texture = background and scene.texture != "plain" and rng.random() < detail
    texture = scene.texture if has_texture else None
    return Spec(tuple(mentions), sign, background, texture)


def falsified(
    rng: np.random.Generator,
    spec: Spec,
    scene: Scene,
    pairs: tuple[Pair, ...],
    kinds: tuple[str, ...] = (),
) -> Spec | None:
    """Change one demand of a spec so that a scene no longer fulfils it; None if that failed.

    Args:
        rng: random numbers.
        spec: the spec to change.
        scene: the scene that must not fulfil the result.
        pairs: pairs that the result may name.
        kinds: kinds of demands to choose from. By default all that the spec makes; details are
            twice as likely as others, because fewer queries have them.
    """
    demanded = demands(spec)
    kind = pick(rng, kinds or demanded + tuple(kind for kind in demanded if kind in _DETAILS))
    for _ in range(12):
        changed = _changed(rng, spec, kind, pairs)
        named = [(m.shape, m.colour) for m in changed.mentions]
        allowed = len(set(named)) == len(named) and set(named) <= set(pairs)
        if allowed and not changed.holds(scene):
            return changed
    return None


_DETAILS = frozenset({"size", "place", "sign", "background", "texture"})


def demands(spec: Spec) -> tuple[str, ...]:
    """Return the kinds of demands that a spec makes."""
    kinds = {
        "shape": True,
        "colour": True,
        "size": any(m.size for m in spec.mentions),
        "place": any(m.place for m in spec.mentions),
        "count": True,
        "sign": spec.sign is not None,
        "background": spec.background is not None,
        "texture": spec.texture is not None,
        "swap": len(spec.mentions) == 2,
    }
    return tuple(kind for kind, present in kinds.items() if present)


def _changed(rng: np.random.Generator, spec: Spec, kind: str, pairs: tuple[Pair, ...]) -> Spec:
    mentions = list(spec.mentions)
    if kind == "sign":
        return replace(spec, sign=pick(rng, WORDS) if spec.sign else "")
    if kind == "background":
        return replace(spec, background=pick(rng, tuple(BACKGROUNDS)))
    if kind == "texture":
        return replace(spec, texture=pick(rng, TEXTURES[1:]))
    if kind == "swap":
        one, other = mentions
        mentions = [replace(one, colour=other.colour), replace(other, colour=one.colour)]
        return replace(spec, mentions=tuple(mentions))
    candidates = [
        i for i, m in enumerate(mentions) if kind not in ("size", "place") or getattr(m, kind)
    ]
    i = candidates[rng.integers(len(candidates))]
    m = mentions[i]
    changes: dict[str, Callable[[], Mention]] = {
        "shape": lambda: replace(m, shape=pick(rng, tuple(p[0] for p in pairs))),
        "colour": lambda: replace(m, colour=pick(rng, tuple(p[1] for p in pairs))),
        "size": lambda: replace(m, size=pick(rng, tuple(SIZES))),
        "place": lambda: replace(m, place=pick(rng, PLACES)),
        "count": lambda: replace(
            m, count=int(rng.integers(1, 4)), place=None if m.count != 1 else m.place
        ),
    }
    mentions[i] = changes[kind]()
    if mentions[i].count != 1:
        mentions[i] = replace(mentions[i], place=None)
    return replace(spec, mentions=tuple(mentions))
