"""Searches on a GPU: results equal the host's, and nothing but results is copied back."""

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
from granalign_fast.search import device_ranker, host_ranker
from granalign_fast.search.caption_scorer import CaptionScorer
from granalign_fast.search.clock import Clock
from granalign_fast.search.device_ranker import DeviceRanker, DeviceTextEncoder
from granalign_fast.search.host_ranker import HostRanker, cut_moments
from granalign_fast.search.ranker import Ranker

DIM = 48
TOLERANCE = 1e-4
"""Tolerance of curves: float32 sums in another order, and a rescaling that magnifies the error."""


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
    """The same encoder on a GPU, where it leaves its embeddings."""

    def encode_on(self, texts: Sequence[str], device: ArrayDevice) -> Any:
        with device.activate():  # created on the GPU: the host uploads nothing
            rows = device.xp.empty((len(texts), DIM), np.float32)
            rows.set(self.encode(texts))
        return rows


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
    with emulated_hopper(monkeypatch, tmp_path) as emulated_cupy:
        yield emulated_cupy


emulated = pytest.mark.parametrize("cupy", ["emulated"], indirect=True)


def forget() -> None:
    for seen in (fake_cupy.LOG, fake_cupy.UPLOADED, fake_cupy.FETCHED):
        seen.clear()


def on_gpu(config: Any = "tuned", encoder: Any = None) -> tuple[MomentRetriever, DeviceRanker]:
    retriever = MomentRetriever(encoder or Scenes(), config, device="cuda")
    ranker = ranker_of(retriever)
    assert isinstance(ranker, DeviceRanker)
    return retriever, ranker


def ranker_of(retriever: MomentRetriever) -> Ranker:
    assert isinstance(retriever._scorer, CaptionScorer)
    return retriever._scorer.ranker


def judge(found: Any, expected: Any, config: Any) -> None:
    """Compare curves with the host's to a tolerance, moments from equal curves to the bit."""
    assert (found.vid, found.query, found.aware) == (expected.vid, expected.query, expected.aware)
    np.testing.assert_allclose(found.curves, expected.curves, atol=TOLERANCE)
    np.testing.assert_allclose(found.saliency, expected.saliency, atol=TOLERANCE)
    contiguous = np.ascontiguousarray(found.curves)
    curves = Curves(contiguous, found.saliency, np.array([0, len(found.saliency)]))
    ranked = cut_moments(curves, config, Clock({}))
    best = [column[0, : ranked.counts[0]].tolist() for column in ranked[:3]]
    got = [(m.start / 2, m.end / 2, m.score) for m in found.moments]  # clips of two seconds
    assert got == list(zip(*best, strict=True)) and got
    assert type(found.curves) is type(found.saliency) is np.ndarray


@pytest.mark.parametrize("encoder", [Scenes, ScenesOnGpu])
@pytest.mark.parametrize("preset", ["paper", "tuned"])
@pytest.mark.parametrize("requests", WORKLOADS.values(), ids=WORKLOADS)
def test_results_are_those_of_the_host(cupy: Any, requests: Any, preset: str, encoder: Any) -> None:
    batch = requests()
    expected = MomentRetriever(Scenes(), preset).search_many(batch)
    gpu, _ = on_gpu(preset, encoder())
    for _ in range(2):  # with empty caches, then with full ones
        for found, right in zip(gpu.search_many(batch), expected, strict=True):
            judge(found, right, PRESETS[preset])
            if cupy is fake_cupy:  # whose rounding is the same on every machine
                pairs = zip(found.moments, right.moments, strict=True)
                assert all((a.start, a.end) == (b.start, b.end) for a, b in pairs)
    for one, right in zip(batch, expected, strict=True):
        judge(gpu.search_many([one])[0], right, PRESETS[preset])


def test_results_outlast_the_next_search(cupy: Any) -> None:
    """A ranking overwrites its last results in the next batch of the same shape."""
    gpu, _ = on_gpu()
    index = index_of("v", 40)
    first = gpu.search_many([request(index, 1)])[0]
    moments, curves = first.moments, first.curves.copy()
    second = gpu.search_many([request(index, 5)])[0]
    assert second.moments != first.moments == moments
    np.testing.assert_array_equal(first.curves, curves)


