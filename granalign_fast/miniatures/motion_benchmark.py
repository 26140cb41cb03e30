"""Write videos in which shapes move, and queries that only the order of frames answers.

``python -m granalign_fast.bench.commands.motion OUT`` writes them and measures the miniature of
motion on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from granalign_fast.jsonl import Record, write_jsonl

from . import motion
from .benchmark import FIRST_SEED
from .motion import COLOUR_NAMES, FRAME_RATE, MOTIONS, OPPOSITES, SHAPES, SHOT_SECONDS, Shot
from .scenes import pick
from .videos import annotation, encode

_FAMILY = 4  # shots of one thing in a video, each with another motion
_SIDE = 224


@dataclass(frozen=True, slots=True)
class Film:
    """The shots of a video, one after another, and a query for each.

    Attributes:
        shots: each lasts `motion.SHOT_SECONDS`.
        queries: the sentence that is true of the shot of the same number, and of no other one.
        motions: what the thing in the query does.
    """

    shots: tuple[Shot, ...]
    queries: tuple[str, ...]
    motions: tuple[str, ...]

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return SHOT_SECONDS * len(self.shots)

    def window(self, number: int) -> tuple[float, float]:
        """Return when a query is shown, in seconds."""
        return SHOT_SECONDS * number, SHOT_SECONDS * (number + 1)

    def frames(self, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield all frames, uint8 (112, 112, 3), at `motion.FRAME_RATE` a second."""
        rng = np.random.default_rng((seed, 1))
        for shot in self.shots:
            for number in range(round(SHOT_SECONDS * FRAME_RATE)):
                yield motion.render(shot, number / FRAME_RATE, rng)


def write_film(seed: int) -> Film:
    """Draw a video of eight shots.

    Two things alternate, and each of them is seen in four shots. In each it does something else,
    and two of the four motions are opposites. So every shot of a thing shows the same shape and
    colour, and only its motion tells which one a query is about. In half of the shots there is a
    second thing, which no query is about.
    """
    rng = np.random.default_rng((seed, 2))
    kinds = [(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES]
    order = rng.permutation(len(kinds))
    things, others = [kinds[i] for i in order[:2]], [kinds[i] for i in order[2:]]
    doings = [_motions(rng, shape) for _, shape in things]
    shots, queries, motions = [], [], []
    for number in range(len(things) * _FAMILY):
        colour, shape = things[number % 2]
        doing = doings[number % 2][number // 2]
        inside = [(colour, shape, doing)]
        if rng.random() < 0.5:
            beside = others[int(rng.integers(len(others)))]
            inside.append((*beside, _possible(rng, beside[1])))
        shot = motion.sample_shot(rng, inside)
        shots.append(shot)
        queries.append(shot.movers[0].says())
        motions.append(doing)
    return Film(tuple(shots), tuple(queries), tuple(motions))


def _motions(rng: np.random.Generator, shape: str) -> list[str]:
    """Draw what a shape does in its shots, two opposites among it."""
    chosen = [*OPPOSITES[int(rng.integers(len(OPPOSITES)))]]
    while len(chosen) < _FAMILY:
        other = _possible(rng, shape)
        if other not in chosen:
            chosen.append(other)
    return [chosen[i] for i in rng.permutation(_FAMILY)]


def _possible(rng: np.random.Generator, shape: str) -> str:
    return pick(rng, tuple(name for name in MOTIONS if motion.possible(shape, name)))


def write_benchmark(
    out: str | os.PathLike[str], videos: int = 20, *, first_seed: int = FIRST_SEED
) -> dict[int, str]:
    """Render videos with eight queries each, and the windows in which they are shown.

    Writes ``videos/*.mp4``, ``queries.jsonl`` and ``truth.jsonl``.

    Args:
        out: a folder, created if it is missing.
        videos: number of videos.
        first_seed: seed of the first video; the others have the next seeds.

    Returns:
        The motion that each query is about, by `qid`.

    Raises:
        GranAlignError: the folder cannot be written.
    """
    folder = Path(out)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    truth: list[Record] = []
    motions: dict[int, str] = {}
    for seed in range(first_seed, first_seed + videos):
        film, vid = write_film(seed), f"motion-{seed}"
        encode(folder / "videos" / f"{vid}.mp4", film.frames(seed), FRAME_RATE, _SIDE)
        for number, query in enumerate(film.queries):
            qid = len(truth)
            truth.append(annotation(qid, vid, query, [film.window(number)], film.duration))
            motions[qid] = film.motions[number]
    queries = [{key: record[key] for key in ("qid", "query", "vid")} for record in truth]
    write_jsonl(folder / "queries.jsonl", queries)
    write_jsonl(folder / "truth.jsonl", truth)
    return motions
