"""Training scenes: frames with camera noise and compression, and labels of their cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import scenes
from .drawing import SIDE
from .scenes import Scene

LABEL_WORDS: tuple[tuple[str | None, ...], ...] = (
    (None, *scenes.SHAPES),
    (None, *scenes.COLOURS),
    (None, *scenes.SIZES),
    (None, None, "two", "three"),
    (None, *scenes.WORDS),
    tuple(scenes.BACKGROUNDS),
    (None, *scenes.TEXTURES[1:]),
)
"""Common words for the values of each label, in their order. The labels are an object's shape,
colour, size and count, a sign's word, and the background's colour and texture. None for a value
without a word, or for no object."""
LABELS = tuple(map(len, LABEL_WORDS))
"""Number of values of each label."""
_APART = 75.0
"""Least distance of an unnamed colour from every named one, in red, green and blue, 0 to 255."""
_IGNORED = -100
NAMES = ("shape", "colour", "size", "count", "word", "ground", "texture")


class Pool(NamedTuple):
    """Scenes and a frame of each."""

    scenes: list[Scene]
    frames: npt.NDArray[np.uint8]
    """`(count, 112, 112, 3)`."""
    labels: npt.NDArray[np.int64]
    """`(count, grid * grid, 7)`: labels of the object centred in a cell, and of the background."""


def draw(
    count: int,
    seed: int,
    *,
    split: scenes.Split = "train",
    grid: int,
    unnamed: bool = False,
    signs: float = 0.3,
) -> Pool:
    """Draw random scenes, render a frame of each, and label its cells.

    Args:
        count: number of scenes.
        seed: seed of everything random; the grid does not change what is drawn.
        split: split of the pairs.
        grid: rows and columns of the cells that get labels.
        unnamed: whether to give every thing a colour far from all named ones, and no label of it.
            This teaches that shape and colour are independent. The training pairs alone cannot:
            from them a model learns that the held-out pairs do not exist.
        signs: share of the scenes that have a sign.
    """
    rng = np.random.default_rng((seed, count, unnamed))
    drawn = [scenes.sample_scene(rng, split, signs=signs) for _ in range(count)]
    if unnamed:
        drawn = [_recoloured(scene, rng) for scene in drawn]
    frames = np.empty((count, SIDE, SIDE, 3), np.uint8)
    labels = np.empty((count, grid * grid, len(LABELS)), np.int64)
    for i, scene in enumerate(drawn):
        seconds = rng.uniform(0, 16)
        frames[i] = scenes.render(scene, seconds, rng)
        if rng.random() < 0.7:
            frames[i] = scenes.compressed(frames[i], rng)
        labels[i] = labels_of(scene, seconds, grid)
        if unnamed:
            labels[i, :, 1] = np.where(labels[i, :, 1], _IGNORED, 0)
    return Pool(drawn, frames, labels)


def _recoloured(scene: Scene, rng: np.random.Generator) -> Scene:
    taken_colours = np.array([*scenes.COLOURS.values(), scene.base])
    things = []
    for thing in scene.things:
        colour = taken_colours[0]
        while np.linalg.norm(taken_colours - colour, axis=1).min() < _APART:
            colour = rng.uniform(0, 255, 3)
        tint = colour - scenes.COLOURS[thing.colour]
        things.append(replace(thing, tint=(tint[0], tint[1], tint[2])))
    return replace(scene, things=tuple(things))


def labels_of(scene: Scene, seconds: float, grid: int) -> npt.NDArray[np.int64]:
    """Return the labels of every cell of a frame, `(grid * grid, 7)`."""
    labels = np.zeros((grid * grid, len(LABELS)), np.int64)
    labels[:, 5] = list(scenes.BACKGROUNDS).index(scene.background)
    labels[:, 6] = scenes.TEXTURES.index(scene.texture)
    for thing in scene.things:
        shape, colour = scenes.SHAPES.index(thing.shape), list(scenes.COLOURS).index(thing.colour)
        size = list(scenes.SIZES).index(thing.size)
        for centre in thing.centres(seconds):
            labels[_cell(centre, grid), :4] = shape + 1, colour + 1, size + 1, thing.count
    if scene.word:
        labels[_cell(scene.sign_home, grid), 4] = scenes.WORDS.index(scene.word) + 1
    return labels


def _cell(centre: tuple[float, float], grid: int) -> int:
    side = SIDE / grid
    return int(centre[1] // side) * grid + int(centre[0] // side)


def label_loss(
    logits: Any, labels: Any, *, spare_strangers: bool = False
) -> tuple[Any, dict[str, float]]:
    """Return the weighted sum of the labels' cross entropies, and each one.

    Trained with labels, an image tower learns in minutes what captions would teach it in hours.

    Args:
        logits: `(..., sum(LABELS))`.
        labels: `(..., 7)`.
        spare_strangers: whether to leave out of the softmax the shapes that training never draws in
            a thing's colour, and the colours in which it never draws the thing's shape.
    """
    import torch
    from torch.nn import functional

    parts = list(logits.flatten(0, -2).split(LABELS, -1))
    if spare_strangers:
        never = torch.from_numpy(_never())
        shape, colour = (labels[..., i].flatten().clamp(min=0) for i in (0, 1))
        parts[0] = parts[0].masked_fill(never.T[colour], -1e4)
        parts[1] = parts[1].masked_fill(never[shape], -1e4)
    losses = [
        functional.cross_entropy(part, labels[..., i].flatten()) for i, part in enumerate(parts)
    ]
    # Few cells hold an object, so labels of objects weigh more.
    total: Any = 3 * sum(losses[:5]) + sum(losses[5:])
    return total, {name: loss.item() for name, loss in zip(NAMES, losses, strict=True)}


def _never() -> npt.NDArray[np.bool_]:
    """Return a table of the labels of shapes (rows) and colours that training never combines."""
    table = np.zeros(LABELS[:2], np.bool_)
    for shape, colour in frozenset().union(*scenes.HELD_OUT.values()):
        table[scenes.SHAPES.index(shape) + 1, list(scenes.COLOURS).index(colour) + 1] = True
    return table
