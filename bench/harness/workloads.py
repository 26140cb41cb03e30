"""Made-up work in the shape of real work: embeddings in scenes, captions, queries, a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from granalign_fast.index import CaptionedVideo
from granalign_fast.types import Rewrites

CLIPS, VARIANTS, DIM = 75, 6, 384
"""Of QVHighlights with all-MiniLM-L6-v2: 150 s, a query and five rewrites."""

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
    """Pairs of a query and a video of its own, as the kernels take them.

    Attributes:
        variants: `(queries, variants, dim)` float32, rows of unit length.
        clips: `(queries * clips, dim)`, likewise.
        offsets: `(queries + 1,)` int64 on the host.
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
    """Videos of eight scenes each, and a query for one of them, so that curves have runs."""
    scenes = rng.standard_normal((queries, _SCENES, dim), dtype=np.float32)
    cuts = np.sort(rng.integers(0, clips, (queries, _SCENES - 1)), axis=1)
    scene = (np.arange(clips) >= cuts[:, :, None]).sum(axis=1)
    rows = rng.standard_normal((queries, clips, dim), dtype=np.float32)
    rows *= np.float32(0.7)
    rows += scenes[np.arange(queries)[:, None], scene]
    asked = rng.standard_normal((queries, variants, dim), dtype=np.float32)
    asked += scenes[np.arange(queries), rng.integers(0, _SCENES, queries), None]
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    asked /= np.linalg.norm(asked, axis=-1, keepdims=True)
    return Batch(asked, rows.reshape(-1, dim), np.arange(queries + 1, dtype=np.int64) * clips)


def sentence(rng: np.random.Generator) -> str:
    """Seven to twenty-five words, as a captioner writes them."""
    who, what, where, more = (
        parts[int(rng.integers(len(parts)))] for parts in (_WHO, _WHAT, _WHERE, _MORE)
    )
    return f"{who} {what} {where} {more} number {int(rng.integers(10_000))}".replace(" ,", ",")


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """So many, hardly any of them twice."""
    return [sentence(rng) for _ in range(count)]


def rewritten(rng: np.random.Generator) -> Rewrites:
    """A query with five rephrasings, as QVHighlights' published ones have."""
    query, *others = sentences(rng, VARIANTS)
    return Rewrites(query, simplified=tuple(others))


def captioned(rng: np.random.Generator, vid: str, clips: int = CLIPS) -> CaptionedVideo:
    """A video known by captions alone; a scene's clips share the words of one sentence."""
    texts: list[str] = []
    while len(texts) < clips:
        scene = sentence(rng)
        texts += [scene, f"{scene}, again", f"now {scene}"] * int(rng.integers(1, 5))
    return CaptionedVideo(vid, tuple(texts[:clips]))


def video(folder: Path, *, seconds: float = 54.0, side: int = 360, frame_rate: int = 25) -> Path:
    """A rendered video of this length, or six seconds more; made once for a folder."""
    from granalign_fast.miniatures.videos import render_video

    path = folder / f"scenes-{seconds:.0f}s-{side}-{frame_rate}.mp4"
    if not path.exists():
        render_video(path, 7, seconds=(seconds, seconds + 6), side=side, frame_rate=frame_rate)
    return path
