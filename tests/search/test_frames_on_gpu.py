"""Frames on a GPU, whose kernels are emulated: the results are those of the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.devices import emulated_hopper
from helpers.fakes import BagOfWords

from granalign_fast import CaptionedVideo, MomentRetriever, Request, Rewrites, VideoIndex
from granalign_fast.config import PRESETS, RetrieverConfig
from granalign_fast.index import FrameTable, UncaptionedVideo

SCENES = ("a dog runs", "a red car", "an empty road", "a man cooks soup", "soup in a pot")


class Frames:
    """A frame encoder that embeds texts as `BagOfWords` does."""

    fingerprint = "frames"

    def encode_frames(self, frames: Any) -> Any:
        raise AssertionError("a search embeds no frames")

    def encode_texts(self, texts: Any) -> Any:
        return BagOfWords().encode(texts)


def index_of(vid: str, clips: int, *, captioned: bool) -> VideoIndex:
    """A scene lasts four clips; its captions begin two clips later."""
    shown = [f"{SCENES[clip // 4 % len(SCENES)]} {clip}" for clip in range(clips)]
    hashes = tuple(f"{clip}" for clip in range(clips))
    rows = Frames().encode_texts(shown)
    table = FrameTable(2.0 * np.arange(clips), hashes, rows)
    if not captioned:
        return VideoIndex(UncaptionedVideo(vid, clips), None, table, {"clip": "frames"})
    captions = CaptionedVideo(vid, tuple((shown[-2:] + shown)[:clips]))
    embeddings = BagOfWords().encode(captions.captions)
    return VideoIndex(captions, embeddings, table, {"clip": "frames"})


@pytest.mark.parametrize(
    ("config", "captioned"),
    [(PRESETS["visual"], False), (replace(PRESETS["tuned"], frames_weight=0.125), True)],
)
def test_results_are_those_of_the_host(
    config: RetrieverConfig, captioned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    queries = (
        Rewrites("the dog runs", ("a dog",), ("a dog runs over a road",)),
        Rewrites("where is the soup"),
    )
    batch = [
        Request(index_of(vid, clips, captioned=captioned), query)
        for vid, clips in (("long", 75), ("one", 1), ("short", 19))
        for query in queries
    ]
    if captioned:  # an index of captions alone in the same batch
        alone = index_of("alone", 30, captioned=True)
        batch.insert(1, Request(VideoIndex(alone.video, alone.embeddings), queries[0]))
    frame_encoder = Frames()
    host = MomentRetriever(BagOfWords(), config, frame_encoder=frame_encoder)
    expected = host.search_many(batch)
    with emulated_hopper(monkeypatch, tmp_path):
        gpu = MomentRetriever(BagOfWords(), config, frame_encoder=frame_encoder, device="cuda")
        results = gpu.search_many(batch)
    for found, right in zip(results, expected, strict=True):
        assert (found.vid, found.query) == (right.vid, right.query)
        np.testing.assert_allclose(found.curves, right.curves, atol=1e-4)
        np.testing.assert_allclose(found.saliency, right.saliency, atol=1e-4)
        times = [[(m.start, m.end) for m in one.moments[:3]] for one in (found, right)]
        assert times[0] == times[1] and times[0]
        assert type(found.curves) is type(found.saliency) is np.ndarray
