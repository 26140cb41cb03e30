"""Models on a real GPU: every node runs there, and results equal those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.devices import cuda_missing
from helpers.tiny_bert import write_tiny_bert
from helpers.tiny_llm import LLAMA, RAGGED, extension_of, prompts_of, write_unchecked
from helpers.tiny_vlm import frames_of, write_unchecked_vlm

from granalign_fast.bench.harness.judges import judge_tokens
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.prefix_cache import MemoryTier, PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.runtime.cuda_graphs import GraphRun
from granalign_fast.runtime.device import CUDA
from granalign_fast.runtime.node_profile import strays
from granalign_fast.types import FrameSet

pytestmark = pytest.mark.needs_cuda

# Heads as wide as those of Llama 3 8B and Qwen2.5-VL 7B, so that the same kernels run.
WIDE = LLAMA | {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
ROWS, NEW = 40, 16
SHARE = {"fp32": 1e-4, "fp16": 2e-2}
"""Greatest difference between GPU and CPU, as a share of the largest value: their sums have another
order."""


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """A GPU, and an ONNX Runtime that can use it."""
    if missing := cuda_missing():
        pytest.skip(missing)
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("no CUDA in ONNX Runtime: install the extra [cuda]")


def near(actual: Any, expected: np.ndarray[Any, Any], precision: str) -> None:
    error = np.abs(actual.astype(np.float32) - expected.astype(np.float32)).max()
    assert error <= SHARE[precision] * np.abs(expected).max(), error


@pytest.mark.parametrize("past", [0, 300])
@pytest.mark.parametrize("graph", ["model.onnx", "static.onnx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_prefix_extension(tmp_path: Path, graph: str, precision: str, past: int) -> None:
    """New tokens behind a long cache: every node runs on the GPU, with the CPU's results."""
    folder = write_unchecked(tmp_path, WIDE, precision=precision)
    session = open_session(folder / graph, device="cuda", profile=True)
    dtype = np.float16 if precision == "fp16" else np.float32
    arrays = extension_of(session, ROWS, past, NEW, size=128, dtype=dtype)
    actual, expected = session(**arrays), open_session(folder / graph)(**arrays)
    for name, array in expected.items():
        near(actual[name], array, precision)
    nodes = session.nodes()
    assert strays(nodes, CUDA) == []
    assert sum(node.operator == "Attention" for node in nodes) == WIDE["num_hidden_layers"]


@pytest.mark.parametrize("static", [True, False])
def test_generation_equals_that_of_the_cpu(tmp_path: Path, static: bool) -> None:
    folder = write_unchecked(tmp_path, WIDE)
    gpu_model = CausalLM(folder, device="cuda", static_cache=static)
    cpu_model = CausalLM(folder)
    start, *ends = prompts_of(23, *RAGGED)
    answers = [
        model.generate(ends, prefix=model.prefill(start), max_new_tokens=40)
        for model in (gpu_model, cpu_model)
    ]
    assert answers[0] == answers[1]
    before, after = (gpu_model.generate(ends, max_new_tokens=20, stop_ids=()) for _ in range(2))
    assert before == after == cpu_model.generate(ends, max_new_tokens=20, stop_ids=())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_is_captured_as_a_graph(tmp_path: Path, precision: str) -> None:
    """Steps are captured from a shape's second batch on, and earlier batches leave no trace."""
    folder = write_unchecked(tmp_path, WIDE, precision=precision)
    model = CausalLM(folder, device="cuda")
    batches = [prompts_of(*RAGGED), prompts_of(*reversed(RAGGED))] * 3
    plain = CausalLM(folder, device="cuda", static_cache=False)
    for prompts in batches:
        actual, expected = (
            m.generate(prompts, max_new_tokens=30, stop_ids=()) for m in (model, plain)
        )
        if precision == "fp32":
            assert actual == expected
        # In fp16 two tokens of nearly equal logits may swap. Judge each against a pass without a
        # cache.
        judge_tokens("a step that is a graph", plain, prompts, actual)
    assert model.graphs_refused is None and model.captured_graphs == 1


def test_captions_equal_those_of_the_cpu(tmp_path: Path) -> None:
    folder = write_unchecked_vlm(tmp_path)
    frames = FrameSet.of(frames_of(5))
    on_gpu = MemoryTier(1 << 17, name="device", move=ArrayDevice.of("cuda").put)
    tiers = PrefixCache([on_gpu, MemoryTier(1 << 20)])
    gpu_captioner, cpu_captioner = (
        VlmCaptioner(VisionLanguageModel(folder, device=device), cache=cache, rows=2)
        for device, cache in (("cuda", tiers), ("cpu", None))
    )
    for captioner in (gpu_captioner, cpu_captioner):
        captioner.prefill(frames)
    assert gpu_captioner.agnostic(frames) == cpu_captioner.agnostic(frames)
    assert gpu_captioner.aware(frames, ["dog"]) == cpu_captioner.aware(frames, ["dog"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_encoder_runs_as_graphs(tmp_path: Path, precision: str) -> None:
    source = write_tiny_bert(tmp_path / "tiny")
    gpu_encoder, cpu_encoder = (
        SentenceEncoder(source, precision=precision, device=name, cache_dir=tmp_path / "cache")
        for name in ("cuda", "cpu")
    )
    texts = ["a b c", "d e f", "a", "b c d e f"] * 9
    expected = cpu_encoder.encode(texts)
    for _ in range(3):
        near(gpu_encoder.encode(texts), expected, precision)
    device = ArrayDevice.of("cuda")
    near(device.to_host(gpu_encoder.encode_on(texts, device)), expected, precision)
    run = gpu_encoder._session._run
    assert isinstance(run, GraphRun) and run.refused is None and run.captured


def test_a_memory_limit_is_respected(tmp_path: Path) -> None:
    folder = write_unchecked(tmp_path, WIDE)
    model = CausalLM(folder, device="cuda:0", memory_limit_bytes=256 << 20)
    assert len(model.generate([[1, 2, 3]], max_new_tokens=4, stop_ids=())[0]) == 4
