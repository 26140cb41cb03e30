"""ONNX Runtime's CUDA provider on sentence and frame encoders, over a runtime that does nothing.

``make cuda-provider`` runs this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

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
from helpers.tiny_clip import (
    MAX_TOKENS,
    SIGLIP2_WIDTHS,
    random_frames,
    write_random_clip,
    write_tiny_export,
)
from helpers.tiny_decoder import CONFIGURATIONS, write_bare_decoder
from helpers.tiny_encoders import FAMILIES, write_tiny_encoder

from granalign_fast.bench.harness import random_tower
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.runtime.cuda_graphs import GraphRun

pytestmark = pytest.mark.needs_cuda_provider

ENCODERS = [*FAMILIES, *sorted(CONFIGURATIONS)]
"""Sentence encoders: the families of `tiny_encoders`, and the decoders of `tiny_decoder`."""


def write_encoder(folder: Path, family: str) -> Path:
    """Write the source of one of `ENCODERS`, with random weights; return the folder."""
    if family in CONFIGURATIONS:
        return write_bare_decoder(folder, family)
    return write_tiny_encoder(folder, family)


@pytest.fixture(autouse=True)
def new_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewCalls]:
    yield from watched_calls(monkeypatch)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_encoders(tmp_path: Path, precision: str, family: str) -> None:
    cache, source = tmp_path / "cache", write_encoder(tmp_path / "b", family)
    encoder = SentenceEncoder(source, precision=precision, cache_dir=cache)
    graph = encoder._session.path.with_name("model.onnx")
    check_every_node_on_gpu(graph, lambda session: {session.inputs[0]: np.ones((3, 5), np.int32)})


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


@pytest.mark.parametrize("size", sorted(SIGLIP2_WIDTHS))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_towers_of_siglip2(tmp_path: Path, new_calls: NewCalls, precision: str, size: str) -> None:
    """The published forms: heads of 72 values, odd perceptrons, a text tower that widens."""
    widths = SIGLIP2_WIDTHS[size]
    folder = tmp_path / size
    write_random_clip(folder, "siglip", precision=precision, widths=widths)
    (folder / "manifest.json").write_text(json.dumps({"kind": "clip"}))
    for tower, inputs in TOWER_INPUTS.items():
        check_every_node_on_gpu(folder / f"{tower}.onnx", lambda _, inputs=inputs: inputs)
        session = open_session(folder / f"{tower}.onnx", device="cuda")
        for _ in range(2):
            session(**inputs)
        lines = captured(new_calls())
        if precision == "fp16":
            pooling = tower == "image"
            assert sum("flash_fwd" in line for line in lines) == 2 + pooling
            assert "Softmax" not in "".join(lines)
        session(**inputs)
        assert [line.split()[0] for line in kernels(new_calls())] == ["graph"]
        assert session.graphs_refused is None


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


def launches_of(
    write: Callable[..., Path], name: str, folder: Path, new_calls: NewCalls
) -> list[list[str]]:
    """The launches of a captured run of an encoder of two layers, and of one of three."""
    launches = []
    for layers in (2, 3):
        source = write(folder / str(layers), name, num_hidden_layers=layers)
        encoder = SentenceEncoder(
            source, precision="fp16", device="cuda", cache_dir=folder / "cache"
        )
        for _ in range(2):
            encoder.encode_on(["a b c", "d"], ArrayDevice.of("cuda"))
        launches.append(captured(new_calls()))
    return launches


@pytest.mark.parametrize(("family", "most"), [("mpnet", 5), ("modernbert", 9), ("xlm-roberta", 5)])
def test_launches_of_other_families(
    tmp_path: Path, new_calls: NewCalls, family: str, most: int
) -> None:
    """The mask of each kind of layer is made once, and attention keeps its fused kernel."""
    less, more = launches_of(write_tiny_encoder, family, tmp_path, new_calls)
    assert 0 < len(more) - len(less) <= most
    efficient = [line for line in more if "attention_kernel" in line]
    assert len(efficient) == 3 and "Softmax" not in "".join(more)


@pytest.mark.parametrize(
    ("name", "most", "flash"),
    [
        ("qwen3", 16, 3),
        # A window needs a mask, which the flash kernel does not take. The first layer has none.
        ("qwen3-window", 19, 1),
        # Two norms more, and the perceptron's gate in float32; padding needs a mask.
        ("gemma3", 24, 0),
    ],
)
def test_launches_of_decoders(
    tmp_path: Path, new_calls: NewCalls, name: str, most: int, flash: int
) -> None:
    """Attention is one fused kernel: flash where there is no mask."""
    less, more = launches_of(write_bare_decoder, name, tmp_path, new_calls)
    assert 0 < len(more) - len(less) <= most
    assert len([line for line in more if "flash_fwd" in line]) == flash
    assert len([line for line in more if "attention_kernel" in line]) == 3 - flash
    assert "Softmax" not in "".join(more)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_encoder_is_one_launch(
    tmp_path: Path, new_calls: NewCalls, precision: str, family: str
) -> None:
    source = write_encoder(tmp_path / "tiny", family)
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
