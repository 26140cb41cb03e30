"""ONNX Runtime's real CUDA provider over a CUDA runtime that does nothing: its launches.

``make cuda-provider`` runs this. Nothing is computed, so no test here checks numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import fake_cupy
from helpers.cuda_provider import (
    NewCalls,
    captured,
    check_every_node_on_gpu,
    kernels,
    watched_calls,
)
from helpers.tiny_bert import write_tiny_bert
from helpers.tiny_clip import MAX_TOKENS, random_frames, write_random_clip, write_tiny_export
from helpers.tiny_encoders import FAMILIES, write_tiny_encoder
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

from granalign_fast.bench.harness import random_tower
from granalign_fast.export.specs import LLM_PRECISIONS
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.graph_contract import VISION_GRAPH
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.runtime.cuda_graphs import GraphRun
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
    check_every_node_on_gpu(
        out / "embedding.onnx", lambda session: {"input_ids": np.array([[1, 2]])}
    )
    manifest = VisionLanguageModel(out).manifest
    count, shape = manifest.image_tokens, (2, manifest.image_tokens, manifest.hidden)
    dtype, width = manifest.cache_dtype, manifest.kv_heads * manifest.head_dim
    positions = np.tile(np.arange(count), (3, 2, 1))

    def growing(session: Session) -> dict[str, Any]:
        past = np.zeros((2, manifest.kv_heads, 0, manifest.head_dim), dtype)
        cache = {name: past for name in session.inputs if name.startswith("past")}
        mask = np.ones((2, count), np.int64)
        embeds = np.zeros(shape, dtype)
        return cache | {
            "inputs_embeds": embeds,
            "position_ids": positions,
            "attention_mask": mask,
        }

    def static(session: Session) -> dict[str, Any]:
        past = np.zeros((2, count + 4, width), dtype)
        cache = {name: past for name in session.inputs if name.startswith("past")}
        return cache | {
            "input_ids": np.zeros((2, count), np.int64),
            "position_ids": positions,
            "image_embeds": np.zeros(shape, dtype),
            "image_at": np.zeros(2, np.int64),
            "write_indices": np.zeros(2, np.int64),
            "cached_tokens": np.full(2, count),
            "last": np.zeros((2, 1, count), dtype),
        }

    check_every_node_on_gpu(out / "model.onnx", growing)
    check_every_node_on_gpu(out / "static.onnx", static)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_encoders(tmp_path: Path, precision: str, family: str) -> None:
    cache, source = tmp_path / "cache", write_tiny_encoder(tmp_path / "b", family)
    encoder = SentenceEncoder(source, precision=precision, cache_dir=cache)
    graph = encoder._session.path.with_name("model.onnx")
    check_every_node_on_gpu(graph, lambda session: {session.inputs[0]: np.ones((3, 5), np.int32)})


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


TOWER_INPUTS = {
    "image": {"frames": np.zeros((3, 37, 37, 3), np.uint8)},
    "text": {"input_ids": np.ones((3, 9), np.int32)},
}


# Launches outside the layers. Three of an image's turn its patches into numbers.
REST = {("clip", "image"): 10, ("clip", "text"): 12, ("siglip", "image"): 13, ("siglip", "text"): 6}


@pytest.mark.parametrize("tower", sorted(TOWER_INPUTS))
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_tower_is_one_launch(
    tmp_path: Path, new_calls: NewCalls, precision: str, family: str, tower: str
) -> None:
    """All nodes run on the GPU, none by cuDNN; an fp16 layer is four products and five kernels."""
    launches = {}
    inputs = TOWER_INPUTS[tower]
    for layers in (2, 3):
        folder = tmp_path / str(layers)
        write_random_clip(folder, family, precision=precision, layers=layers)
        (folder / "manifest.json").write_text(json.dumps({"kind": "clip"}))
        graph = folder / f"{tower}.onnx"
        check_every_node_on_gpu(graph, lambda session: inputs)
        session = open_session(graph, device="cuda")
        session(**inputs)
        new_calls()
        session(**inputs)
        launches[layers] = [line for line in captured(new_calls()) if line.startswith("launch")]
        session(**inputs)
        assert [line.split()[0] for line in kernels(new_calls())] == ["graph"]
        assert session.graphs_refused is None
    if precision == "fp16":
        # The split of query, key and value; attention; two norms; the activation.
        assert len(launches[3]) - len(launches[2]) == 5
        # Patches or words, positions, the pooled row, unit length.
        assert len(launches[2]) - 10 <= REST[family, tower]
        if tower == "image":
            # Cut the margin that belongs to no patch, transpose the patches, make levels floats.
            cut, transpose, convert = launches[3].pop(0), launches[3].pop(0), launches[3].pop(0)
            assert "Slice" in cut and "Transpose" in transpose and "DequantizeLinear" in convert
        pooling = family == "siglip" and tower == "image"
        assert sum("flash_fwd" in line for line in launches[3]) == 3 + pooling
        slow = ("softmax", "attention_kernel", "transpose")
        assert not [line for line in launches[3] if any(name in line.lower() for name in slow)]


def test_launches_of_an_encoder(tmp_path: Path, new_calls: NewCalls) -> None:
    """A layer is four products, one kernel for the scores, and one for each sum with its norm."""
    launches = []
    for layers in (1, 2):
        source = write_tiny_bert(tmp_path / f"tiny{layers}", num_hidden_layers=layers)
        encoder = SentenceEncoder(
            source, precision="fp16", device="cuda", cache_dir=tmp_path / "cache"
        )
        graph = onnx.load(encoder._session.path).graph
        products = [node for node in graph.node if node.op_type in ("MatMul", "Attention")]
        assert len(products) == 4 * layers + 1, "and one for pooling"
        for _ in range(2):
            encoder.encode_on(["a b c", "d"], ArrayDevice.of("cuda"))
        launches.append(captured(new_calls()))
    one, two = launches
    assert len(two) - len(one) <= 5 and len(one) <= 15
    efficient = [line for line in two if "attention_kernel" in line]
    assert len(efficient) == 2 and "Softmax" not in "".join(two)


@pytest.mark.parametrize(("family", "most"), [("mpnet", 5), ("modernbert", 9), ("xlm-roberta", 5)])
def test_launches_of_other_families(
    tmp_path: Path, new_calls: NewCalls, family: str, most: int
) -> None:
    """The mask of each kind of layer is made once, and attention keeps its fused kernel."""
    launches = []
    for layers in (2, 3):
        source = write_tiny_encoder(tmp_path / str(layers), family, num_hidden_layers=layers)
        encoder = SentenceEncoder(
            source, precision="fp16", device="cuda", cache_dir=tmp_path / "cache"
        )
        for _ in range(2):
            encoder.encode_on(["a b c", "d"], ArrayDevice.of("cuda"))
        launches.append(captured(new_calls()))
    less, more = launches
    assert 0 < len(more) - len(less) <= most
    efficient = [line for line in more if "attention_kernel" in line]
    assert len(efficient) == 3 and "Softmax" not in "".join(more)


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_encoder_is_one_launch(
    tmp_path: Path, new_calls: NewCalls, precision: str, family: str
) -> None:
    source = write_tiny_encoder(tmp_path / "tiny", family)
    encoder = SentenceEncoder(
        source, precision=precision, device="cuda", cache_dir=tmp_path / "cache"
    )
    texts, device = ["a b c", "d e f", "a c e"], ArrayDevice.of("cuda")
    if precision == "fp16":
        texts += ["a", "", "a b c d e f g", "a b"]  # padded to one length
    run = encoder._session._run
    for _ in range(2):
        encoder.encode_on(texts, device)
    assert isinstance(run, GraphRun)
    assert captured(new_calls()) and run.refused is None and run.captured == 1
    encoder.encode_on(texts, device)
    assert [line.split()[0] for line in kernels(new_calls())] == ["graph"]


def test_frames_are_patches_in_two_launches(tmp_path: Path, new_calls: NewCalls) -> None:
    """The first moves 16 bytes at a time, the second makes bytes float16.

    Positions and norms come after the product.
    """
    shape = random_tower.TOWERS["clip-mini"]
    path = random_tower.write_tower(shape, random_tower.tower_weights(shape), tmp_path, half=True)
    session = open_session(path, device="cuda")
    frames = np.zeros((3, shape.side, shape.side, 3), np.uint8)
    for _ in range(2):
        session(frames=frames)
    first, second, third, *_ = [line for line in captured(new_calls()) if line.startswith("launch")]
    assert "ParallelizeMultipleElementsPerThreadInInnermostDimILi1E" in first
    assert "DequantizeLinearKernel" in second and "Ih6__half" in second
    assert "Pad" in third


def test_frames_come_as_bytes(tmp_path: Path, new_calls: NewCalls) -> None:
    """A batch goes to the GPU once, and nothing as large comes back."""
    folder = write_tiny_export(tmp_path / "tiny", max_tokens=MAX_TOKENS)
    encoder = FrameEncoder(folder, device="cuda")
    for _ in range(3):
        fake_cupy.UPLOADED.clear()
        new_calls()
        assert encoder.encode_frames(random_frames([(20, 30)] * 64)).shape[0] == 64
    assert [line.split()[0] for line in kernels(new_calls())] == ["graph"]
    assert not fake_cupy.UPLOADED, "the graph's input must be filled directly"


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
