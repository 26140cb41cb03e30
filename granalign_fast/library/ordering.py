"""The order of moments across videos.

Within one video the method ranks moments by curves that are stretched to the video's own extremes,
which say nothing about another video. So the order across videos rests on the score of the first
stage, which is absolute; a moment loses from it what it is worse than the best of its video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.kernels.corpus_host import row_scores
from granalign_fast.types import SearchResult, distinct_moments

from .records import CataloguedVideo
from .results import LibraryMoment, VideoHit

RANK_COST = 0.05
"""The score that a moment loses for each better one of its video. On QVHighlights val a moment with
an IoU of 0.5 is among the first ten for 45% of the queries; from 0.03 to 0.06 for 44 to 45%, with
one moment of each video for 40%."""

Load = Callable[[CataloguedVideo], VideoIndex]
"""Reads the index of a video."""


class Probe(NamedTuple):
    """A query as a single vector, with which the clips of a video are compared."""

    vector: npt.NDArray[np.float32]
    """`(dim,)`."""
    by_frames: bool
    """Whether frames are compared, and not captions."""

    def scores(self, index: VideoIndex) -> npt.NDArray[np.float32]:
        """Return the product of each clip with the vector, `(clips,)`."""
        rows = index.embeddings
        if self.by_frames:
            rows = None if index.frames is None else index.frames.embeddings
        if rows is None:  # the index was made anew since the catalogue was opened
            raise GranAlignError(
                f"video {index.video.vid!r}: got an index without the embeddings that were "
                f"searched; search again"
            )
        return np.asarray(row_scores(self.vector[None], rows)[0])


def ranked_moments(
    hits: Sequence[VideoHit],
    load: Load,
    probe: Probe,
    top: int,
    errors: dict[str, str],
    *,
    overlapping: bool,
) -> tuple[LibraryMoment, ...]:
    """Return the best moments of all videos, best first.

    Args:
        hits: the videos, best first; some of them have been searched by the method.
        load: reads an index. A video whose index cannot be read has no moments.
        probe: what the clips were compared with.
        top: how many moments there are at most.
        errors: receives the reason for each video whose index cannot be read, by its id.
        overlapping: whether moments of one video may overlap, as benchmarks score them.
    """
    scored = [
        (hit.score - RANK_COST * rank, hit, place)
        for hit in hits
        for rank, place in enumerate(_places(hit.result, top, overlapping=overlapping))
    ]
    found: list[LibraryMoment] = []
    for score, hit, place in sorted(scored, key=lambda one: -one[0]):
        if len(found) == top:
            break
        if hit.result is not None:
            found.append(_moment(hit, hit.result, place, score))
            continue
        try:
            found.append(_surroundings(hit, load(hit.video), probe, score))
        except GranAlignError as error:
            errors.setdefault(hit.video.vid, str(error))
    return tuple(found)


def _places(result: SearchResult | None, top: int, *, overlapping: bool) -> Sequence[int]:
    """Return the places of the moments of a video that can be in an answer, best first."""
    if result is None:
        return (0,)
    moments = result.moments[:top]
    if overlapping:
        return range(len(moments))
    return [moments.index(moment) for moment in distinct_moments(moments, top)]


def caption_of(hit: VideoHit, result: SearchResult, place: int) -> str | None:
    """Return the caption of the best clip of a moment; None in a video without captions.

    Args:
        hit: the video.
        result: of its search.
        place: of the moment in it.
    """
    if hit.captions is None:
        return None
    moment, length = result.moments[place], hit.video.clip_seconds
    # A moment begins with a clip; the end of the video can be within one.
    first, end = round(moment.start / length), math.ceil(moment.end / length - 1e-6)
    return hit.captions[first + int(result.saliency[first:end].argmax())]


def _moment(hit: VideoHit, result: SearchResult, place: int, score: float) -> LibraryMoment:
    """Return a moment that the method found."""
    moment, vid = result.moments[place], hit.video.vid
    caption = caption_of(hit, result, place)
    return LibraryMoment(vid, moment.start, moment.end, score, True, caption, result.exists)


def _surroundings(hit: VideoHit, index: VideoIndex, probe: Probe, score: float) -> LibraryMoment:
    """Return the clips around the best one that are nearer to it than to the mean of the video."""
    scores = probe.scores(index)
    near = scores >= (scores[hit.clip] + scores.mean()) / 2
    near[hit.clip] = True
    far = np.flatnonzero(~near)
    begin = far[far < hit.clip].max(initial=-1) + 1
    end = far[far > hit.clip].min(initial=len(scores))
    seconds = index.seconds(int(begin)), index.seconds(int(end))
    caption = None if index.video.captions is None else index.video.captions[hit.clip]
    return LibraryMoment(hit.video.vid, *seconds, score, False, caption)
