"""CLIP's and SigLIP's towers as graphs, against float64 NumPy; no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.reference_clip import embed_images, embed_texts
from helpers.tiny_clip import LEVELS, MAX_TOKENS, WORDS, random_clip, write_random_clip
from safetensors.numpy import save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.graphs import clip_layers
from granalign_fast.export.graphs.clip_shapes import CENTRE, ImageShape, Levels
from granalign_fast.export.graphs.clip_towers import write_towers
from granalign_fast.export.sources.checkpoint import Checkpoint, MemoryTensors
from granalign_fast.models.exported_graph import open_session
from granalign_fast.runtime.standard_operators import MICROSOFT, standardise

FAMILIES = ["clip", "siglip"]
# Of embeddings; 1.4e-7 and 3.1e-4 measured. An export is refused at ten and five times as much.
TOLERANCE = {"fp32": 1e-6, "fp16": 1e-3}


def frames_of(count: int) -> np.ndarray:
    """Return different frames of noise over colours, with all values of bytes."""
    rng = np.random.default_rng(count)
    colours = rng.integers(0, 128, (count, 1, 1, 3))
    return (colours + rng.integers(0, 128, (count, 37, 37, 3))).astype(np.uint8)


def pixels_of(frames: np.ndarray, levels: Levels = LEVELS) -> np.ndarray:
    """Compute the processors' pixels of frames in float64: (frames, 3, height, width)."""
    pixels = (frames.astype(np.float64) * levels.rescale - levels.mean) / levels.std
    return pixels.transpose(0, 3, 1, 2)


def ids_of(count: int, length: int) -> np.ndarray:
    """Return token ids with an end of text at their end and nowhere else."""
    ids = np.random.default_rng(length).integers(0, WORDS - 1, (count, length), np.int32)
    ids[:, -1] = WORDS - 1
    return ids


def run(path: Path, **arrays: Any) -> np.ndarray:
    return open_session(path)(**arrays)["embeddings"]


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_in_8_bits(tmp_path: Path, family: str) -> None:
    """Weights and table have 8 bits in a file of their own; 0.9997 of cosine measured."""
    folder = write_random_clip(tmp_path / "towers", family, precision="int8")
    image, text, weights = random_clip(family)
    frames, ids = frames_of(5), ids_of(4, MAX_TOKENS)
    for name, inputs, expected in (
        ("image", {"frames": frames}, embed_images(image, weights, family, pixels_of(frames))),
        ("text", {"input_ids": ids}, embed_texts(text, weights, family, ids)),
    ):
        got = run(folder / f"{name}.onnx", **inputs)
        assert (got * expected).sum(axis=1).min() > 0.9995
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        kinds = {node.op_type for node in graph.node}
        assert "MatMulNBits" in kinds and ("GatherBlockQuantized" in kinds) == (name == "text")
        # Of float32 there is the product of patches, and what is no matrix.
        large = [t.name for t in graph.initializer if t.data_type == 1 and np.prod(t.dims) > 4000]
        assert all("patch" in name or "position" in name or "scales" in name for name in large)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_towers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    precision: str,
    separate: bool,
) -> None:
    """Query, key and value by one product or by three; inputs of several sizes."""
    if separate:
        monkeypatch.setattr(clip_layers, "_SEPARATE_QKV", 0)
    folder = write_random_clip(tmp_path / "towers", family, precision=precision)
    image, text, weights = random_clip(family)
    for count in (1, 5):
        frames = frames_of(count)
        expected = embed_images(image, weights, family, pixels_of(frames))
        got = run(folder / "image.onnx", frames=frames)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, 0, TOLERANCE[precision])
    assert (expected @ expected.T)[0, 1:].max() < 0.995
    for length in (1, 5, MAX_TOKENS):
        ids = ids_of(4, length)
        expected = embed_texts(text, weights, family, ids)
        np.testing.assert_allclose(
            run(folder / "text.onnx", input_ids=ids), expected, 0, TOLERANCE[precision]
        )
    assert (expected @ expected.T)[0, 1:].max() < 0.995
    splits = sum(n.op_type == "Split" for n in onnx.load(folder / "image.onnx").graph.node)
    assert bool(splits) != separate


