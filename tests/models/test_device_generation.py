"""Generation on a GPU, with a stand-in for CuPy: which arrays are copied to and from the host."""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy
from helpers.tiny_llm import CONFIGS, RAGGED, prompts_of, write_unchecked
from helpers.tiny_qwen3_vl import write_unchecked_qwen3_vl
from helpers.tiny_smolvlm import write_unchecked_smolvlm
from helpers.tiny_vlm import frames_of, write_unchecked_vlm

from granalign_fast.errors import MissingExtraError
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models import language_model as generation
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.prefix_cache import DiskTier, MemoryTier, PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK
from granalign_fast.runtime.onnx_run import BoundRun
from granalign_fast.runtime.session import OnnxSession
from granalign_fast.types import FrameSet


def require_shared_lock() -> None:
    """Check that the caller holds the shared lock: CUDA forbids its work during a capture."""
    assert getattr(CAPTURE_LOCK._local, "reading", False), "a capture may be under way"


class OnGpu(np.ndarray[Any, Any]):
    """An array of the stand-in. It refuses what CuPy refuses, and what makes the host wait."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray):
            require_shared_lock()
            assert index.dtype != bool, "the host would wait for the number of selected rows"
        return super().__getitem__(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        require_shared_lock()
        assert isinstance(value, OnGpu | int), "CuPy takes no arrays of the host"
        super().__setitem__(index, value)

    def argmax(self, axis: Any = None, out: Any = None, **options: Any) -> Any:
        require_shared_lock()
        return super().argmax(axis, out, **options)

    def get(self, out: Any = None, blocking: bool = True) -> Any:
        DOWNLOADED.append((self.shape, self.dtype))
        assert blocking == (out is None), "a copy without waiting needs pinned memory"
        if out is None:
            return np.array(self)
        require_shared_lock()
        out[...] = self
        return out


DOWNLOADED: list[tuple[tuple[int, ...], Any]] = []
"""Shape and type of each array that was copied to the host."""


def on_gpu(function: Any) -> Any:
    """Return NumPy's function for arrays of the GPU; it refuses those of the host."""

    def call(first: Any, *arguments: Any, **options: Any) -> Any:
        require_shared_lock()
        for array in first if isinstance(first, list) else [first]:
            assert isinstance(array, OnGpu), f"{function.__name__} got an array of the host"
        return function(first, *arguments, **options).view(OnGpu)

    return call


UPLOADED: list[tuple[tuple[int, ...], Any]] = []
"""Shape and type of each array that was copied to the GPU."""


def upload(array: Any) -> Any:
    require_shared_lock()
    if isinstance(array, OnGpu):
        return array
    UPLOADED.append((array.shape, array.dtype))
    return np.array(array).view(OnGpu)


class Stream:
    """A CUDA stream. The stand-in does its work at once."""

    ptr = 77

    def __init__(self) -> None:
        self.entered = 0

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *error: object) -> None:
        self.entered -= 1


class Event:
    """A CUDA event: logs the start of a copy, and the host's wait for it."""

    def __init__(self, disable_timing: bool) -> None:
        assert disable_timing

    def record(self) -> None:
        require_shared_lock()
        LOG.append("fetch")

    def synchronize(self) -> None:
        require_shared_lock()
        LOG.append("wait")


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    require_shared_lock()
    return np.empty(shape, dtype).view(OnGpu)


def filled(value: int) -> Any:
    def call(shape: tuple[int, ...], dtype: Any) -> Any:
        require_shared_lock()
        return np.full(shape, value, dtype).view(OnGpu)

    return call


def pinned(size: int) -> bytearray:
    require_shared_lock()
    return bytearray(size)


LOG: list[str] = []
"""The host's calls of the GPU, in order."""

CUPY = SimpleNamespace(
    asarray=upload,
    empty=empty,
    zeros=filled(0),
    ones=filled(1),
    ascontiguousarray=on_gpu(np.ascontiguousarray),
    stack=on_gpu(np.stack),
    repeat=on_gpu(np.repeat),
    tile=on_gpu(np.tile),
    take_along_axis=on_gpu(np.take_along_axis),
    concatenate=on_gpu(np.concatenate),
    broadcast_to=on_gpu(lambda array, shape: np.broadcast_to(np.asarray(array), shape)),
    cuda=SimpleNamespace(
        Device=lambda index: nullcontext(),
        Stream=Stream,
        Event=Event,
        alloc_pinned_memory=pinned,
        memory=fake_cupy.cuda.memory,
        runtime=fake_cupy.cuda.runtime,
    ),
)


def open_on_gpu(path: Path, *, device: str, stream: Any, **options: Any) -> GpuSession:
    assert device == "cuda:1" and isinstance(stream, Stream)
    session = open_session(path, device="cpu", **options)
    session.__class__ = GpuSession
    session.queue = stream
    session.capturable = options.get("capturable", False)
    return session


