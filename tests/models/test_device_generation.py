"""Generation where arrays live on a GPU, on a stand-in for CuPy: what crosses to the host."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy
from helpers.tiny_llm import CONFIGS, RAGGED, prompts_of, write_unchecked
from helpers.tiny_vlm import IMAGE, frames_of, write_unchecked_vlm

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


def at_work() -> None:
    """CUDA forbids what the caller does beside a capture."""
    assert getattr(CAPTURE_LOCK._local, "reading", False), "a capture may be under way"


class OnGpu(np.ndarray[Any, Any]):
    """An array of the stand-in; `CROSSED` has the shape and type of all that came to the host."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray):
            at_work()
            assert index.dtype != bool, "the host would wait to know how many it leaves"
        return super().__getitem__(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        at_work()
        assert isinstance(value, OnGpu | int), "CuPy takes nothing of the host"
        super().__setitem__(index, value)

    def argmax(self, axis: Any = None, out: Any = None, **options: Any) -> Any:
        at_work()
        return super().argmax(axis, out, **options)

    def get(self, out: Any = None, blocking: bool = True) -> Any:
        CROSSED.append((self.shape, self.dtype))
        assert blocking == (out is None), "what nobody waits for goes to pinned memory"
        if out is None:
            return np.array(self)
        at_work()
        out[...] = self
        return out


CROSSED: list[tuple[tuple[int, ...], Any]] = []


def on_gpu(function: Any) -> Any:
    """NumPy's function, which takes and gives arrays of the GPU alone."""

    def call(first: Any, *arguments: Any, **options: Any) -> Any:
        at_work()
        for array in first if isinstance(first, list) else [first]:
            assert isinstance(array, OnGpu), f"{function.__name__} got an array of the host"
        return function(first, *arguments, **options).view(OnGpu)

    return call


UPLOADED: list[tuple[tuple[int, ...], Any]] = []
"""Shape and type of all that went to the GPU."""


def upload(array: Any) -> Any:
    at_work()
    if isinstance(array, OnGpu):
        return array
    UPLOADED.append((array.shape, array.dtype))
    return np.array(array).view(OnGpu)


class Stream:
    """Where work is queued; the stand-in's is done at once."""

    ptr = 77

    def __init__(self) -> None:
        self.entered = 0

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *error: object) -> None:
        self.entered -= 1


class Event:
    """A copy that is under way until the host waits for it."""

    def __init__(self, disable_timing: bool) -> None:
        assert disable_timing

    def record(self) -> None:
        at_work()
        LOG.append("fetch")

    def synchronize(self) -> None:
        at_work()
        LOG.append("wait")


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    at_work()
    return np.empty(shape, dtype).view(OnGpu)


def filled(value: int) -> Any:
    def call(shape: tuple[int, ...], dtype: Any) -> Any:
        at_work()
        return np.full(shape, value, dtype).view(OnGpu)

    return call


def pinned(size: int) -> bytearray:
    at_work()
    return bytearray(size)


LOG: list[str] = []
"""What the host asked of the GPU, in order."""

