"""ONNX Runtime's real CUDA provider over a CUDA runtime that does nothing: its launches.

``make cuda-provider`` runs this. Nothing is computed, so no test here checks numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cuda_provider import (
    NewCalls,
    captured,
    check_decoders_on_gpu,
    check_every_node_on_gpu,
    watched_calls,
)
from helpers.tiny_bert import write_tiny_bert
from helpers.tiny_llm import CONFIGS, LLAMA, RAGGED, extension_of, prompts_of, write_unchecked
from helpers.tiny_vlm import CONFIGS as VLM_CONFIGS
from helpers.tiny_vlm import (
    IMAGE,
    IMAGE_SIZE,
    PUBLISHED,
    VISION,
    frames_of,
    write_unchecked_vlm,
)

from granalign_fast.export.specs import LLM_PRECISIONS
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.graph_contract import VISION_GRAPH
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.runtime.session import Session

pytestmark = pytest.mark.needs_cuda_provider
# Heads as wide as those of Llama 3 8B and Qwen2.5-VL 7B, so that the same kernels run.
WIDE = LLAMA | {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def new_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewCalls]:
    yield from watched_calls(monkeypatch)


@pytest.mark.parametrize("graph", ["model.onnx", "static.onnx"])
@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_language_models(tmp_path: Path, name: str, precision: str, graph: str) -> None:
    config = CONFIGS[name]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    dtype = np.float16 if precision == "fp16" else np.float32

    def inputs(session: Session) -> dict[str, Any]:
        heads = config["num_key_value_heads"]
        return extension_of(session, 7, 20, 4, heads=heads, size=size, dtype=dtype)

    check_every_node_on_gpu(write_unchecked(tmp_path, config, precision=precision) / graph, inputs)


@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(VLM_CONFIGS))
def test_vision_language_models(tmp_path: Path, name: str, precision: str) -> None:
    out = write_unchecked_vlm(tmp_path, VLM_CONFIGS[name], precision=precision)
    check_every_node_on_gpu(out / "vision.onnx", lambda session: {"frames": frames_of(3)})
    check_decoders_on_gpu(out)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_step_is_one_launch(tmp_path: Path, new_calls: NewCalls, precision: str) -> None:
    """From a shape's second batch on, a step is one graph; no step involves the host."""
    model = CausalLM(write_unchecked(tmp_path, WIDE, precision=precision), device="cuda")
    prefix = model.prefill(prompts_of(30)[0])
    new_calls()

    def steps(new: int) -> list[str]:
        model.generate(prompts_of(*RAGGED), prefix=prefix, max_new_tokens=new, stop_ids=())
        return new_calls()

    layers = WIDE["num_hidden_layers"]
    steps(2)
    launches = captured(steps(2))
    assert model.captured_graphs == 1 and model.graphs_refused is None
    assert 10 * layers < len(launches) < 20 * layers
    later = steps(9)
    graph = f"graph on stream  {model.device.stream.ptr}"
    assert later[later.index(graph) :] == [graph] * 8, "nothing may come between the graphs"
    forbidden = ("wait", "allocate", "free", "copy", "host function")
    assert not [line for line in later if line.startswith(forbidden) or " host" in line]


@pytest.mark.parametrize("prefix_tokens", [0, 30])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_attention_is_flash(
    tmp_path: Path, new_calls: NewCalls, precision: str, prefix_tokens: int
) -> None:
    """In fp16 every layer uses it: for ragged prompts, after a prefix, and in a decode step."""
    model = CausalLM(write_unchecked(tmp_path, WIDE, precision=precision), device="cuda")
    layers, prefix = WIDE["num_hidden_layers"], None
    if prefix_tokens:
        new_calls()
        prefix = model.prefill(prompts_of(prefix_tokens)[0])
    else:
        model.logits(prompts_of(3))
    new_calls()
    model.logits(prompts_of(*RAGGED), prefix=prefix)
    extension = new_calls()
    model.generate(prompts_of(*RAGGED), prefix=prefix, max_new_tokens=2, stop_ids=())
    both = new_calls()
    forward = re.compile(r"flash_fwd_(?:splitkv_)?kernel")
    for lines, passes in ((extension, 1), (both, 2)):
        flash = [line for line in lines if forward.search(line)]
        other = [line for line in lines if "attention_kernel" in line or "Softmax" in line]
        if precision == "fp16":
            assert len(flash) == passes * layers and not other
        else:
            assert not flash and other


def test_caption_steps_are_one_launch(tmp_path: Path, new_calls: NewCalls) -> None:
    folder = write_unchecked_vlm(tmp_path, VLM_CONFIGS["published-gqa-tied"], precision="fp16")
    model = VisionLanguageModel(folder, device="cuda")
    prefix = model.prefill_frames(frames_of(3), [5, 6, IMAGE, 7])
    for _ in range(2):
        model.generate(prompts_of(4, 9, 2), prefix=prefix, max_new_tokens=5, stop_ids=())
    lines = new_calls()
    assert captured(lines) and model.captured_graphs == 1 and model.graphs_refused is None
    graphs = [line for line in lines if line.startswith("graph on")]
    # ONNX Runtime also launches the graph once when it captures it.
    assert graphs == [f"graph on stream  {model.device.stream.ptr}"] * 5


# In the first case, two windows of unequal size are cut out of query, key and value, and joined.
@pytest.mark.parametrize(("size", "most"), [((112, 224), 11), (IMAGE_SIZE, 19)])
def test_launches_of_a_vision_tower(
    tmp_path: Path, new_calls: NewCalls, size: tuple[int, int], most: int
) -> None:
    """Limits the launches of a layer with windows; the CUDA graph must not involve the host."""
    launches = []
    for depth in (2, 3):
        vision = VISION | {"depth": depth, "fullatt_block_indexes": [0]}
        config = PUBLISHED | {"vision_config": vision}
        folder = tmp_path / str(depth)
        folder.mkdir()
        out = write_unchecked_vlm(folder, config, precision="fp16", image_size=size)
        session = open_session(out / VISION_GRAPH, device="cuda")
        for _ in range(2):
            session(frames=frames_of(1, size))
        assert session.captured_graphs == 1
        launches.append(captured(new_calls()))
    less, more = launches
    assert 0 < len(more) - len(less) <= most
    flash = [line for line in more if "flash_fwd" in line]
    assert len(flash) == (3 if most == 11 else 5) and "Softmax" not in "".join(more)


def test_models_that_cannot_be_captured_run_plainly(
    tmp_path: Path, new_calls: NewCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed capture the session is loaded again, without graphs."""
    monkeypatch.setenv("FAKE_CUDA_NO_CAPTURE", "1")
    model = CausalLM(write_unchecked(tmp_path / "llm", WIDE, precision="fp16"), device="cuda")
    for _ in range(3):
        model.generate(prompts_of(4, 9), max_new_tokens=5, stop_ids=())
    assert "cannot be captured" in str(model.graphs_refused) and model.captured_graphs == 0
    encoder = SentenceEncoder(
        write_tiny_bert(tmp_path / "bert"), device="cuda", cache_dir=tmp_path / "cache"
    )
    for _ in range(3):
        assert encoder.encode_on(["a b c", "d e f"], ArrayDevice.of("cuda")).shape[0] == 2
    assert "cannot be captured" in str(encoder._session.graphs_refused)
    assert not [line for line in new_calls() if line.startswith(("graph", "captured"))]
