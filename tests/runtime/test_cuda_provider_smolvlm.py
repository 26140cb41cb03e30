"""ONNX Runtime's CUDA provider on exports of SmolVLM2, over a runtime that does nothing.

``make cuda-provider`` runs this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.cuda_provider import (
    NewCalls,
    captured,
    check_decoders_on_gpu,
    check_every_node_on_gpu,
    watched_calls,
)
from helpers.tiny_llm import prompts_of
from helpers.tiny_smolvlm import CONFIGS, IMAGE, frames_of, side_of, write_unchecked_smolvlm

from granalign_fast.export.specs import LLM_PRECISIONS
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.graph_contract import PATCHES_GRAPH, VISION_GRAPH
from granalign_fast.models.vision_language_model import VisionLanguageModel

pytestmark = pytest.mark.needs_cuda_provider


@pytest.fixture(autouse=True)
def new_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewCalls]:
    yield from watched_calls(monkeypatch)


@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_smolvlm(tmp_path: Path, name: str, precision: str) -> None:
    """The tower of frames, that of the processor's pixels, and both decoders."""
    side = side_of(CONFIGS[name])
    out = write_unchecked_smolvlm(tmp_path, CONFIGS[name], precision=precision)
    pixels = np.zeros((3, 3, side, side), np.float32)
    check_every_node_on_gpu(out / VISION_GRAPH, lambda _: {"frames": frames_of(3, side)})
    check_every_node_on_gpu(out / PATCHES_GRAPH, lambda _: {"pixel_values": pixels})
    check_decoders_on_gpu(out)


@pytest.mark.parametrize(("frames", "size"), [(1, None), (4, None), (1, (64, 96))])
def test_smolvlm_steps_are_one_launch(
    tmp_path: Path, new_calls: NewCalls, frames: int, size: tuple[int, int] | None
) -> None:
    """Captions of frames, of clips and of frames in tiles: images with text between them."""
    folder = write_unchecked_smolvlm(
        tmp_path, CONFIGS["untied-gqa-4"], precision="fp16", image_size=size
    )
    model = VisionLanguageModel(folder, device="cuda")
    side = side_of(CONFIGS["untied-gqa-4"])
    clips = frames_of(3 * frames, side).reshape(3, frames, side, side, 3)
    prefix = model.prefill_clips(clips, [5, *[IMAGE, 10] * frames, 7])
    for _ in range(2):
        model.generate(prompts_of(4, 9, 2), prefix=prefix, max_new_tokens=5, stop_ids=())
    lines = new_calls()
    assert captured(lines) and model.captured_graphs == 1 and model.graphs_refused is None
    graphs = [line for line in lines if line.startswith("graph on")]
    assert graphs[-5:] == [f"graph on stream  {model.device.stream.ptr}"] * 5


def test_launches_of_the_tower_of_smolvlm(tmp_path: Path, new_calls: NewCalls) -> None:
    """A layer is four products and five kernels; attention is flash; one graph holds the tower."""
    launches = []
    for depth in (2, 3):
        config = copy.deepcopy(CONFIGS["untied-gqa-4"])
        config["vision_config"]["num_hidden_layers"] = depth
        folder = tmp_path / str(depth)
        folder.mkdir()
        out = write_unchecked_smolvlm(folder, config, precision="fp16")
        session = open_session(out / VISION_GRAPH, device="cuda")
        for _ in range(2):
            session(frames=frames_of(1, side_of(config)))
        assert session.captured_graphs == 1 and session.graphs_refused is None
        launches.append([line for line in captured(new_calls()) if line.startswith("launch")])
    less, more = launches
    assert len(more) - len(less) == 5
    assert len([line for line in more if "flash_fwd" in line]) == 3
    assert "Softmax" not in "".join(more)
