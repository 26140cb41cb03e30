"""ONNX Runtime's CUDA provider on exports of Qwen3-VL, over a runtime that does nothing.

``make cuda-provider`` runs this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.cuda_provider import (
    NewCalls,
    captured,
    check_decoders_on_gpu,
    check_every_node_on_gpu,
    watched_calls,
)
from helpers.tiny_llm import prompts_of
from helpers.tiny_qwen3_vl import CONFIGS, IMAGE_SIZE, write_unchecked_qwen3_vl
from helpers.tiny_vlm import IMAGE, VIDEO, VISION_END, VISION_START, frames_of

from granalign_fast.export.specs import LLM_PRECISIONS
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.graph_contract import VISION_GRAPH
from granalign_fast.models.vision_language_model import VisionLanguageModel

pytestmark = pytest.mark.needs_cuda_provider


@pytest.fixture(autouse=True)
def new_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewCalls]:
    yield from watched_calls(monkeypatch)


@pytest.mark.parametrize("precision", sorted(LLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_qwen3_vl(tmp_path: Path, name: str, precision: str) -> None:
    """Towers of frames and clips, and both decoders, which add features behind their layers."""
    out = write_unchecked_qwen3_vl(tmp_path, CONFIGS[name], precision=precision)
    frames = frames_of(4, IMAGE_SIZE)
    clips = frames.reshape(2, 2, *frames.shape[1:])
    check_every_node_on_gpu(out / "vision.onnx", lambda session: {"frames": frames})
    check_every_node_on_gpu(out / "clips.onnx", lambda session: {"frames": clips})
    check_decoders_on_gpu(out)


@pytest.mark.parametrize("frames", [1, 4])
def test_qwen3_vl_steps_are_one_launch(tmp_path: Path, new_calls: NewCalls, frames: int) -> None:
    folder = write_unchecked_qwen3_vl(tmp_path, CONFIGS["gqa-tied"], precision="fp16")
    model = VisionLanguageModel(folder, device="cuda")
    clips = frames_of(3 * frames, IMAGE_SIZE).reshape(3, frames, *IMAGE_SIZE, 3)
    seen = IMAGE if frames == 1 else VIDEO
    prefix = model.prefill_clips(clips, [5, VISION_START, seen, VISION_END], seconds=0.5)
    for _ in range(2):
        model.generate(prompts_of(4, 9, 2), prefix=prefix, max_new_tokens=5, stop_ids=())
    lines = new_calls()
    assert captured(lines) and model.graphs_refused is None
    graphs = [line for line in lines if line.startswith("graph on")]
    # The tower's graphs come before those of the steps.
    assert graphs[-5:] == [f"graph on stream  {model.device.stream.ptr}"] * 5


def test_launches_of_the_tower_of_qwen3_vl(tmp_path: Path, new_calls: NewCalls) -> None:
    """Limits the launches of a layer; attention is flash, and one CUDA graph holds the tower."""
    launches = []
    for depth in (2, 3):
        config = copy.deepcopy(CONFIGS["gqa-tied"])
        config["vision_config"] |= {"depth": depth, "deepstack_visual_indexes": [0]}
        folder = tmp_path / str(depth)
        folder.mkdir()
        out = write_unchecked_qwen3_vl(folder, config, precision="fp16")
        session = open_session(out / VISION_GRAPH, device="cuda")
        for _ in range(2):
            session(frames=frames_of(1, IMAGE_SIZE))
        assert session.captured_graphs == 1
        launches.append(captured(new_calls()))
    less, more = launches
    assert 0 < len(more) - len(less) <= 8
    flash = [line for line in more if "flash_fwd" in line]
    assert len(flash) == 3 and "Softmax" not in "".join(more)
