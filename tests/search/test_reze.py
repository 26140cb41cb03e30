"""The preset `reze`: its moments, computed once more from what its paper states.

Li, Gou and Cai, arXiv 2608.04480: clips of 3 s with 6 frames, the share of yes in a softmax over
yes and no, a Gaussian with a fixed sigma of 3 s, and Otsu's threshold. That of the kernels is found
in a histogram of 32 bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import GranAlignError
from granalign_fast.config import PRESETS, RetrieverConfig
from granalign_fast.index import CaptionedVideo, FrameTable, VideoIndex
from granalign_fast.index.model_checks import clips_warning
from granalign_fast.library import Library
from granalign_fast.output.warnings import search_warnings
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import FrameSet


class Curve:
    """A recogniser that answers with a given curve, and notes which frames it was given."""

    def __init__(self, curve: np.ndarray) -> None:
        self.curve = curve
        self.forms: list[tuple[int, float]] = []

    def agnostic(self, frames: FrameSet) -> list[str]:
        raise AssertionError("no caption is wanted")

    aware = agnostic

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> np.ndarray:
        self.forms.append(frames.form)
        return np.repeat(self.curve[None].astype(np.float32), len(queries), axis=0)


def index_of(clips: int, *, seconds: float = 3.0, frames: int = 6, vid: str = "v") -> VideoIndex:
    times = (np.arange(clips * frames) + 0.5).reshape(clips, frames) * seconds / frames
    table = FrameTable(
        times[:, 0].copy(),
        tuple(f"{vid}{clip}" for clip in range(clips)),
        later=times[:, 1:].copy() if frames > 1 else None,
    )
    video = CaptionedVideo(vid, ("a caption",) * clips, seconds)
    return VideoIndex(video, BagOfWords().encode(video.captions), table)


def moments_by_the_paper(curve: np.ndarray) -> list[tuple[float, float]]:
    """Return the stretches above the threshold, in order of time, in seconds."""
    # The Gaussian: 3 s are one clip. Beyond the ends the edge clips are repeated.
    steps = np.arange(-3, 4)
    weights = np.exp(-((steps * 3.0) ** 2) / (2 * 3.0**2))
    padded = np.pad(curve, 3, mode="edge")
    smooth = np.convolve(padded, weights / weights.sum(), mode="valid")
    # Otsu: the edge between two bins of a histogram with the greatest variance between its sides.
    bins = np.minimum(31, (smooth - smooth.min()) / np.ptp(smooth) * 32).astype(int)
    best, threshold = -1.0, 0
    for edge in range(1, 32):
        low, high = bins[bins < edge], bins[bins >= edge]
        between = len(low) * len(high) * (high.mean() - low.mean()) ** 2
        if between > best:
            best, threshold = between, edge
    edges = np.flatnonzero(np.diff([False, *(bins >= threshold), False]))
    return [(3.0 * begin, 3.0 * end) for begin, end in edges.reshape(-1, 2).tolist()]


@pytest.mark.parametrize("seed", range(12))
def test_moments_are_those_of_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curve = rng.uniform(0.0, 0.35, 50)
    for _ in range(3):
        begin = int(rng.integers(0, 45))
        curve[begin : begin + int(rng.integers(2, 9))] += rng.uniform(0.3, 0.6)
    recogniser = Curve(curve.clip(0, 1))
    retriever = Retriever(BagOfWords(), "reze", captioner=recogniser)
    result = retriever.search(index_of(50), "a dog")
    found = sorted((moment.start, moment.end) for moment in result.moments)
    assert found == moments_by_the_paper(recogniser.curve)
    assert recogniser.forms == [(6, 0.5)], "clips of six frames, half a second apart"
    # The saliency is the probability itself.
    np.testing.assert_allclose(result.saliency, recogniser.curve, rtol=1e-6)


def test_the_preset_says_for_which_clips_it_is_made() -> None:
    config = PRESETS["reze"]
    assert (config.clip_seconds, config.frames_per_clip, config.scorer) == (3.0, 6, "recognition")
    assert config.proposals.sigma * config.clip_seconds == 3.0
    assert clips_warning(index_of(4), config) is None
    assert all(
        one.clip_seconds is None and one.frames_per_clip is None
        for name, one in PRESETS.items()
        if name != "reze"
    )


@pytest.mark.parametrize(("seconds", "frames"), [(2.0, 1), (3.0, 1), (2.0, 6), (3.0, 4)])
def test_other_clips_are_searched_with_a_warning(seconds: float, frames: int) -> None:
    index = index_of(9, seconds=seconds, frames=frames)
    retriever = Retriever(BagOfWords(), "reze", captioner=Curve(np.linspace(0, 1, 9)))
    result = retriever.search(index, "a dog")
    assert result.moments
    (warning,) = search_warnings(index, result, config=retriever.config)
    assert f"this index has clips of {seconds:g} s with {frames}:" in warning
    assert "--clip-seconds 3 --frames-per-clip 6" in warning and "\n" not in warning
    assert not search_warnings(index, result, config=PRESETS["recognition"])


def test_a_library_warns_once_of_videos_of_other_clips() -> None:
    indexes = [index_of(9, seconds=2.0, vid=vid) for vid in ("a", "b")] + [index_of(9, vid="c")]
    retriever = Retriever(BagOfWords(), "reze", captioner=Curve(np.linspace(0, 1, 9)))
    result = Library.of(indexes, retriever).search("a caption", refine=3)
    (warning,) = result.warnings
    assert warning.startswith(("a, b: ", "b, a: ")) and "clips of 2 s with 6" in warning


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_seconds": 0.0}, "clip_seconds: got 0.0, expected seconds from 0.01"),
        ({"clip_seconds": "3"}, "clip_seconds: got '3', expected seconds or None"),
        ({"frames_per_clip": 3}, "frames_per_clip: got 3, expected one of 1, 2, 4, 6"),
        ({"frames_per_clip": 2.0}, "frames_per_clip: got 2.0, expected an integer"),
    ],
)
def test_wrong_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        replace(RetrieverConfig(), **change)