def test_the_same_videos_in_other_pairs(cupy: Any) -> None:
    gpu, _ = on_gpu()
    cpu = MomentRetriever(Scenes())
    one, two = (index_of(vid, 30, first=first) for vid, first in (("one", 0), ("two", 2)))
    for pairs in ((one, two, one), (one, two, two), (one, one, two)):
        batch = [request(index, 3) for index in pairs]
        for result in zip(gpu.search_many(batch), cpu.search_many(batch), strict=True):
            judge(*result, PRESETS["tuned"])


@emulated
@pytest.mark.parametrize("aware", [None, {7: "1 seen"}])
def test_only_row_numbers_are_uploaded_and_only_results_fetched(cupy: Any, aware: Any) -> None:
    gpu, _ = on_gpu(encoder=ScenesOnGpu())
    index = index_of("v", 40)
    first = gpu.search_many([request(index, 1, aware)])[0]
    assert cupy.UPLOADED.count(((40, DIM), np.float32)) == 1
    assert cupy.LOG.count("run context") == 2  # for either comparison
    forget()
    again = gpu.search_many([request(index, 5, aware)])[0]
    # The rows of two simplified texts and a detailed one, and of each clip if one is captioned.
    assert [((3 + (40 if aware else 0),), np.int32)] == cupy.UPLOADED
    results = [*again.curves.ravel(), *again.saliency, *range(10 * 4 + 1)]
    assert [((1, len(results)), np.int32)] == cupy.FETCHED
    # After feedback the variants are compared with both matrices of captions.
    launched = ["cosines", "rescale", "feedback"]
    launched += ["cosines", "cosines", "rescale", "proposals", "nms"]
    assert cupy.LOG[:-1] == [*(f"run {kernel}" for kernel in launched), cupy.LOG[-2]]
    assert cupy.LOG[-2].startswith("record ") and cupy.LOG[-1] == "synchronize"
    assert first.moments != again.moments


@emulated
def test_requests_with_equal_variant_counts_share_one_copy(cupy: Any) -> None:
    gpu, _ = on_gpu(encoder=ScenesOnGpu())
    gpu.search_many(workload())
    assert len(cupy.FETCHED) == 3  # one for each pair of variant counts
    assert sum(shape == (75, DIM) for shape, _ in cupy.UPLOADED) == 1
    forget()
    assert gpu.search_many([]) == []
    assert not cupy.LOG and not cupy.UPLOADED and not cupy.FETCHED


@emulated
def test_embeddings_of_an_encoder_on_the_host_are_uploaded(cupy: Any) -> None:
    gpu, _ = on_gpu()
    gpu.search(index_of("v", 40), Rewrites("1 what"))
    assert cupy.UPLOADED[0] == ((1, DIM), np.float32) and len(cupy.FETCHED) == 1
    assert isinstance(ScenesOnGpu(), DeviceTextEncoder)
    assert not isinstance(Scenes(), DeviceTextEncoder)


def test_threads_share_a_retriever(cupy: Any) -> None:
    gpu, _ = on_gpu()
    batch = workload()
    expected = [gpu.search_many([one])[0] for one in batch]
    assert list(expected[0].seconds) == ["embed", "rank", "results"]
    gpu, _ = on_gpu()
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda one: gpu.search_many([one])[0], batch * 4))
    for one, right in zip(results, expected * 4, strict=True):
        assert one.moments == right.moments
        np.testing.assert_array_equal(one.curves, right.curves)


def test_cached_captions_die_with_their_index(cupy: Any) -> None:
    gpu, ranker = on_gpu()
    indexes = [index_of(vid, 30) for vid in "abc"]
    gpu.search_many([request(index, 2) for index in indexes])
    mixed = 2 * 30 * DIM * 4  # bytes of a video: the rows of either comparison
    assert len(ranker._captions) == 3 and ranker._captions.nbytes == 3 * mixed
    del indexes[0]
    gc.collect()
    assert len(ranker._captions) == 2 and ranker._captions.nbytes == 2 * mixed


