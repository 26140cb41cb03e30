"""The preset `visual`, and the curve of frames beside those of captions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import (
    CaptionedVideo,
    GranAlignError,
    MomentRetriever,
    Request,
    RetrieverConfig,
    Rewrites,
    VideoIndex,
)
from granalign_fast.config import PRESETS
from granalign_fast.index import FrameTable, UncaptionedVideo

SCENES = ("street", "street", "dog", "dog", "dog", "dog", "kitchen", "kitchen")
"""The content of each clip's frame."""


class Frames:
    """A frame encoder: a text about a scene is near to the frames of the scene."""

    fingerprint = "frames"
    dim = 24

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_frames(self, frames: Any) -> Any:
        raise AssertionError("a search embeds no frames")

    def encode_texts(self, texts: Any) -> Any:
        self.texts += texts
        return np.stack([self.row(text.split()[-1], text) for text in texts])

    def row(self, scene: str, variation: str) -> Any:
        parts = [
            np.random.default_rng([*text.encode()]).normal(size=self.dim)
            for text in (scene, variation)
        ]
        row = parts[0] + 0.4 * parts[1]
        return (row / np.linalg.norm(row)).astype(np.float32)

    def table(self, scenes: tuple[str, ...] = SCENES, dtype: Any = np.float32) -> FrameTable:
        rows = [self.row(scene, f"{clip}") for clip, scene in enumerate(scenes)]
        hashes = tuple(f"{clip}" for clip in range(len(scenes)))
        return FrameTable(2.0 * np.arange(len(scenes)), hashes, np.stack(rows).astype(dtype))


def bare(vid: str = "v", scenes: tuple[str, ...] = SCENES, dtype: Any = np.float32) -> VideoIndex:
    video = UncaptionedVideo(vid, len(scenes))
    return VideoIndex(video, None, Frames().table(scenes, dtype), {"clip": "frames"})


def captioned(vid: str = "c") -> VideoIndex:
    """Captions that say of each clip what its neighbour's frame shows."""
    video = CaptionedVideo(vid, tuple(f"a {scene}" for scene in (*SCENES[1:], SCENES[0])))
    rows = BagOfWords().encode(video.captions)
    return VideoIndex(video, rows, Frames().table(), {"clip": "frames"})


class Unused:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a model that a search by frames does not need")

    encode = aware = agnostic = recognise = property(lambda self: lambda *_, **__: 1 / 0)


def visual(**parts: Any) -> MomentRetriever:
    return MomentRetriever(Unused(), "visual", frame_encoder=Frames(), **parts)


QUERIES = (
    Rewrites("where is the dog"),
    Rewrites("a dog", ("one dog", "the dog"), ("a big dog",)),
    Rewrites("a street", ("the street",)),
)


def expected_curves(index: VideoIndex, query: Rewrites) -> Any:
    """The curve of each text, in float64."""
    assert index.frames is not None
    frames = np.asarray(index.frames.embeddings, np.float64)
    texts = Frames().encode_texts([query.query, *query.simplified, *query.detailed])
    cosines = texts.astype(np.float64) @ frames.T
    low, high = cosines.min(axis=1, keepdims=True), cosines.max(axis=1, keepdims=True)
    return ((cosines - low) / (high - low)) ** PRESETS["visual"].power


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_text_of_a_query_is_compared_with_the_frames(dtype: Any) -> None:
    index = bare(dtype=dtype)
    for query in QUERIES:
        result = visual(captioner=Unused()).search(index, query)
        expected = expected_curves(index, query)
        np.testing.assert_allclose(result.curves, expected, atol=1e-4)
        np.testing.assert_allclose(result.saliency, expected.mean(axis=0), atol=1e-4)
        assert result.exists is None and result.probably_absent is None and not result.aware
    best = visual().search(index, QUERIES[1]).moments[0]
    assert (best.start, best.end) == (4.0, 12.0)


def test_many_searches_equal_single_ones_with_captions_or_without() -> None:
    retriever = visual()
    requests = [
        Request(index, query)
        for index in (bare("a"), captioned(), bare("b", SCENES[2:]))
        for query in (*QUERIES, "the dog runs past a kitchen")
    ]
    many = retriever.search_many(requests)
    for request, found in zip(requests, many, strict=True):
        single = retriever.search_many([request])[0]
        np.testing.assert_allclose(found.saliency, single.saliency, atol=1e-6)
        assert found.moments == pytest.approx(single.moments)
        assert found.distinct(3) == pytest.approx(single.distinct(3))
        assert (found.vid, found.rewrites) == (single.vid, single.rewrites)


