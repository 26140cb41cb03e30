"""Training clips of motion: their frames, what each image token should tell, and questions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.language import prompts

from . import batches as packing
from . import motion, vlm
from .drawing import SIDE
from .motion import MOTIONS, Mover, Place, Shot
from .questions import ANSWER, CAPTION, FOCUS, RECOGNISE
from .scenes import pick
from .words import article

LABEL_WORDS = (
    (None, *motion.SHAPES),
    (None, *motion.COLOUR_NAMES),
    (None, *MOTIONS),
)
"""Words for the values of each label of an image token: shape, colour and motion of what has its
centre in the token's cell. None for nothing."""
LABELS = tuple(map(len, LABEL_WORDS))

_UNKNOWN = packing.IGNORED
_STILL = MOTIONS.index("still") + 1
_EDGE = 5.0  # so near to a cell, in pixels, an object may as well be told by that cell
_QUESTIONS = 8


class Form(NamedTuple):
    """The frames of a clip and its seconds."""

    frames: int
    seconds: float

    @property
    def gap(self) -> float:
        """Seconds from a frame to the next, as the product tells them: 0 for a single frame."""
        return self.seconds / self.frames if self.frames > 1 else 0.0

    @property
    def grids(self) -> int:
        """Pairs of frames, of each of which the image tower makes a grid of tokens."""
        return -(-self.frames // 2)


FORMS = tuple(Form(frames, seconds) for seconds in (2.0, 3.0) for frames in (1, 2, 4, 6))


class Clips(NamedTuple):
    """Clips of one form.

    Attributes:
        shots: what each shows.
        pairs: uint8 (clips, grids, 2, 112, 112, 3).
        labels: int64 (clips, grids, 16, 3), what is seen in a pair of frames.
        outcome: int64 (clips, 16, 3), what the whole clip shows, told at the last place of each
            object.
    """

    shots: list[Shot]
    pairs: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.int64]