CUPY = SimpleNamespace(
    asarray=upload,
    empty=empty,
    zeros=filled(0),
    ones=filled(1),
    ascontiguousarray=on_gpu(np.ascontiguousarray),
    stack=on_gpu(np.stack),
    repeat=on_gpu(np.repeat),
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
    """A session on a GPU: nothing goes in or out through the host."""

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        assert self.queue.entered, "arithmetic on what it gives would be on another stream"
        LOG.append(f"step {next(iter(arrays.values())).shape[0]}")
        assert all(isinstance(array, OnGpu) for array in arrays.values())
        found = super().__call__(**{name: np.asarray(array) for name, array in arrays.items()})
        return {name: array.view(OnGpu) for name, array in found.items()}

    def bind(self, inputs: Any, outputs: Any) -> BoundRun:
        at_work()
        assert self.queue.entered
        assert all(isinstance(array, OnGpu) for array in [*inputs.values(), *outputs.values()])
        lent = ({n: np.asarray(a) for n, a in arrays.items()} for arrays in (inputs, outputs))
        run = self._run
        return Queued(
            *(run.name, run.session, *lent),
            device=("cpu", 0),
            queued=True,
            capturable=self.capturable,
        )


class Queued(BoundRun):
    """A bound run that says when it runs, and as what."""

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
    for seen in (CROSSED, UPLOADED, LOG):
        seen.clear()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    folder = write_unchecked(tmp_path, CONFIGS["llama-gqa-untied"], precision=precision)
    there = CausalLM(folder, device="cuda:1")
    start, *ends = prompts_of(23, *RAGGED)
    prefix = there.prefill(start)
    assert not CROSSED and isinstance(prefix.cache[0], OnGpu)
    answers = there.generate(ends, prefix=prefix, max_new_tokens=20)
    assert all(shape[0] <= there.look_every and dtype == np.int64 for shape, dtype in CROSSED), (
        "token ids alone"
    )
    assert len(CROSSED) == 3, "20 steps, eight to a look"
    with monkeypatch.context() as patched:
        patched.setattr(generation, "open_session", open_session)
        here = CausalLM(folder, static_cache=True)
    assert answers == here.generate(ends, prefix=here.prefill(start), max_new_tokens=20)
    rows = [np.array(row) for row in prefix.unstack(there.device)]
    brought = Prefix.stack(rows, prefix.model, prefix.next_position)
    assert there.generate(ends, prefix=brought, max_new_tokens=20) == answers
    logits = there.logits(ends, prefix=prefix, tokens=[5, 2])
    assert CROSSED[-1][0] == (len(ends), 2)
    np.testing.assert_array_equal(logits, here.logits(ends, prefix=here.prefill(start))[:, [5, 2]])


def test_a_captioner_and_its_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_unchecked_vlm(tmp_path)
    frames = FrameSet.of(frames_of(5))
    model = VisionLanguageModel(folder, device="cuda:1")
    device = MemoryTier(1 << 17, name="device", move=model.device.put)  # two frames
    kept = PrefixCache([device, MemoryTier(1 << 16), DiskTier(tmp_path / "kept", 1 << 20)])
    there = VlmCaptioner(model, cache=kept, rows=2, max_new_tokens=8)
    captions = [there.agnostic(frames), there.aware(frames, ["dog"])]
    assert sum(kept.counts.hits.values()) == 5 and kept.counts.evictions["device"]
    with monkeypatch.context() as patched:
        patched.setattr(generation, "open_session", open_session)
        here = VlmCaptioner(VisionLanguageModel(folder), rows=2, max_new_tokens=8)
    assert captions == [here.agnostic(frames), here.aware(frames, ["dog"])]
    there.__dict__["_answers"] = here.__dict__["_answers"] = ([7, 9], [11])
    found, expected = (c.recognise(frames, ["a dog"]) for c in (there, here))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_frames_go_there_once(tmp_path: Path) -> None:
    model = VisionLanguageModel(write_unchecked_vlm(tmp_path), device="cuda:1")
    prefix = model.prefill_frames(frames_of(3), [1, 2, IMAGE, 3])
    assert not CROSSED and prefix.rows == 3
    assert len(model.generate([[4, 5]] * 3, prefix=prefix, max_new_tokens=3)) == 3
    assert [shape for shape, dtype in UPLOADED if dtype == np.uint8] == [
        (3, *model.manifest.image_size, 3)
    ]
    assert all(dtype == np.int64 and len(shape) < 3 for shape, dtype in CROSSED)


def test_without_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtraError, match=r"\[cuda\]"):
        CausalLM(write_unchecked(tmp_path), device="cuda:1")


def test_steps_are_queued_without_the_host(tmp_path: Path) -> None:
    """Nothing goes to the GPU for a step, and while tokens come back the next step is queued."""
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
        begun = ["extend 2", *block[1:], *block[1:] * 2, *[step] * 5, "fetch", "wait"]
        assert [line for line in log if line != "capture"] == begun
    assert [log.count("capture") for log in logs] == [0, 1, 0] and logs[0][1] == "step 2"
    assert model.captured_graphs == 1


def test_rows_go_when_half_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache grows; one that stays where it is keeps them."""
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
