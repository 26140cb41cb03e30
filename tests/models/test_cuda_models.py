"""Models on a real GPU: every node on it, and the results of the CPU."""

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
"""Of the largest number: how far a GPU may be from the CPU, whose sums go in another order."""


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """A GPU, and an ONNX Runtime that can use it."""
    if missing := cuda_missing():
        pytest.skip(missing)
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("no CUDA in ONNX Runtime: install the extra [cuda]")


def near(found: Any, expected: np.ndarray[Any, Any], precision: str) -> None:
    error = np.abs(found.astype(np.float32) - expected.astype(np.float32)).max()
    assert error <= SHARE[precision] * np.abs(expected).max(), error


@pytest.mark.parametrize("past", [0, 300])
@pytest.mark.parametrize("graph", ["model.onnx", "static.onnx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_prefix_extension(tmp_path: Path, graph: str, precision: str, past: int) -> None:
    """Many tokens behind many kept ones, in a batch: no node on the CPU, and the CPU's result."""
    folder = write_unchecked(tmp_path, WIDE, precision=precision)
    there = open_session(folder / graph, device="cuda", profile=True)
    dtype = np.float16 if precision == "fp16" else np.float32
    arrays = extension_of(there, ROWS, past, NEW, size=128, dtype=dtype)
    found, expected = there(**arrays), open_session(folder / graph)(**arrays)
    for name, array in expected.items():
        near(found[name], array, precision)
    nodes = there.nodes()
    assert strays(nodes, CUDA) == []
    assert sum(node.operator == "Attention" for node in nodes) == WIDE["num_hidden_layers"]


@pytest.mark.parametrize("static", [True, False])
def test_generation_says_what_it_says_on_the_cpu(tmp_path: Path, static: bool) -> None:
    folder = write_unchecked(tmp_path, WIDE)
    there, here = CausalLM(folder, device="cuda", static_cache=static), CausalLM(folder)
    start, *ends = prompts_of(23, *RAGGED)
    answers = [
        model.generate(ends, prefix=model.prefill(start), max_new_tokens=40)
        for model in (there, here)
    ]
    assert answers[0] == answers[1]
    before, after = (there.generate(ends, max_new_tokens=20, stop_ids=()) for _ in range(2))
    assert before == after == here.generate(ends, max_new_tokens=20, stop_ids=())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_is_a_graph(tmp_path: Path, precision: str) -> None:
    """From a shape's second batch on, and with what another batch has left in the cache."""
    folder = write_unchecked(tmp_path, WIDE, precision=precision)
    model = CausalLM(folder, device="cuda")
    batches = [prompts_of(*RAGGED), prompts_of(*reversed(RAGGED))] * 3
    plain = CausalLM(folder, device="cuda", static_cache=False)
    for prompts in batches:
        (found, expected) = (
            one.generate(prompts, max_new_tokens=30, stop_ids=()) for one in (model, plain)
        )
        if precision == "fp32":
            assert found == expected
        # The nearest two tokens may swap in fp16: each is judged by a pass without kept steps.
        judge_tokens("a step that is a graph", plain, prompts, found)
    assert model.graphs_refused is None and model.captured_graphs == 1


def test_captions_are_those_of_the_cpu(tmp_path: Path) -> None:
    folder = write_unchecked_vlm(tmp_path)
    frames = FrameSet.of(frames_of(5))
    on_gpu = MemoryTier(1 << 17, name="device", move=ArrayDevice.of("cuda").put)
    kept = PrefixCache([on_gpu, MemoryTier(1 << 20)])
    there, here = (
        VlmCaptioner(VisionLanguageModel(folder, device=device), cache=cache, rows=2)
        for device, cache in (("cuda", kept), ("cpu", None))
    )
    for captioner in (there, here):
        captioner.prefill(frames)
    assert there.agnostic(frames) == here.agnostic(frames)
    assert there.aware(frames, ["dog"]) == here.aware(frames, ["dog"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_encoder_runs_as_graphs(tmp_path: Path, precision: str) -> None:
    source = write_tiny_bert(tmp_path / "tiny")
    there, here = (
        SentenceEncoder(source, precision=precision, device=device, cache_dir=tmp_path / "cache")
        for device in ("cuda", "cpu")
    )
    texts = ["a b c", "d e f", "a", "b c d e f"] * 9
    expected = here.encode(texts)
    for _ in range(3):
        near(there.encode(texts), expected, precision)
    place = ArrayDevice.of("cuda")
    near(place.to_host(there.encode_on(texts, place)), expected, precision)
    run = there._session._run
    assert isinstance(run, GraphRun) and run.refused is None and run.captured


def test_a_memory_limit_is_kept(tmp_path: Path) -> None:
    folder = write_unchecked(tmp_path, WIDE)
    model = CausalLM(folder, device="cuda:0", memory_limit_bytes=256 << 20)
    assert len(model.generate([[1, 2, 3]], max_new_tokens=4, stop_ids=())[0]) == 4
