"""The search of videos of hours: of a long one the best stretches, each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import CaptionedVideo, GranAlignError, Rewrites, VideoIndex, search_video
from granalign_fast.config import PRESETS
from granalign_fast.index import FrameTable
from granalign_fast.library import Library
from granalign_fast.search.request import Request
from granalign_fast.search.retriever import Retriever

TUNED = PRESETS["tuned"]


def hours(shown: Sequence[tuple[int, int]], clips: int = 5400) -> VideoIndex:
    """Three hours of a man, with a red car in some clips."""
    texts = ["a man sits"] * clips
    for begin, end in shown:
        texts[begin:end] = ["a red car drives"] * (end - begin)
    retriever = Retriever(BagOfWords())
    return retriever.index(CaptionedVideo("hours", tuple(texts)))


class Watched(Retriever):
    """Writes down the lengths of the videos that it searches."""

    def search_many(self, requests: Sequence[Request], **rest: Any) -> Any:
        self.lengths = [request.index.video.clips for request in requests]
        return super().search_many(requests, **rest)


# The second one lies on the edge of two stretches of 75 clips, which are searched as one.
@pytest.mark.parametrize(("begin", "end"), [(5000, 5008), (1496, 1504), (0, 5), (5395, 5400)])
def test_finds_the_moment_in_its_window_alone(begin: int, end: int) -> None:
    retriever = Watched(BagOfWords(), replace(TUNED, best_stretches=2))
    result = search_video(retriever, hours([(begin, end)]), "a red car")
    best = result.moments[0]
    assert (best.start, best.end) == (2.0 * begin, 2.0 * end)
    assert sum(retriever.lengths) <= 2 * (76 + 30)
    assert result.saliency.shape == (5400,)
    assert result.curves.shape[1] == 5400
    assert begin <= int(result.saliency.argmax()) < end
    assert result.vid == "hours"
    # All candidates are on the same clock, and begin with those of the result.
    assert result.rank_all is not None
    assert result.rank_all(result)[0] == best
    assert result.distinct(3)[0] == best


def test_moments_of_several_windows_are_ranked_together() -> None:
    index = hours([(300, 306), (4000, 4006)])
    result = search_video(Retriever(BagOfWords()), index, "a red car")
    found = {(moment.start, moment.end) for moment in result.distinct(2)}
    assert found == {(600.0, 612.0), (8000.0, 8012.0)}
    scores = [moment.score for moment in result.moments]
    assert scores == sorted(scores, reverse=True)


def test_up_to_the_threshold_a_video_is_searched_whole() -> None:
    index = hours([(800, 806)], clips=900)
    retriever = Watched(BagOfWords())
    whole = search_video(retriever, index, "a red car")
    assert retriever.lengths == [900]
    assert whole.moments == retriever.search(index, "a red car").moments
    retriever = Watched(BagOfWords(), replace(TUNED, whole_seconds=1799.0))
    search_video(retriever, index, "a red car")
    assert max(retriever.lengths) < 900


def test_a_library_refines_a_long_video_in_its_best_stretches() -> None:
    short = Retriever(BagOfWords()).index(CaptionedVideo("short", ("a dog runs",) * 60))
    retriever = Watched(BagOfWords())
    library = Library.of([hours([(5000, 5008)]), short], retriever)
    result = library.search("a red car")
    best = result.moments[0]
    assert (best.vid, best.start, best.end, best.refined) == ("hours", 10000.0, 10016.0, True)
    assert best.caption == "a red car drives"
    assert 60 in retriever.lengths
    assert sum(retriever.lengths) < 1500
    hit = result.videos[0]
    assert hit.stretches[0].begin <= 5000 < hit.stretches[0].end
    assert hit.stretches[0].score == hit.score


class Looking:
    """A captioner that says which frames it was given."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def agnostic(self, frames: Any) -> list[str]:
        return ["a man sits"] * len(frames)

    def aware(self, frames: Any, focus: Any) -> list[str]:
        self.seen += [int(name) for name in frames.hashes]
        return ["a red car drives"] * len(frames)


def test_models_look_at_frames_of_the_windows_alone() -> None:
    index = hours([(5000, 5008)])
    names = tuple(f"{clip:032d}" for clip in range(5400))
    frames = FrameTable(np.arange(5400) * 2.0, names)
    looking = Looking()
    retriever = Retriever(BagOfWords(), replace(TUNED, best_stretches=1), captioner=looking)
    query = Rewrites("a red car", ("a car",), ("a red car drives",))
    result = search_video(retriever, replace(index, frames=frames), query)
    assert set(looking.seen) >= set(range(5000, 5008))
    assert len(looking.seen) <= 27  # a quarter of 75 clips and two margins of 15
    assert min(looking.seen) > 4800
    assert result.aware.keys() == set(looking.seen)


def test_a_part_is_the_video_between_two_clips() -> None:
    index = hours([(10, 12)], clips=20)
    names = tuple(f"{clip:032d}" for clip in range(20))
    frames = FrameTable(np.arange(20) * 2.0, names, index.embeddings)
    index = replace(index, frames=frames, video=replace(index.video, duration=39.5))
    part = index.part(10, 20)
    assert part.video.captions == index.video.captions[10:]  # type: ignore[index]
    assert part.video.duration == 19.5
    assert part.frames is not None
    assert (part.frames.first, part.frames.hashes) == (10, names[10:])
    assert part.part(2, 4).frames.first == 12  # type: ignore[union-attr]
    np.testing.assert_array_equal(part.caption_embeddings, index.caption_embeddings[10:])


def test_a_part_is_not_saved(tmp_path: Path) -> None:
    index = hours([], clips=20)
    names = tuple(f"{clip:032d}" for clip in range(20))
    index = replace(index, frames=FrameTable(np.arange(20) * 2.0, names))
    with pytest.raises(GranAlignError, match="got a part of an index, expected a whole one"):
        index.part(5, 9).save(tmp_path / "part")
    assert not (tmp_path / "part").exists()
