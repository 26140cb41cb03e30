"""Searches whose kernels run on a GPU: the host's results, and nothing but results comes back."""

from __future__ import annotations

import gc
import re
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy
from helpers.devices import cuda_missing, emulated_hopper

from granalign_fast import (
    CaptionedVideo,
    GranAlignError,
    MomentRetriever,
    Request,
    Rewrites,
    RuleRewriter,
    VideoIndex,
)
from granalign_fast.config import PRESETS
from granalign_fast.errors import MissingExtraError
from granalign_fast.kernels import Curves
from granalign_fast.pipeline import ModelFolder
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.search import device_ranker
from granalign_fast.search.caption_scorer import CaptionScorer
from granalign_fast.search.clock import Clock
from granalign_fast.search.device_ranker import DeviceRanker, DeviceTextEncoder
from granalign_fast.search.host_ranker import HostRanker, cut_moments
from granalign_fast.search.ranker import Ranker

DIM = 48
TOLERANCE = 1e-4
"""Of curves: float32 sums in another order, and a rescaling that stretches the difference."""


class Scenes:
    """An encoder to which "3 walk" and "3 run" are about the scene 3, each in its own words."""

    dim = DIM

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Any:
        rows = np.empty((len(texts), DIM), np.float32)
        for row, text in zip(rows, texts, strict=True):
            scene = np.random.default_rng(int(text.split()[0]))
            words = np.random.default_rng(zlib.crc32(text.encode()))
            row[:] = scene.standard_normal(DIM) + 0.7 * words.standard_normal(DIM)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class ScenesOnGpu(Scenes):
    """The same, which leaves on a GPU what it makes there."""

    def encode_on(self, texts: Sequence[str], place: ArrayDevice) -> Any:
        with place.activate():  # nothing crosses: it was made there
            found = place.xp.empty((len(texts), DIM), np.float32)
            found.set(self.encode(texts))
        return found


def index_of(vid: str, clips: int, dtype: Any = np.float32, first: int = 0) -> VideoIndex:
    """A scene lasts about six clips."""
    captions = tuple(f"{first + clip // 6} {vid} {clip}" for clip in range(clips))
    return VideoIndex(CaptionedVideo(vid, captions), Scenes().encode(captions).astype(dtype))


def request(index: VideoIndex, scene: int, aware: dict[int, str] | None = None) -> Request:
    query = f"{scene} is asked for"
    return Request(index, Rewrites(query, (f"{scene} plain",), (f"{scene} in detail",)), aware)


def workload(dtype: Any = np.float32) -> list[Request]:
    """Lengths from one clip up, several queries a video, three numbers of variants."""
    lengths = {"long": 75, "one": 1, "two": 2, "short": 19, "other": 40}
    long, one, two, short, other = (index_of(vid, n, dtype) for vid, n in lengths.items())
    return [
        request(long, 3),
        request(short, 1, {6: "1 seen", 11: "1 seen too", 12: "2 seen"}),
        Request(other, Rewrites("5 alone")),
        request(one, 0),
        request(long, 9, {clip: f"9 seen {clip}" for clip in range(50, 60)}),
        Request(short, Rewrites("2 twice", ("2 twice", "2 so"), ("2 thus",)), {13: "2 twice"}),
        request(long, 3),
        request(two, 0),
        Request(long, Rewrites("8 alone")),
    ]


WORKLOADS: dict[str, Callable[[], list[Request]]] = {
    "ragged": workload,
    "half precision": lambda: workload(np.float16),
    "both precisions": lambda: workload(np.float16)[:4] + workload()[2:],
    "one": lambda: [request(index_of("v", 75), 3)],
    "one, aware": lambda: [request(index_of("v", 75), 3, {20: "3 seen"})],
}


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def cupy(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Any]:
    """CuPy, or its stand-in with emulated kernels."""
    if request.param == "cuda":
        if missing := cuda_missing():
            pytest.skip(missing)
        yield sys.modules["cupy"]
        return
    forget()
    with emulated_hopper(monkeypatch, tmp_path) as found:
        yield found


emulated = pytest.mark.parametrize("cupy", ["emulated"], indirect=True)


def forget() -> None:
    for seen in (fake_cupy.LOG, fake_cupy.UPLOADED, fake_cupy.FETCHED):
        seen.clear()


def on_gpu(config: Any = "tuned", encoder: Any = None) -> tuple[MomentRetriever, DeviceRanker]:
    made = MomentRetriever(encoder or Scenes(), config, device="cuda")
    ranker = ranker_of(made)
    assert isinstance(ranker, DeviceRanker)
    return made, ranker


def ranker_of(retriever: MomentRetriever) -> Ranker:
    assert isinstance(retriever._scorer, CaptionScorer)
    return retriever._scorer.ranker


