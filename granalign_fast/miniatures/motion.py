"""Shots in which shapes move, appear or change, their frames, and sentences about them.

A single frame of a shot does not tell which way it goes on: a shape that moves left and one that
moves right stand at the same places, in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import drawing
from .drawing import SIDE, Colour
from .scenes import BACKGROUNDS, COLOURS, pick
from .words import article

SHOT_SECONDS = 6.0
FRAME_RATE = 10

SHAPES = ("circle", "square", "triangle", "star")
COLOUR_NAMES = ("red", "green", "blue", "yellow")
GROUNDS = ("gray", "brown", "pink")

PHRASES = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "appears": "appears",
    "disappears": "disappears",
    "grows": "grows",
    "shrinks": "shrinks",
    "turns": "turns",
    "still": "stands still",
}
"""The motions of a thing by name, each with the words that sentences have for it."""
MOTIONS = tuple(PHRASES)
OPPOSITES = (("left", "right"), ("up", "down"), ("appears", "disappears"), ("grows", "shrinks"))
"""Motions of which a single frame shows the same."""

_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_ROUND = "circle"  # it looks the same however it is turned
_GAP = 3.0  # least distance of two shapes, in pixels
_COUNT = 3  # how many equal shapes appear or disappear in a shot, one after another


@dataclass(frozen=True, slots=True)
class Place:
    """The place, size and angle of an object in a frame.

    Attributes:
        centre: across and down, in pixels.
        radius: in pixels.
        angle: in radians.
    """

    centre: tuple[float, float]
    radius: float
    angle: float


@dataclass(frozen=True, slots=True)
class Mover:
    """A shape that does one thing throughout a shot; equal ones if it appears or disappears.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOUR_NAMES`.
        motion: one of `MOTIONS`.
        homes: centres of the objects in the middle of the shot, across and down in pixels.
        radius: in the middle of the shot, in pixels.
        angle: in the middle of the shot, in radians.
        rate: by how much the motion changes the object in a second: pixels, or radians.
        events: when each object appears or disappears, in seconds of the shot; else empty.
        tint: difference from the named colour.
    """

    shape: str
    colour: str
    motion: str
    homes: tuple[tuple[float, float], ...]
    radius: float
    angle: float
    rate: float
    events: tuple[float, ...]
    tint: Colour

    def places(self, seconds: float) -> list[Place | None]:
        """Return what is seen of each object at a time of the shot; None of one that is not."""
        since = seconds - SHOT_SECONDS / 2
        across, down = _DIRECTIONS.get(self.motion, (0.0, 0.0))
        radius, angle = self.radius, self.angle
        if self.motion in ("grows", "shrinks"):
            radius += since * (self.rate if self.motion == "grows" else -self.rate)
        elif self.motion == "turns":
            angle += since * self.rate
        return [
            Place((x + across * self.rate * since, y + down * self.rate * since), radius, angle)
            if self._present(number, seconds)
            else None
            for number, (x, y) in enumerate(self.homes)
        ]

    def _present(self, number: int, seconds: float) -> bool:
        if not self.events:
            return True
        return (seconds >= self.events[number]) == (self.motion == "appears")

    def says(self, motion: str | None = None) -> str:
        """Return the sentence that this thing does what it does, or another motion."""
        return f"{article(self.colour)} {self.colour} {self.shape} {PHRASES[motion or self.motion]}"


@dataclass(frozen=True, slots=True)
class Shot:
    """One or two things that move before a background, for `SHOT_SECONDS`."""

    movers: tuple[Mover, ...]
    base: Colour

    def caption(self, *, moving: bool) -> str:
        """Return a sentence that names all things, and what they do if `moving`."""
        if moving:
            return " and ".join(mover.says() for mover in self.movers)
        return " and ".join(f"{article(m.colour)} {m.colour} {m.shape}" for m in self.movers)

    def shows(self, colour: str | None, shape: str | None, motion: str | None) -> bool:
        """Return whether one thing has all of these; None demands nothing."""
        return any(
            colour in (None, m.colour) and shape in (None, m.shape) and motion in (None, m.motion)
            for m in self.movers
        )


def sample_shot(
    rng: np.random.Generator, kinds: Sequence[tuple[str, str, str]] | None = None
) -> Shot:
    """Draw a shot.

    Args:
        rng: random numbers.
        kinds: colour, shape and motion of each thing; None draws one or two.
    """
    while True:
        chosen = kinds or _sample_kinds(rng)
        movers: list[Mover] = []
        for kind in chosen:
            for _ in range(20):
                mover = _sample_mover(rng, *kind)
                if _apart(movers, mover):
                    movers.append(mover)
                    break
        if len(movers) == len(chosen):
            ground = np.add(BACKGROUNDS[pick(rng, GROUNDS)], rng.uniform(-8, 8, 3))
            return Shot(tuple(movers), (ground[0], ground[1], ground[2]))


def _sample_kinds(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    kinds: list[tuple[str, str, str]] = []
    while len(kinds) < (1 if rng.random() < 0.5 else 2):
        colour, shape, motion = (pick(rng, x) for x in (COLOUR_NAMES, SHAPES, MOTIONS))
        if possible(shape, motion) and all(kind[:2] != (colour, shape) for kind in kinds):
            kinds.append((colour, shape, motion))
    return kinds


def possible(shape: str, motion: str) -> bool:
    """Return whether the motion of a shape can be seen."""
    return (shape, motion) != (_ROUND, "turns")


def _sample_mover(rng: np.random.Generator, colour: str, shape: str, motion: str) -> Mover:
    half = SHOT_SECONDS / 2
    radius, angle, rate = rng.uniform(11, 14), rng.uniform(-0.2, 0.2), 0.0
    reach_across = reach_down = reach = radius - 1.0  # from the centre to where it may touch edges
    events: tuple[float, ...] = ()
    if motion in _DIRECTIONS:
        rate = rng.uniform(11, 14)
        room = min(radius + half * rate - 3.0, SIDE / 2)
        reach_across, reach_down = (room, reach) if _DIRECTIONS[motion][0] else (reach, room)
    elif motion in ("grows", "shrinks"):
        radius, rate = rng.uniform(13, 15), rng.uniform(2.0, 2.6)
        reach_across = reach_down = radius + half * rate - 2.0
    elif motion == "turns":
        rate = rng.uniform(0.5, 0.75) * rng.choice((-1, 1))
    elif motion in ("appears", "disappears"):
        each = SHOT_SECONDS / _COUNT
        events = tuple((each * (i + rng.uniform(0.3, 0.7))) for i in range(_COUNT))
    homes: list[tuple[float, float]] = []
    while len(homes) < max(1, len(events)):
        x, y = (rng.uniform(edge, SIDE - edge) for edge in (reach_across, reach_down))
        if all(np.hypot(x - a, y - b) > 2 * radius + _GAP for a, b in homes):
            homes.append((x, y))
    tint = rng.uniform(-12, 12, 3)
    return Mover(
        shape,
        colour,
        motion,
        tuple(homes),
        radius,
        angle,
        rate,
        events,
        (tint[0], tint[1], tint[2]),
    )


def _apart(movers: Sequence[Mover], other: Mover) -> bool:
    """Return whether a thing touches no other one at any time of the shot."""
    for seconds in np.arange(0, SHOT_SECONDS + 0.1, 0.5).tolist():
        for mover in movers:
            for one in mover.places(seconds):
                for place in other.places(seconds):
                    if one and place:
                        apart = np.hypot(*np.subtract(one.centre, place.centre))
                        if apart < one.radius + place.radius + _GAP:
                            return False
    return True


def render(
    shot: Shot, seconds: float, rng: np.random.Generator | None = None
) -> npt.NDArray[np.uint8]:
    """Render a frame at a time of the shot, uint8 (112, 112, 3) in RGB; with noise if `rng`."""
    frame = np.full((SIDE, SIDE, 3), shot.base, np.float32)
    for mover in shot.movers:
        red, green, blue = np.add(COLOURS[mover.colour], mover.tint)
        for place in mover.places(seconds):
            if place:
                drawing.paint_shape(
                    frame,
                    mover.shape,
                    (red, green, blue),
                    place.centre,
                    place.radius,
                    place.angle,
                )
    if rng is not None:
        frame += rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32) * rng.uniform(0, 4)
    pixels: npt.NDArray[np.uint8] = np.clip(frame + 0.5, 0, 255).astype(np.uint8)
    return pixels


def frame_times(start: float, seconds: float, frames: int) -> list[float]:
    """Return the times of the frames that a player shows in the middle of a clip's equal parts."""
    middles = start + (np.arange(frames) + 0.5) * seconds / frames
    times: list[float] = (np.floor(middles * FRAME_RATE + 1e-6) / FRAME_RATE).tolist()
    return times