def draw(rng: np.random.Generator, count: int, form: Form) -> Clips:
    """Draw clips of random shots."""
    shots = [motion.sample_shot(rng) for _ in range(count)]
    pairs = np.empty((count, form.grids, 2, SIDE, SIDE, 3), np.uint8)
    labels = np.zeros((count, form.grids, vlm.TOKENS, len(LABELS)), np.int64)
    outcome = np.zeros((count, vlm.TOKENS, len(LABELS)), np.int64)
    for number, shot in enumerate(shots):
        start = form.seconds * rng.integers(int(motion.SHOT_SECONDS // form.seconds))
        times = motion.frame_times(start, form.seconds, form.frames)
        frames = [motion.render(shot, time, rng) for time in times]
        if form.frames == 1:  # a lone frame is repeated
            times, frames = [*times, *times], [*frames, *frames]
        pairs[number] = np.stack(frames).reshape(pairs.shape[1:])
        for mover in shot.movers:
            for i in range(len(mover.homes)):
                seen = [mover.places(time)[i] for time in times]
                for grid in range(form.grids):
                    pair = seen[2 * grid : 2 * grid + 2]
                    still = form.frames == 1
                    _label(labels[number, grid], mover, pair, None if still else _seen(mover, pair))
                _label(outcome[number], mover, seen, _seen(mover, seen), last=True)
    return Clips(shots, pairs, labels, outcome)


def _seen(mover: Mover, places: list[Place | None]) -> int | None:
    """Return the label of the motion that some frames show of an object; None if it is unknown.

    Equal objects of a shot appear or disappear one after another, and stand still otherwise.
    """
    if mover.events and (places[0] is None) == (places[-1] is None):
        return _STILL
    return MOTIONS.index(mover.motion) + 1


def _label(
    labels: npt.NDArray[np.int64],
    mover: Mover,
    places: list[Place | None],
    doing: int | None,
    *,
    last: bool = False,
) -> None:
    """Label the cell of an object's centre, (16, 3), and pass over cells that are almost as near.

    Args:
        labels: to change, of a grid.
        mover: the thing.
        places: of one of its objects, in some frames.
        doing: label of its motion; None for unknown.
        last: whether to take its last place; by default it is the mean one.
    """
    visible = [place for place in places if place]
    if not visible:
        return
    shape, colour = motion.SHAPES.index(mover.shape) + 1, _colour(mover)
    centres = [place.centre for place in visible]
    across, down = centres[-1] if last else np.mean(centres, axis=0).tolist()
    side = SIDE / vlm.GRID
    inside = int(down // side), int(across // side)
    for cell in range(vlm.TOKENS):
        row, column = divmod(cell, vlm.GRID)
        if (row, column) == inside:
            labels[cell] = shape, colour, _UNKNOWN if doing is None else doing
            continue
        away = max(
            column * side - across,
            across - (column + 1) * side,
            row * side - down,
            down - (row + 1) * side,
        )
        if away < _EDGE and not labels[cell].any():
            labels[cell] = _UNKNOWN


def _colour(mover: Mover) -> int:
    return motion.COLOUR_NAMES.index(mover.colour) + 1


def segments(texts: vlm.Prompts, shot: Shot, rng: np.random.Generator) -> list[packing.Segment]:
    """Return a clip's segments: a caption, a query-aware one, and questions, half of them false."""
    moving = texts.layout.frames > 1
    answer = texts.answer(shot.caption(moving=moving))
    return [
        packing.Segment(CAPTION, [], answer),
        packing.Segment(FOCUS, _focus(texts, rng), answer),
        *(_question(texts, shot, rng, truth=i % 2 == 0) for i in range(_QUESTIONS)),
    ]


def _focus(texts: vlm.Prompts, rng: np.random.Generator) -> list[int]:
    """Return the rest of a prompt for a query-aware caption, after its head."""
    words = pick(rng, motion.COLOUR_NAMES), pick(rng, motion.SHAPES)
    focus = [" ".join(words), motion.PHRASES[pick(rng, MOTIONS)]][: rng.integers(1, 3)]
    prompt = prompts.aware_caption(focus, texts.layout.frames)
    return texts.suffix(prompt)[len(texts.heads[FOCUS]) :]


def _question(
    texts: vlm.Prompts, shot: Shot, rng: np.random.Generator, *, truth: bool
) -> packing.Segment:
    """Draw a question about one thing and what it does, with the truth of its words."""
    mover = shot.movers[rng.integers(len(shot.movers))]
    colour, shape, doing = mover.colour, mover.shape, mover.motion
    if not truth:
        # Mostly another motion, and else another colour or shape.
        kind = rng.random()
        if kind < 0.7:
            opposite = [other for pair in motion.OPPOSITES if doing in pair for other in pair]
            others = tuple(opposite) if opposite and rng.random() < 0.4 else MOTIONS
            others += tuple(other.motion for other in shot.movers)
            doing = pick(rng, tuple(x for x in others if x != doing) or MOTIONS)
        elif kind < 0.85:
            colour = pick(rng, motion.COLOUR_NAMES)
        else:
            shape = pick(rng, motion.SHAPES)
    asked = f"{article(colour)} {colour} {shape} {motion.PHRASES[doing]}"
    frames = texts.layout.frames
    prompt = texts.suffix(prompts.recognition(asked, frames))[len(texts.heads[RECOGNISE]) :]
    answer = texts.answer("yes" if shot.shows(colour, shape, doing) else "no")
    weights = [ANSWER] + [0.05] * (len(answer) - 1)
    truths = [(_UNKNOWN, _UNKNOWN)] * len(prompt)
    known: dict[str, tuple[str, str | None, str | None]]
    known = {colour: (colour, None, None), shape: (colour, shape, None)}
    if frames > 1:
        known[motion.PHRASES[doing].split()[-1]] = (colour, shape, doing)
    for i, word in enumerate(asked.split()):  # one token a word
        if word in known:
            told = int(shot.shows(*known[word]))
            truths[i] = told, told
    return packing.Segment(RECOGNISE, prompt, answer, weights, truths)