def judge(found: Any, expected: Any, config: Any) -> None:
    """The host's curves to a tolerance; from these very curves the host's moments to the bit."""
    assert (found.vid, found.query, found.aware) == (expected.vid, expected.query, expected.aware)
    np.testing.assert_allclose(found.curves, expected.curves, atol=TOLERANCE)
    np.testing.assert_allclose(found.saliency, expected.saliency, atol=TOLERANCE)
    own = np.ascontiguousarray(found.curves)
    curves = Curves(own, found.saliency, np.array([0, len(found.saliency)]))
    ranked = cut_moments(curves, config, Clock({}))
    best = [column[0, : ranked.counts[0]].tolist() for column in ranked[:3]]
    got = [(m.start / 2, m.end / 2, m.score) for m in found.moments]  # clips of two seconds
    assert got == list(zip(*best, strict=True)) and got
    assert type(found.curves) is type(found.saliency) is np.ndarray


@pytest.mark.parametrize("encoder", [Scenes, ScenesOnGpu])
@pytest.mark.parametrize("preset", ["paper", "tuned"])
@pytest.mark.parametrize("requests", WORKLOADS.values(), ids=WORKLOADS)
def test_results_are_those_of_the_host(cupy: Any, requests: Any, preset: str, encoder: Any) -> None:
    asked = requests()
    expected = MomentRetriever(Scenes(), preset).search_many(asked)
    there, _ = on_gpu(preset, encoder())
    for _ in range(2):  # with nothing kept, then with all
        for found, right in zip(there.search_many(asked), expected, strict=True):
            judge(found, right, PRESETS[preset])
            if cupy is fake_cupy:  # whose rounding is the same on every machine
                pairs = zip(found.moments, right.moments, strict=True)
                assert all((a.start, a.end) == (b.start, b.end) for a, b in pairs)
    for one, right in zip(asked, expected, strict=True):
        judge(there.search_many([one])[0], right, PRESETS[preset])


def test_results_outlast_the_next_search(cupy: Any) -> None:
    """A ranking of the same shape writes over what it gave before."""
    there, _ = on_gpu()
    index = index_of("v", 40)
    first = there.search_many([request(index, 1)])[0]
    kept = first.moments, first.curves.copy()
    second = there.search_many([request(index, 5)])[0]
    assert second.moments != first.moments == kept[0]
    np.testing.assert_array_equal(first.curves, kept[1])


def test_the_same_videos_in_other_pairs(cupy: Any) -> None:
    there, _ = on_gpu()
    here = MomentRetriever(Scenes())
    one, two = (index_of(vid, 30, first=first) for vid, first in (("one", 0), ("two", 2)))
    for pairs in ((one, two, one), (one, two, two), (one, one, two)):
        asked = [request(index, 3) for index in pairs]
        for result in zip(there.search_many(asked), here.search_many(asked), strict=True):
            judge(*result, PRESETS["tuned"])


@emulated
@pytest.mark.parametrize("aware", [None, {7: "1 seen"}])
def test_row_numbers_go_there_and_results_come_back(cupy: Any, aware: Any) -> None:
    there, _ = on_gpu(encoder=ScenesOnGpu())
    index = index_of("v", 40)
    first = there.search_many([request(index, 1, aware)])[0]
    assert cupy.UPLOADED.count(((40, DIM), np.float32)) == 1
    assert cupy.LOG.count("run context") == 1
    forget()
    again = there.search_many([request(index, 5, aware)])[0]
    # Of two simplified texts and a detailed one, and of each clip where one was looked at.
    assert [((3 + (40 if aware else 0),), np.int32)] == cupy.UPLOADED
    results = [*again.curves.ravel(), *again.saliency, *range(10 * 4 + 1)]
    assert [((1, len(results)), np.int32)] == cupy.FETCHED
    launched = ["cosines", "rescale", "proposals", "nms"]
    assert cupy.LOG[:-1] == [*(f"run {kernel}" for kernel in launched), cupy.LOG[-2]]
    assert cupy.LOG[-2].startswith("record ") and cupy.LOG[-1] == "synchronize"
    assert first.moments != again.moments


@emulated
def test_a_batch_of_alike_requests_is_one_copy(cupy: Any) -> None:
    there, _ = on_gpu(encoder=ScenesOnGpu())
    there.search_many(workload())
    assert len(cupy.FETCHED) == 3  # as many as numbers of variants
    assert sum(shape == (75, DIM) for shape, _ in cupy.UPLOADED) == 1
    forget()
    assert there.search_many([]) == []
    assert not cupy.LOG and not cupy.UPLOADED and not cupy.FETCHED


@emulated
def test_an_encoder_of_the_host_is_uploaded(cupy: Any) -> None:
    there, _ = on_gpu()
    there.search(index_of("v", 40), Rewrites("1 what"))
    assert cupy.UPLOADED[0] == ((1, DIM), np.float32) and len(cupy.FETCHED) == 1
    assert isinstance(ScenesOnGpu(), DeviceTextEncoder)
    assert not isinstance(Scenes(), DeviceTextEncoder)