@pytest.mark.parametrize("end", [WORDS - 1, 7, 2])
def test_texts_are_pooled_at_their_first_end(tmp_path: Path, end: int) -> None:
    """A text without an end is pooled at its first token; end 2 stands for the highest id."""
    folder = write_random_clip(tmp_path / "towers", "clip", precision="fp32", end=end)
    _, text, weights = random_clip("clip", end=end)
    high = WORDS - 1 if end == 2 else end
    texts = [[3, high, 5, high, 6], [high, 1, 2, 3, 4], [3, 5, 6, 8, high], [3, 1, 6, 3, 1]]
    ids = np.array([*texts, [high] * 5], np.int32)
    expected = embed_texts(text, weights, "clip", ids)
    got = run(folder / "text.onnx", input_ids=ids)
    np.testing.assert_allclose(got, expected, 0, 1e-5)
    # Attention is causal: what follows the end changes nothing.
    changed = ids.copy()
    changed[0, 2:] = 9
    np.testing.assert_allclose(run(folder / "text.onnx", input_ids=changed)[0], got[0], 0, 1e-6)
    changed[0, 0] = 9
    assert abs(run(folder / "text.onnx", input_ids=changed)[0] - got[0]).max() > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_standard_operators_all_is_the_same(tmp_path: Path, family: str, precision: str) -> None:
    folder = write_random_clip(tmp_path / "towers", family, precision=precision)
    inputs: dict[str, Any] = {
        "image.onnx": {"frames": frames_of(3)},
        "text.onnx": {"input_ids": ids_of(3, 7)},
    }
    for name, arrays in inputs.items():
        model = onnx.load(folder / name)
        own = {node.op_type for node in model.graph.node if node.domain == MICROSOFT}
        assert ("SkipLayerNormalization" in own) == (precision == "fp16")
        standardise(model)
        assert {node.domain for node in model.graph.node} == {""}
        assert [entry.domain for entry in model.opset_import] == [""]
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, tmp_path / name)
        got, expected = run(tmp_path / name, **arrays), run(folder / name, **arrays)
        np.testing.assert_allclose(got, expected, 0, 1e-6 if precision == "fp32" else 2e-3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_other_activations(tmp_path: Path, activation: str) -> None:
    image, _, weights = random_clip("clip")
    image = replace(image, layers=replace(image.layers, activation=activation))
    write_towers(tmp_path, "clip", [image], MemoryTensors(weights), "fp32")
    same = {"gelu_new": "gelu_pytorch_tanh"}.get(activation, activation)
    expected = embed_images(
        replace(image, layers=replace(image.layers, activation=same)),
        *(weights, "clip", pixels_of(frames_of(2))),
    )
    np.testing.assert_allclose(run(tmp_path / "image.onnx", frames=frames_of(2)), expected, 0, 1e-5)


@pytest.mark.parametrize(
    "levels",
    [
        Levels(1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        Levels(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        Levels(1.0, (127.5, 127.5, 127.5), (40.0, 60.0, 80.0)),
        Levels(2 / 255, (1.0, 1.0, 1.0), (1.0, 0.01, 3.0)),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_levels(tmp_path: Path, family: str, precision: str, levels: Levels) -> None:
    """Levels of CLIP, of processors without one of the steps, and with unequal colours."""
    image, _, weights = random_clip(family)
    image = replace(image, levels=levels)
    write_towers(tmp_path, family, [image], MemoryTensors(weights), precision)
    frames = frames_of(6)
    frames[:2] = np.array([0, 255])[:, None, None, None]
    expected = embed_images(image, weights, family, pixels_of(frames, levels))
    got = run(tmp_path / "image.onnx", frames=frames)
    np.testing.assert_allclose(got, expected, 0, TOLERANCE[precision])


def test_the_step_of_a_level() -> None:
    """The step is a power of two, so float16 holds every byte exactly; without a slope it is 1."""
    assert LEVELS.step == 2.0**-5
    values = (np.arange(256) - CENTRE) * LEVELS.step
    np.testing.assert_array_equal(values.astype(np.float16).astype(np.float64), values)
    assert Levels(0.0, (0.5,) * 3, (1.0,) * 3).step == 1


def test_refused_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, weights = random_clip("siglip")
    odd = replace(image, layers=replace(image.layers, activation="mish"))
    with pytest.raises(GranAlignError, match=r"vision_model: got the activation 'mish', expected"):
        write_towers(tmp_path, "siglip", [odd], MemoryTensors(weights), "fp32")
    for name in ("text_model.head.weight", "text_model.encoder.layers.1.mlp.fc1.bias"):
        narrow = {**weights, name: weights[name][..., :-1]}
        with pytest.raises(GranAlignError, match=rf"^{name}: got shape .* expected") as error:
            write_towers(tmp_path, "siglip", [text], MemoryTensors(narrow), "fp32")
        assert "\n" not in str(error.value)
    with pytest.raises(GranAlignError, match=r"image tower cannot be written .*free memory and"):
        write_towers(tmp_path / "nowhere", "siglip", [image], MemoryTensors(weights), "fp32")

    save_file({"ids": np.arange(3), "x": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("x").tolist() == [1, 1]
    with pytest.raises(GranAlignError, match="got ids in I64, expected float32, float16"):
        checkpoint.read("ids")

    with pytest.raises(GranAlignError, match="num_channels: got 4, expected 3"):
        ImageShape.from_config({"num_channels": 4}, 8, LEVELS)