class GpuSession(OnnxSession):
    """A session on a GPU: all its inputs and outputs are arrays of the GPU."""

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        assert self.queue.entered, "arithmetic on its outputs would be on another stream"
        LOG.append(f"step {next(iter(arrays.values())).shape[0]}")
        assert all(isinstance(array, OnGpu) for array in arrays.values())
        outputs = super().__call__(**{name: np.asarray(array) for name, array in arrays.items()})
        return {name: array.view(OnGpu) for name, array in outputs.items()}

    def bind(self, inputs: Any, outputs: Any) -> BoundRun:
        require_shared_lock()
        assert self.queue.entered
        assert all(isinstance(array, OnGpu) for array in [*inputs.values(), *outputs.values()])
        views = ({n: np.asarray(a) for n, a in arrays.items()} for arrays in (inputs, outputs))
        run = self._run
        return LoggedRun(
            *(run.name, run.session, *views),
            device=("cpu", 0),
            queued=True,
            capturable=self.capturable,
        )


class LoggedRun(BoundRun):
    """A bound run that logs each run: as a prefill, a step or a captured graph."""

    def __init__(self, name: str, session: Any, inputs: Any, outputs: Any, **more: Any) -> None:
        super().__init__(name, session, inputs, outputs, **more)
        self.rows, tokens = inputs["position_ids"].shape[-2:]
        self.kind = "step" if tokens == 1 else "extend"

    def __call__(self) -> None:
        LOG.append(f"{'graph' if self.captured else self.kind} {self.rows}")
        super().__call__()

    def capture(self, graph: int) -> None:
        assert not getattr(CAPTURE_LOCK._local, "reading", False), "it would wait for itself"
        LOG.append("capture")
        super().capture(graph)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", CUPY)
    monkeypatch.setattr(generation, "open_session", open_on_gpu)
    for record in (DOWNLOADED, UPLOADED, LOG):
        record.clear()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    folder = write_unchecked(tmp_path, CONFIGS["llama-gqa-untied"], precision=precision)
    gpu_model = CausalLM(folder, device="cuda:1")
    start, *ends = prompts_of(23, *RAGGED)
    prefix = gpu_model.prefill(start)
    assert not DOWNLOADED and isinstance(prefix.cache[0], OnGpu)
    answers = gpu_model.generate(ends, prefix=prefix, max_new_tokens=20)
    assert all(
        shape[0] <= gpu_model.look_every and dtype == np.int64 for shape, dtype in DOWNLOADED
    ), "token ids alone"
    assert len(DOWNLOADED) == 3, "20 steps, read by the host every eight"
    with monkeypatch.context() as patched:
        patched.setattr(generation, "open_session", open_session)
        cpu_model = CausalLM(folder, static_cache=True)
    assert answers == cpu_model.generate(ends, prefix=cpu_model.prefill(start), max_new_tokens=20)
    rows = [np.array(row) for row in prefix.unstack(gpu_model.device)]
    copied = Prefix.stack(rows, prefix.model, prefix.next_position)
    assert gpu_model.generate(ends, prefix=copied, max_new_tokens=20) == answers
    logits = gpu_model.logits(ends, prefix=prefix, tokens=[5, 2])
    assert DOWNLOADED[-1][0] == (len(ends), 2)
    np.testing.assert_array_equal(
        logits, cpu_model.logits(ends, prefix=cpu_model.prefill(start))[:, [5, 2]]
    )


@pytest.mark.parametrize("static", [True, False])
def test_beginnings_of_different_lengths_stay_on_the_device(tmp_path: Path, static: bool) -> None:
    folder = write_unchecked(tmp_path, CONFIGS["llama-gqa-untied"])
    model = CausalLM(folder, device="cuda:1", static_cache=static)
    shared, *starts = prompts_of(5, 9, 2)
    prefix = model.prefill_rows(starts, prefix=model.prefill(shared))
    assert isinstance(prefix.cache[0], OnGpu)
    assert all(dtype == np.int64 for _, dtype in DOWNLOADED), "the mask alone"
    ends = prompts_of(4, 7, 1, 3)
    whole = [shared + start + end for start, end in zip(starts * 2, ends, strict=True)]
    answers = model.generate(ends, prefix=prefix, max_new_tokens=9)
    assert answers == model.generate(whole, max_new_tokens=9)


FAMILIES: dict[str, Any] = {
    "qwen2_5_vl": write_unchecked_vlm,
    "qwen3_vl": write_unchecked_qwen3_vl,
    "smolvlm": write_unchecked_smolvlm,
    "smolvlm-tiles": functools.partial(write_unchecked_smolvlm, image_size=(64, 96)),
}
"""The function that exports a tiny model of each family; one has tiles."""


def seen(model: VisionLanguageModel, count: int, frames: int) -> FrameSet:
    """Return clips of several frames, or single frames, in the model's size."""
    height, width = model.manifest.image_size
    images = frames_of(count * frames, (height, width))
    if frames == 1:
        return FrameSet.of(images)
    return FrameSet.of(images.reshape(count, frames, height, width, 3), frame_seconds=0.5)