def test_threads_share_a_retriever(cupy: Any) -> None:
    there, _ = on_gpu()
    asked = workload()
    expected = [there.search_many([one])[0] for one in asked]
    assert list(expected[0].seconds) == ["embed", "rank", "results"]
    there, _ = on_gpu()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: there.search_many([one])[0], asked * 4))
    for one, right in zip(found, expected * 4, strict=True):
        assert one.moments == right.moments
        np.testing.assert_array_equal(one.curves, right.curves)


def test_captions_go_with_their_index(cupy: Any) -> None:
    there, own = on_gpu()
    indexes = [index_of(vid, 30) for vid in "abc"]
    there.search_many([request(index, 2) for index in indexes])
    assert len(own._captions) == 3 and own._captions.nbytes == 3 * 30 * DIM * 4
    del indexes[0]
    gc.collect()
    assert len(own._captions) == 2 and own._captions.nbytes == 2 * 30 * DIM * 4


def test_captions_and_rankings_are_bounded(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_ranker, "_CAPTION_CACHE_BYTES", 3 * 30 * DIM * 4)
    monkeypatch.setattr(device_ranker, "_CACHED_RANKINGS", 2)
    monkeypatch.setattr(device_ranker, "_MOST_CACHED_CLIPS", 64)
    there, own = on_gpu("paper")
    here = MomentRetriever(Scenes(), "paper")
    indexes = [index_of(str(clips), clips) for clips in (30, 31, 32, 33, 65)]
    for index in [*indexes, *indexes[::-1]]:
        asked = [request(index, 2)]
        judge(there.search_many(asked)[0], here.search_many(asked)[0], PRESETS["paper"])
        assert own._captions.nbytes <= 3 * 30 * DIM * 4 and len(own._rankings) <= 2
    assert {found.total for found in own._rankings.values()} == {30, 31}
    # More than there is room for are searched all the same.
    for found in there.search_many([request(index, 2) for index in indexes]):
        assert found.moments
    assert {found.total for found in own._rankings.values()} == {30, 31}


def test_another_aware_caption_is_no_other_shape(cupy: Any) -> None:
    there, own = on_gpu()
    index = index_of("v", 20)
    for count in (2, 3, 4, 5):  # with three texts of the query: five to eight
        there.search(index, "2 what", aware={clip: f"2 seen {clip}" for clip in range(count)})
        there.search_many([request(index, 2, {clip: f"2 it {clip}" for clip in range(count)})])
    assert len(own._rankings) == 3


def spoilt(value: float) -> Request:
    index = index_of("v", 20)
    index.embeddings[13, 5] = value
    return Request(index, "2 what")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: spoilt(np.nan), "NaN or infinity"),
        (lambda: spoilt(np.inf), "NaN or infinity"),
        (lambda: Request(index_of("v", 20), "2 what", {20: "2 seen"}), "aware caption of clip 20"),
        (
            lambda: Request(VideoIndex(CaptionedVideo("v", ("a",)), np.ones((1, 3), "f4")), "2"),
            "got caption embeddings of 3 numbers",
        ),
    ],
)
@pytest.mark.parametrize("preset", ["paper", "tuned"])
def test_errors_are_those_of_the_host(cupy: Any, asked: Any, message: str, preset: str) -> None:
    # Infinity makes NumPy warn on the way.
    with np.errstate(invalid="ignore"), pytest.raises(GranAlignError, match=message) as here:
        MomentRetriever(Scenes(), preset).search_many([asked()])
    there, _ = on_gpu(preset)
    # But for the clip: the host lets what is not a number spread over the video.
    same = re.sub(r"clip\\ \d+\\ is", r"clip\\ \\d+\\ is", re.escape(str(here.value)))
    with pytest.raises(GranAlignError, match=same):
        there.search_many([asked()])
    there.search_many([request(index_of("v", 20), 2)])  # and it goes on


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_without_cupy(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtraError, match=rf"device '{device}' needs the extra \["):
        MomentRetriever(Scenes(), device=device)


def test_devices_that_are_none() -> None:
    with pytest.raises(GranAlignError, match="device 'gpu': expected 'cpu', 'cuda'"):
        MomentRetriever(Scenes(), device="gpu")
    assert isinstance(ranker_of(MomentRetriever(Scenes())), HostRanker)


@emulated
def test_a_folder_of_models_passes_its_device_on(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granalign_fast.pipeline.exported_models", lambda _: {})
    for device, kind in (("cpu", HostRanker), ("cuda", DeviceRanker)):
        models = ModelFolder(tmp_path, device=device)
        models.__dict__["encoder"] = Scenes()
        made = models.retriever()
        assert isinstance(ranker_of(made), kind) and isinstance(made.rewriter, RuleRewriter)


def test_a_ranker_goes_without_a_collection(cupy: Any) -> None:
    """Its memory is that of a GPU: no cycle of references keeps it."""
    there, own = on_gpu()
    index = index_of("v", 20)
    there.search_many([request(index, 2)])
    parts = [weakref.ref(own), weakref.ref(own._captions)]
    gc.disable()
    try:
        del there, own
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()
