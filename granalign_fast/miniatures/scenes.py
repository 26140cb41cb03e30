"""Scenes of coloured shapes, and their frames of 112 x 112 pixels, drawn in 1 to 2 ms."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import pi, sin
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from granalign_fast.errors import GranAlignError

from . import drawing
from .drawing import SIDE, Colour

Split = Literal["train", "validation", "test"]
Pair = tuple[str, str]
"""A shape and its colour."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: dict[str, Colour] = {
    "red": (215, 30, 35),
    "green": (25, 150, 50),
    "blue": (30, 60, 215),
    "yellow": (245, 220, 40),
    "orange": (250, 130, 15),
    "purple": (120, 35, 160),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
# No object has the colour of a background, so every object is visible.
BACKGROUNDS: dict[str, Colour] = {
    "gray": (135, 135, 135),
    "brown": (120, 78, 42),
    "pink": (250, 165, 200),
    "cyan": (85, 210, 220),
    "olive": (140, 140, 70),
}
TEXTURES = ("plain", "lines", "spots")
SIZES: dict[str, tuple[float, float]] = {"tiny": (10.0, 11.0), "giant": (14.0, 15.5)}
"""Radii in pixels."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
WORDS = ("stop", "exit", "taxi", "open", "cafe", "zoo")
MOST_OBJECTS = 4

PAIRS: tuple[Pair, ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)

_CELL = SIDE // 4  # pixels that one image token of the miniature vision-language model covers
_SWAY = 2.5  # pixels that an object moves to either side of its home
# Least distance of a centre from the edges of its cell, in pixels. For a centre between two tokens,
# one pixel would decide which of them represents the object, and so small a model would spend all
# its training on that.
_INNER = 9.0
_CUT = 2.0  # pixels of an object that may lie outside the frame


def _held_out(first: int) -> frozenset[Pair]:
    """Return one pair of every shape, no colour twice: 3 and 8 have no common factor."""
    colours = list(COLOURS)
    return frozenset((shape, colours[(3 * i + first) % 8]) for i, shape in enumerate(SHAPES))


HELD_OUT: dict[Split, frozenset[Pair]] = {
    "train": frozenset(),
    "validation": _held_out(4),
    "test": _held_out(1),
}
"""Pairs of each split that the other splits neither draw nor name."""


def strangers(pair: Pair) -> tuple[Pair, ...]:
    """Return the other pairs of its shape or colour that training never draws, sorted.

    Training must not teach that they are impossible.
    """
    held_out = sorted(frozenset().union(*HELD_OUT.values()))
    return tuple(p for p in held_out if p != pair and (p[0] == pair[0] or p[1] == pair[1]))


def pairs_of(split: Split) -> tuple[Pair, ...]:
    """Return the pairs that a split draws and names: its held-out ones, and those of training.

    Raises:
        GranAlignError: there is no such split.
    """
    if split not in HELD_OUT:
        raise GranAlignError(f"split: got {split!r}, expected one of {', '.join(get_args(Split))}")
    others = frozenset().union(*HELD_OUT.values()) - HELD_OUT[split]
    return tuple(pair for pair in PAIRS if pair not in others)


@dataclass(frozen=True, slots=True)
class Thing:
    """One, two or three equal objects of a scene.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: ``"tiny"`` or ``"giant"``.
        homes: centre around which each object sways, across and down in pixels.
        radius: in pixels.
        angle: rotation in radians.
        tint: difference from the named colour.
        phase: phase of the swaying, in radians.
    """

    shape: str
    colour: str
    size: str
    homes: tuple[tuple[float, float], ...]
    radius: float
    angle: float
    tint: Colour
    phase: float

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.homes)

    @property
    def place(self) -> str | None:
        """The quarter of the frame in which a single object is; None for several."""
        if self.count != 1:
            return None
        across, down = self.homes[0]
        return PLACES[2 * (down > SIDE / 2) + (across > SIDE / 2)]

    def centres(self, seconds: float) -> list[tuple[float, float]]:
        """Return the objects' centres at a time, across and down in pixels."""
        return [
            (
                across + _SWAY * sin(0.7 * seconds + self.phase + 2.0 * i),
                down + _SWAY * sin(0.5 * seconds + 1.7 * self.phase + 1.0 * i),
            )
            for i, (across, down) in enumerate(self.homes)
        ]


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of a video for some seconds.

    Attributes:
        things: one or two groups of equal objects, at most four objects, of distinct pairs, in the
            order of `PAIRS`.
        background: one of `BACKGROUNDS`.
        texture: one of `TEXTURES`.
        word: word on the sign; None without a sign.
        sign_home: centre of the sign, across and down in pixels.
        base: exact colour of the background.
        phase: two phases of its texture, and the angle of its lines, in radians.
    """

    things: tuple[Thing, ...]
    background: str
    texture: str
    word: str | None
    sign_home: tuple[float, float]
    base: Colour
    phase: tuple[float, float, float]


Kind = tuple[str, str, str, int]
"""Shape, colour, size and count of a `Thing`."""


def sample_scene(rng: np.random.Generator, split: Split = "train", *, signs: float = 0.3) -> Scene:
    """Draw a random scene.

    Args:
        rng: random numbers.
        split: split of the pairs; in a held-out split at least one thing has a held-out pair.
        signs: share of the scenes that have a sign.
    """
    pairs = pairs_of(split)
    held_out = sorted(HELD_OUT[split])
    while True:  # redraw a scene that does not fit into a frame
        kinds: list[Kind] = []
        for _ in range(2 if rng.random() < 0.6 else 1):
            choice = held_out if held_out and not kinds else pairs
            shape, colour = choice[rng.integers(len(choice))]
            if any(kind[:2] == (shape, colour) for kind in kinds):
                continue
            count = int(rng.choice((1, 2, 3), p=(0.66, 0.2, 0.14)))
            count = min(count, MOST_OBJECTS - sum(kind[3] for kind in kinds))
            kinds.append((shape, colour, pick(rng, tuple(SIZES)), count))
        word = pick(rng, WORDS) if rng.random() < signs else None
        ground, texture = pick(rng, tuple(BACKGROUNDS)), pick(rng, TEXTURES)
        scene = _arranged(rng, kinds, ground, texture, word, (None,) * len(kinds), tries=20)
        if scene:
            return scene


def compose(
    rng: np.random.Generator,
    kinds: list[Kind],
    background: str,
    texture: str,
    word: str | None = None,
    places: tuple[str | None, ...] = (),
) -> Scene:
    """Arrange things of these kinds, each at a random position, or in its quarter of the frame.

    Raises:
        GranAlignError: the objects do not fit into one frame.
    """
    places = places or (None,) * len(kinds)
    scene = _arranged(rng, kinds, background, texture, word, places, tries=400)
    if scene is None:
        raise GranAlignError(
            f"scene: got {kinds}, sign {word!r}, places {places}, which do not fit into a frame; "
            f"expected fewer or smaller objects"
        )
    return scene


def _arranged(
    rng: np.random.Generator,
    kinds: list[Kind],
    background: str,
    texture: str,
    word: str | None,
    places: tuple[str | None, ...],
    tries: int,
) -> Scene | None:
    for _ in range(tries):
        scene = _try(rng, kinds, background, texture, word, places)
        if scene:
            return scene
    return None


def _try(
    rng: np.random.Generator,
    kinds: list[Kind],
    background: str,
    texture: str,
    word: str | None,
    places: tuple[str | None, ...],
) -> Scene | None:
    sign = (0.0, 0.0)
    occupied: list[tuple[float, float, float, float]] = []  # centre, and half of width and height
    if word:
        width, height = drawing.sign_size(word)
        column, row = rng.integers(1, 3), rng.integers(4)  # it is as wide as two cells
        inside = rng.uniform(_INNER + 1, _CELL - _INNER - 1, 2)
        sign = (float(column * _CELL + inside[0]), float(row * _CELL + inside[1]))
        occupied.append((*sign, width / 2, height / 2))
    things = []
    for (shape, colour, size, count), place in zip(kinds, places, strict=True):
        radius = rng.uniform(*SIZES[size])
        homes = []
        for _ in range(count):
            home = _free_centre(rng, radius, occupied, place)
            if home is None:
                return None
            occupied.append((*home, radius + _SWAY, radius + _SWAY))
            homes.append(home)
        tint = rng.uniform(-12, 12, 3)
        things.append(
            Thing(
                shape,
                colour,
                size,
                tuple(homes),
                radius,
                angle=rng.uniform(-0.15, 0.15),
                tint=(tint[0], tint[1], tint[2]),
                phase=rng.uniform(0, 2 * pi),
            )
        )
    base = np.add(BACKGROUNDS[background], rng.uniform(-8, 8) + rng.uniform(-5, 5, 3))
    return Scene(
        things=tuple(sorted(things, key=lambda thing: PAIRS.index((thing.shape, thing.colour)))),
        background=background,
        texture=texture,
        word=word,
        sign_home=sign,
        base=(base[0], base[1], base[2]),
        phase=(rng.uniform(0, 2 * pi), rng.uniform(0, 2 * pi), rng.uniform(0, pi)),
    )


def _free_centre(
    rng: np.random.Generator,
    radius: float,
    occupied: list[tuple[float, float, float, float]],
    place: str | None,
) -> tuple[float, float] | None:
    """Return a centre whose object touches no other while it sways; no two centres share a cell."""
    edge = radius + _SWAY
    for _ in range(12):
        across, down = (
            rng.integers(4, size=2) * _CELL + rng.uniform(_INNER, _CELL - _INNER, 2)
        ).tolist()
        if place and PLACES[2 * (down > SIDE / 2) + (across > SIDE / 2)] != place:
            continue
        in_frame = edge - _CUT <= min(across, down) and max(across, down) <= SIDE - edge + _CUT
        if in_frame and all(
            max(abs(across - x) - width - edge, abs(down - y) - height - edge) > 1.0
            and (across // _CELL, down // _CELL) != (x // _CELL, y // _CELL)
            for x, y, width, height in occupied
        ):
            return across, down
    return None


def render(
    scene: Scene, seconds: float = 0.0, rng: np.random.Generator | None = None
) -> npt.NDArray[np.uint8]:
    """Render a frame, uint8 (112, 112, 3) in RGB.

    Args:
        scene: the scene.
        seconds: time since the scene began; it sets the objects' positions.
        rng: random numbers of camera noise; None for none.
    """
    frame = drawing.background(scene.base, scene.texture, scene.phase)
    if scene.word:
        drawing.paint_sign(frame, scene.word, scene.sign_home)
    for thing in scene.things:
        red, green, blue = np.add(COLOURS[thing.colour], thing.tint)
        for centre in thing.centres(seconds):
            drawing.paint_shape(
                frame, thing.shape, (red, green, blue), centre, thing.radius, thing.angle
            )
    if rng is not None:
        noise = rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32)
        frame = frame * rng.uniform(0.94, 1.06) + noise * rng.uniform(0, 4)
    pixels: npt.NDArray[np.uint8] = np.clip(frame + 0.5, 0, 255).astype(np.uint8)
    return pixels


def compressed(frame: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a frame degraded like a video's by scaling and compression, uint8, same shape."""
    image = Image.fromarray(frame)
    side = frame.shape[0] * int(rng.integers(2, 4))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=int(rng.integers(70, 97)), subsampling=2)
    image = Image.open(data).resize(frame.shape[1::-1], Image.Resampling.BICUBIC)
    decoded: npt.NDArray[np.uint8] = np.asarray(image, np.uint8)
    return decoded


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """Pick one of the choices with equal probabilities."""
    return choices[rng.integers(len(choices))]