def test_plain_queries_are_rewritten_once() -> None:
    calls: list[list[str]] = []

    class Rewriter:
        def rewrite(self, queries: Any) -> Any:
            calls.append(list(queries))
            return [Rewrites(query, (f"so {query}",)) for query in queries]

    retriever = visual(rewriter=Rewriter())
    seconds: dict[str, float] = {}
    results = retriever.search_many(
        [Request(bare(), "a dog"), Request(bare("w"), "a dog"), Request(bare(), QUERIES[0])],
        seconds=seconds,
    )
    assert calls == [["a dog"]] and "rewrite" in seconds
    assert [len(result.curves) for result in results] == [2, 2, 1]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            VideoIndex(CaptionedVideo("v", ("a dog",)), np.ones((1, 64), np.float32)),
            "'v': got an index of captions alone",
        ),
        (
            replace(bare(), models={"clip": "other"}),
            "got frames embedded by other, expected frames",
        ),
        (
            replace(captioned(), frames=replace(Frames().table(), embeddings=None)),
            "got frames embedded by None",
        ),
        (
            replace(
                bare(),
                frames=replace(Frames().table(), embeddings=np.full((8, 24), np.nan, np.float32)),
            ),
            "not a number",
        ),
        (
            replace(
                bare(), frames=replace(Frames().table(), embeddings=np.ones((8, 9), np.float32))
            ),
            "'v': got frame embeddings of 9 numbers, expected 24",
        ),
    ],
)
def test_indexes_that_cannot_be_searched_by_frames(index: VideoIndex, message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        visual().search(index, "a dog")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["paper", "tuned"])
def test_an_index_without_captions_is_refused_by_others(preset: str) -> None:
    retriever = MomentRetriever(BagOfWords(), preset, frame_encoder=Frames())
    with pytest.raises(GranAlignError, match=r"'v': got an index without captions.*'visual'"):
        retriever.search(bare(), "a dog")


def test_a_frame_encoder_is_needed() -> None:
    with pytest.raises(GranAlignError, match="scorer 'frames': got no frame encoder"):
        MomentRetriever(Unused(), "visual")


@pytest.mark.parametrize("weight", [-0.1, 1, 1.5, float("nan"), "0.5", True])
def test_weights_out_of_range(weight: Any) -> None:
    with pytest.raises(GranAlignError, match="frames_weight: got"):
        RetrieverConfig(frames_weight=weight)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
def test_frames_join_captions_as_one_more_variant(weight: float) -> None:
    """An index of captions alone in the same batch is searched as without frames."""
    config = replace(PRESETS["tuned"], frames_weight=weight)
    alone = replace(captioned("alone"), frames=None, models={})
    requests = [Request(index, query) for query in QUERIES for index in (captioned(), alone)]
    # Without a frame encoder, the weight has no effect.
    plain = MomentRetriever(BagOfWords(), config).search_many(requests)
    frame_encoder = Frames()
    blended = MomentRetriever(BagOfWords(), config, frame_encoder=frame_encoder)
    results = blended.search_many(requests)
    assert bool(frame_encoder.texts) is (weight > 0)
    for request, found, without in zip(requests, results, plain, strict=True):
        assert found.distinct(2)[:1] == found.moments[:1]
        if request.index is alone or not weight:
            np.testing.assert_array_equal(found.curves, without.curves)
            assert found.moments == without.moments
            continue
        assert isinstance(request.query, Rewrites)
        curve = expected_curves(request.index, request.query).mean(axis=0)
        np.testing.assert_allclose(found.curves[-1], curve, atol=1e-4)
        np.testing.assert_array_equal(found.curves[:-1], without.curves)
        expected = weight * curve + (1 - weight) * without.saliency
        np.testing.assert_allclose(found.saliency, expected, atol=1e-4)
        assert found.moments != without.moments


def test_frames_that_are_no_numbers_do_not_join() -> None:
    config = replace(PRESETS["tuned"], frames_weight=0.5)
    table = replace(Frames().table(), embeddings=np.full((8, 24), np.inf, np.float32))
    retriever = MomentRetriever(BagOfWords(), config, frame_encoder=Frames())
    with pytest.raises(GranAlignError, match="'c': got frame embeddings with NaN or infinity"):
        retriever.search(replace(captioned(), frames=table), "a dog")