@pytest.mark.parametrize("frames_per_clip", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_captioner_and_its_tiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, frames_per_clip: int
) -> None:
    folder = FAMILIES[family](tmp_path)
    model = VisionLanguageModel(folder, device="cuda:1")
    frames = seen(model, 5, frames_per_clip)
    gpu_captioner = VlmCaptioner(model, rows=2 * frames_per_clip, max_new_tokens=8)
    size = gpu_captioner.start_of(frames.form).tokens * model.manifest.token_bytes
    device = MemoryTier(5 * size // 2, name="device", move=model.device.put)  # two clips
    kept = DiskTier(tmp_path / "kept", 1 << 24)
    gpu_captioner.cache = cache = PrefixCache([device, MemoryTier(5 * size // 4), kept])
    captions = [gpu_captioner.agnostic(frames), gpu_captioner.aware(frames, ["dog"])]
    assert sum(cache.counts.hits.values()) == 5 and cache.counts.evictions["device"]
    with monkeypatch.context() as patched:
        patched.setattr(generation, "open_session", open_session)
        cpu_captioner = VlmCaptioner(VisionLanguageModel(folder), max_new_tokens=8)
        expected = [cpu_captioner.agnostic(frames), cpu_captioner.aware(frames, ["dog"])]
    assert captions == expected
    for captioner in (gpu_captioner, cpu_captioner):
        captioner.__dict__["answer_tokens"] = ([7, 9], [11])
    actual, shares = (c.recognise(frames, ["a dog"]) for c in (gpu_captioner, cpu_captioner))
    np.testing.assert_allclose(actual, shares, atol=1e-6)


@pytest.mark.parametrize("frames_per_clip", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_copied_to_the_gpu_once(
    tmp_path: Path, family: str, frames_per_clip: int
) -> None:
    model = VisionLanguageModel(FAMILIES[family](tmp_path), device="cuda:1")
    frames = seen(model, 3, frames_per_clip)
    start = VlmCaptioner(model).start_of(frames.form)
    clips = [clip if frames_per_clip > 1 else clip[None] for clip in frames.load(range(3))]
    prefix = model.prefill_clips(clips, start.ids, seconds=start.seconds)
    assert not DOWNLOADED and prefix.rows == 3
    assert len(model.generate([[4, 5]] * 3, prefix=prefix, max_new_tokens=3)) == 3
    # One upload of all frames, as images of the tower.
    (shape,) = [shape for shape, dtype in UPLOADED if dtype == np.uint8]
    layout = model.layout(frames_per_clip)
    span = (layout.span,) if layout.span > 1 else ()
    assert shape == (3 * layout.images, *span, *model.manifest.image_size, 3)
    assert all(dtype == np.int64 and len(shape) < 3 for shape, dtype in DOWNLOADED)


def test_without_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtraError, match=r"\[cuda\]"):
        CausalLM(write_unchecked(tmp_path), device="cuda:1")


def test_steps_are_queued_without_the_host(tmp_path: Path) -> None:
    """A step uploads nothing, and the next step is queued while tokens are copied to the host."""
    model = CausalLM(write_unchecked(tmp_path, CONFIGS["llama-gqa-untied"]), device="cuda:1")
    prompts = prompts_of(9, 5)
    logs, uploads = [], []
    for count in (2, 30, 30):
        UPLOADED.clear(), LOG.clear()
        model.generate(prompts, max_new_tokens=count, stop_ids=())
        uploads.append(list(UPLOADED)), logs.append(list(LOG))
    assert uploads[0] == uploads[1] == uploads[2] and len(uploads[0]) == 6, "once, for the prompts"
    for log, step in zip(logs[1:], ("graph 2", "graph 2"), strict=True):
        block = [step] * 8 + ["fetch", step, "wait"]
        expected = ["extend 2", *block[1:], *block[1:] * 2, *[step] * 5, "fetch", "wait"]
        assert [line for line in log if line != "capture"] == expected
    assert [log.count("capture") for log in logs] == [0, 1, 0] and logs[0][1] == "step 2"
    assert model.captured_graphs == 1


def test_rows_are_dropped_when_half_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A growing cache drops rows; a static one keeps them."""
    folder = write_unchecked(tmp_path, CONFIGS["llama-gqa-untied"])
    prompts = prompts_of(*RAGGED)
    for static in (False, True):
        model = CausalLM(folder, device="cuda:1", static_cache=static)
        free = model.generate(prompts, max_new_tokens=40, stop_ids=())
        stops = {free[0][2], free[1][0], free[2][11]}
        LOG.clear()
        stopped = model.generate(prompts, max_new_tokens=40, stop_ids=stops)
        with monkeypatch.context() as patched:
            patched.setattr(generation, "open_session", open_session)
            assert stopped == CausalLM(folder).generate(prompts, max_new_tokens=40, stop_ids=stops)
        steps = [line.split()[1] for line in LOG if line.startswith(("step", "graph"))]
        assert steps[0] == "6" and (len(set(steps)) == 1) == static
