"""The vision tower of SmolVLM2 against transformers: frames, pixels, and what must not be equal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llm import one_thread
from helpers.tiny_smolvlm import (
    CONFIGS,
    frames_of,
    shift_positions,
    side_of,
    tokens_of,
    transpose_tokens,
    write_tiny_smolvlm,
)

from granalign_fast.export.checks.transformers_calls import load_image_processor
from granalign_fast.export.checks.vlm_peers import correct_positions
from granalign_fast.export.families import read_vlm
from granalign_fast.export.graphs.smolvlm_tower import SmolVlmVisionGraph
from granalign_fast.export.graphs.tensor_file import TensorFile
from granalign_fast.export.specs import VLM_PRECISIONS
from granalign_fast.models.exported_graph import open_session

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


@pytest.fixture(scope="module")
def model_of(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return a function from the name of a configuration to its folder and transformers' model."""
    from transformers import SmolVLMForConditionalGeneration

    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def get(name: str) -> tuple[Path, Any]:
        folder = write_tiny_smolvlm(root / name, CONFIGS[name])
        return folder, SmolVLMForConditionalGeneration.from_pretrained(folder).eval().model

    return get


def graphs(source: Path, out: Path, precision: str) -> list[Any]:
    """Write the graphs of frames and of pixels, and open them."""
    read, names = read_vlm(source), ("vision.onnx", "patches.onnx")
    with (out / "vision.onnx_data").open("wb") as file:
        tensors = TensorFile(file, "vision.onnx_data")
        for name in names:
            graph = SmolVlmVisionGraph(read, tensors, precision=precision, graph=name)
            (out / name).write_bytes(graph.model().SerializeToString())
    return [open_session(out / name) for name in names]


def embedded(torch: Any, model: Any, pixels: Any) -> Any:
    with torch.inference_mode():
        return model.connector(model.vision_model(pixel_values=pixels).last_hidden_state).numpy()


@pytest.mark.parametrize("precision", sorted(VLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_frames_and_pixels_are_those_of_transformers(
    torch: Any, model_of: Callable[[str], Any], tmp_path: Path, name: str, precision: str
) -> None:
    import transformers

    source, model = model_of(name)
    if transformers.__version__ < "5" and not model.vision_model.embeddings._forward_hooks:
        correct_positions(model.vision_model)
    frames = frames_of(6, side_of(CONFIGS[name]))
    processor = load_image_processor(source)
    switches = {"do_resize": False, "do_image_splitting": False}
    images = processor([[frame] for frame in frames], return_tensors="pt", **switches)
    pixels = images["pixel_values"][:, 0]
    expected = embedded(torch, model, pixels)
    assert expected.shape[1] == tokens_of(CONFIGS[name])
    assert np.abs(expected[0] - expected[1]).max() > 0.5, "frames must differ to mean anything"
    by_frames, by_pixels = graphs(source, tmp_path, precision)
    # fp32: other orders of sums; fp16: 11 bits; int4: 8 bits of the weights and of activations.
    atol = {"fp32": 1e-5, "fp16": 0.01, "int4": 0.1}[precision]
    for batch in (slice(0, 6), slice(4, 5)):
        for got in (
            by_frames(frames=frames[batch]),
            by_pixels(pixel_values=pixels[batch].numpy()),
        ):
            np.testing.assert_allclose(got["image_embeds"], expected[batch], atol=atol, rtol=0)


def test_version_5_has_the_right_positions_by_itself(
    torch: Any, model_of: Callable[[str], Any]
) -> None:
    import transformers
    from transformers import SmolVLMForConditionalGeneration

    source = model_of("untied-gqa-4")[0]
    fresh = SmolVLMForConditionalGeneration.from_pretrained(source).eval().model
    pixels = torch.randn(2, 3, 32, 32)
    before = embedded(torch, fresh, pixels)
    correct_positions(fresh.vision_model)
    difference = np.abs(embedded(torch, fresh, pixels) - before).max()
    if transformers.__version__ < "5":
        assert difference > 0.1, "version 4.57 must need the correction, otherwise delete it"
    else:
        assert difference == 0


@pytest.mark.parametrize("spoil", [transpose_tokens, shift_positions])
def test_a_wrong_tower_gives_other_embeddings(
    torch: Any,
    model_of: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
) -> None:
    source, _ = model_of("tied-gqa-2")
    frames = frames_of(2, 30)
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    right = graphs(source, tmp_path / "right", "fp32")[0](frames=frames)["image_embeds"]
    spoil(monkeypatch)
    wrong = graphs(source, tmp_path / "wrong", "fp32")[0](frames=frames)["image_embeds"]
    assert np.abs(right - wrong).max() > 0.1