def test_the_host_mixes_the_captions_of_a_video_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = 2 * 30 * DIM * 4
    seen = []
    mix = host_ranker.mix
    monkeypatch.setattr(host_ranker, "mix", lambda rows, c: seen.append(len(rows)) or mix(rows, c))
    cpu = MomentRetriever(Scenes(), cache_bytes=2 * mixed)
    ranker = ranker_of(cpu)
    assert isinstance(ranker, HostRanker)
    indexes = [index_of(vid, 30) for vid in "abc"]
    first = cpu.search_many([request(index, 2) for index in indexes])
    assert len(seen) == 3 and len(ranker._captions) == 2 and ranker._captions.nbytes == 2 * mixed
    again = [cpu.search_many([request(index, 2)])[0] for index in indexes[:0:-1]]
    assert len(seen) == 3
    for one, other in zip(first[:0:-1], again, strict=True):
        assert one.moments == other.moments
        np.testing.assert_array_equal(one.curves, other.curves)
    del indexes, first, again
    gc.collect()
    assert len(ranker._captions) == ranker._captions.nbytes == 0
    # `paper` compares with the embeddings as they are: there is nothing to keep.
    plain = MomentRetriever(Scenes(), "paper")
    plain.search_many([request(index_of("a", 30), 2)])
    ranker = ranker_of(plain)
    assert isinstance(ranker, HostRanker) and len(ranker._captions) == 0


def test_captions_and_rankings_are_bounded(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_ranker, "_CAPTION_CACHE_BYTES", 3 * 30 * DIM * 4)
    monkeypatch.setattr(device_ranker, "_CACHED_RANKINGS", 2)
    monkeypatch.setattr(device_ranker, "_MOST_CACHED_CLIPS", 64)
    gpu, ranker = on_gpu("paper")
    cpu = MomentRetriever(Scenes(), "paper")
    indexes = [index_of(str(clips), clips) for clips in (30, 31, 32, 33, 65)]
    for index in [*indexes, *indexes[::-1]]:
        batch = [request(index, 2)]
        judge(gpu.search_many(batch)[0], cpu.search_many(batch)[0], PRESETS["paper"])
        assert ranker._captions.nbytes <= 3 * 30 * DIM * 4 and len(ranker._rankings) <= 2
    assert {cached.total for cached in ranker._rankings.values()} == {30, 31}
    # A batch of more captions than the cache holds is searched all the same.
    for result in gpu.search_many([request(index, 2) for index in indexes]):
        assert result.moments
    assert {cached.total for cached in ranker._rankings.values()} == {30, 31}


def test_one_more_aware_caption_is_no_new_shape(cupy: Any) -> None:
    gpu, ranker = on_gpu()
    index = index_of("v", 20)
    for count in (2, 3, 4, 5):  # with three texts of the query: five to eight
        gpu.search(index, "2 what", aware={clip: f"2 seen {clip}" for clip in range(count)})
        gpu.search_many([request(index, 2, {clip: f"2 it {clip}" for clip in range(count)})])
    assert len(ranker._rankings) == 3


def spoilt(value: float) -> Request:
    index = index_of("v", 20)
    index.embeddings[13, 5] = value
    return Request(index, "2 what")


@pytest.mark.parametrize(
    ("make_request", "message"),
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
def test_errors_are_those_of_the_host(
    cupy: Any, make_request: Any, message: str, preset: str
) -> None:
    # Infinity makes NumPy warn on the way.
    with np.errstate(invalid="ignore"), pytest.raises(GranAlignError, match=message) as error:
        MomentRetriever(Scenes(), preset).search_many([make_request()])
    gpu, _ = on_gpu(preset)
    # But for the clip: the host lets what is not a number spread over the video.
    same = re.sub(r"clip\\ \d+\\ is", r"clip\\ \\d+\\ is", re.escape(str(error.value)))
    with pytest.raises(GranAlignError, match=same):
        gpu.search_many([make_request()])
    gpu.search_many([request(index_of("v", 20), 2)])  # later searches work


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_without_cupy(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtraError, match=rf"device '{device}' needs the extra \["):
        MomentRetriever(Scenes(), device=device)


def test_unknown_devices() -> None:
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
        retriever = models.retriever()
        assert isinstance(ranker_of(retriever), kind) and isinstance(
            retriever.rewriter, RuleRewriter
        )


def test_a_ranker_is_freed_without_garbage_collection(cupy: Any) -> None:
    """A ranker holds memory of a GPU: no cycle of references may keep it alive."""
    gpu, ranker = on_gpu()
    index = index_of("v", 20)
    gpu.search_many([request(index, 2)])
    parts = [weakref.ref(ranker), weakref.ref(ranker._captions)]
    gc.disable()
    try:
        del gpu, ranker
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()
