"""The first stage on a GPU, whose kernels are emulated: the videos are those of the host."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.devices import emulated_hopper
from helpers.fakes import BagOfWords

from granalign_fast import CaptionedVideo, Filters, VideoIndex
from granalign_fast.library import Library
from granalign_fast.library import first_stage as module
from granalign_fast.search.retriever import Retriever

SCENES = ("a dog runs", "a red car", "an empty road", "a man cooks soup", "soup in a pot")


@pytest.fixture
def indexes(monkeypatch: pytest.MonkeyPatch) -> list[VideoIndex]:
    """Twelve videos, of which only the nearest clips are compared, as in a large library."""
    monkeypatch.setattr(module, "ALL_COMPARED", 0)
    rng = np.random.default_rng(0)
    videos = [
        CaptionedVideo(f"v-{number}", tuple(rng.choice(SCENES, int(rng.integers(1, 90)))))
        for number in range(12)
    ]
    return Retriever(BagOfWords()).index_many(videos)


def ranking(library: Library, filters: Filters | None = None) -> list[Any]:
    results = library.search_many(["a red car", "soup"], refine=0, filters=filters)
    return [[(hit.video.vid, hit.start, hit.clip) for hit in one.videos] for one in results]


def test_videos_are_those_of_the_host(
    indexes: list[VideoIndex], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_host = Library.of(indexes, Retriever(BagOfWords()))
    scattered = Filters(videos=["v-1", "v-4", "v-7", "v-11"])
    with emulated_hopper(monkeypatch, tmp_path) as cupy:
        on_gpu = Library.of(indexes, Retriever(BagOfWords(), device="cuda"))
        cupy.UPLOADED.clear()
        assert ranking(on_gpu) == ranking(on_host)
        clips = sum(index.video.clips for index in indexes)
        # The embeddings are copied once, and stay for later searches.
        assert cupy.UPLOADED.count(((clips, 64), np.float16)) == 1
        monkeypatch.setattr(module, "_MOST_RANGES", 2)
        assert ranking(on_gpu, scattered) == ranking(on_host, scattered)
        assert cupy.UPLOADED.count(((clips, 64), np.float16)) == 1


def test_what_does_not_fit_on_the_gpu_is_searched_on_the_host(
    indexes: list[VideoIndex],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = ranking(Library.of(indexes, Retriever(BagOfWords())))
    clips = sum(index.video.clips for index in indexes)
    with emulated_hopper(monkeypatch, tmp_path) as cupy:
        real = cupy.asarray

        def full(array: Any) -> Any:
            if len(array) == clips:
                raise cupy.cuda.memory.OutOfMemoryError("out of memory")
            return real(array)

        monkeypatch.setattr(cupy, "asarray", full)
        library = Library.of(indexes, Retriever(BagOfWords(), device="cuda"))
        with caplog.at_level(logging.WARNING):
            assert ranking(library) == expected
            assert ranking(library) == expected
    assert caplog.text.count("the first stage runs on the CPU: GPU 0 failed") == 1
