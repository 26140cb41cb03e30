"""Generate synthetic inputs in the shape of real ones: embeddings, captions, queries, a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from granalign_fast.index import CaptionedVideo
from granalign_fast.types import Rewrites

CLIPS, VARIANTS, DIM = 75, 6, 384
"""Sizes of QVHighlights with all-MiniLM-L6-v2: 150 s in clips of 2 s; a query and five rewrites;
numbers of an embedding."""

_SCENES = 8
_WHO = (
    *("a man", "a woman", "two children", "a brown dog"),
    *("the crowd", "a cyclist", "an old fisherman", "the chef"),
)
_WHAT = (
    *("runs over", "walks slowly towards", "points at", "sits down next to", "talks about"),
    *("carries a box past", "takes a picture of", "dances in front of", "looks through"),
)
_WHERE = (
    *("the red car", "an empty street in the rain", "a white wooden table", "the window of a shop"),
    *("the finish line", "a bridge over a wide river", "the kitchen", "a tree with yellow leaves"),
)
_MORE = (
    *("", "in the morning", "while it snows", ", wearing a blue jacket", ", seen from above"),
    *(", and someone laughs in the background", "as the camera turns and the light gets dimmer"),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs of a query and its video, as the kernels take them.

    Attributes:
        variants: `(queries, variants, dim)` float32, rows of unit length.
        clips: `(queries * clips, dim)` float32, rows of unit length.
        offsets: `(queries + 1,)` int64, where each video's rows begin in `clips`; on the host.
    """

    variants: npt.NDArray[np.float32]
    clips: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]


def embeddings(
    rng: np.random.Generator,
    queries: int,
    clips: int = CLIPS,
    variants: int = VARIANTS,
    dim: int = DIM,
) -> Batch:
    """Return videos of eight scenes each, and for each a query near one of its scenes.

    Because of the scenes, similarity curves have runs of high values, as real ones do.
    """
    scenes = rng.standard_normal((queries, _SCENES, dim), dtype=np.float32)
    cuts = np.sort(rng.integers(0, clips, (queries, _SCENES - 1)), axis=1)
    scene = (np.arange(clips) >= cuts[:, :, None]).sum(axis=1)
    rows = rng.standard_normal((queries, clips, dim), dtype=np.float32)
    rows *= np.float32(0.7)
    rows += scenes[np.arange(queries)[:, None], scene]
    variant_rows = rng.standard_normal((queries, variants, dim), dtype=np.float32)
    variant_rows += scenes[np.arange(queries), rng.integers(0, _SCENES, queries), None]
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    variant_rows /= np.linalg.norm(variant_rows, axis=-1, keepdims=True)
    return Batch(
        variant_rows, rows.reshape(-1, dim), np.arange(queries + 1, dtype=np.int64) * clips
    )


def sentence(rng: np.random.Generator) -> str:
    """Return a sentence of seven to twenty-five words, like a captioner's."""
    who, what, where, extra = (
        parts[int(rng.integers(len(parts)))] for parts in (_WHO, _WHAT, _WHERE, _MORE)
    )
    return f"{who} {what} {where} {extra} number {int(rng.integers(10_000))}".replace(" ,", ",")


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Return `count` sentences; hardly any occurs twice."""
    return [sentence(rng) for _ in range(count)]


def rewritten(rng: np.random.Generator) -> Rewrites:
    """Return a query with five rewrites, as many as the published ones for QVHighlights."""
    query, *others = sentences(rng, VARIANTS)
    return Rewrites(query, simplified=tuple(others))


def captioned(rng: np.random.Generator, vid: str, clips: int = CLIPS) -> CaptionedVideo:
    """Return a video of captions without frames; a scene's clips share one sentence's words."""
    texts: list[str] = []
    while len(texts) < clips:
        scene = sentence(rng)
        texts += [scene, f"{scene}, again", f"now {scene}"] * int(rng.integers(1, 5))
    return CaptionedVideo(vid, tuple(texts[:clips]))


def video(folder: Path, *, seconds: float = 54.0, side: int = 360, frame_rate: int = 25) -> Path:
    """Render a video of `seconds` to `seconds` + 6 s, once for a folder, and return its path."""
    from granalign_fast.miniatures.videos import render_video

    path = folder / f"scenes-{seconds:.0f}s-{side}-{frame_rate}.mp4"
    if not path.exists():
        render_video(path, 7, seconds=(seconds, seconds + 6), side=side, frame_rate=frame_rate)
    return path
