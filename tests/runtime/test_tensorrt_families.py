"""Towers and encoders of every family as TensorRT engines, on a stand-in that runs on the CPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy, fake_tensorrt
from helpers.tiny_decoder import write_bare_decoder
from helpers.tiny_qwen3_vl import write_unchecked_qwen3_vl
from helpers.tiny_smolvlm import write_unchecked_smolvlm
from helpers.tiny_vlm import frames_of, write_unchecked_vlm

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.tensorrt import export_tensorrt
from granalign_fast.models.exported_graph import graph_shapes, open_session
from granalign_fast.models.graph_contract import DEEPSTACK, ENGINE_GRAPHS, IMAGE_EMBEDS
from granalign_fast.models.manifest import SENTENCE_ENCODER, VlmManifest
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder
from granalign_fast.runtime.engine_stamp import EngineStamp
from granalign_fast.runtime.shapes import Bounds

TOWERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "qwen2_5_vl": (write_unchecked_vlm, ("vision", "clips")),
    "qwen3_vl": (write_unchecked_qwen3_vl, ("vision", "clips")),
    "smolvlm": (write_unchecked_smolvlm, ("vision",)),
}
"""The function that exports a tiny model of each family, and its tower's graphs for frames."""

TEXTS = ["a dog", "The dog runs in the the park", "", "x y " * 9, "the the the", "a b", "c"]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake_tensorrt.BUILT.clear()


def images_of(folder: Path, graph: str, count: int) -> np.ndarray[Any, Any]:
    """Return frames, or clips of two frames, for a graph of a tower."""
    height, width = VlmManifest.read(folder).image_size
    if graph == "vision":
        return frames_of(count, (height, width))
    return frames_of(2 * count, (height, width)).reshape(count, 2, height, width, 3)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", TOWERS)
def test_towers(tmp_path: Path, family: str, precision: str) -> None:
    """Engines of frames and of clips give the tokens, and what a decoder adds behind its layers."""
    write, graphs = TOWERS[family]
    plain = write(tmp_path, precision=precision)
    folder = export_tensorrt(plain, tmp_path / "built")
    engines = sorted(path.stem for path in (folder / "tensorrt").glob("*.engine"))
    assert engines == sorted(graphs) and len(fake_tensorrt.BUILT) == len(graphs)
    for graph in graphs:
        images = images_of(folder, graph, 5)
        session = open_session(folder / f"{graph}.onnx", device="tensorrt")
        assert session.backend == "TensorRT engine" and session.precision == precision
        # In batches of 4 and 1, as the engine runs them.
        reference = open_session(plain / f"{graph}.onnx", threads=1)
        parts = [reference(frames=part) for part in (images[:4], images[4:])]
        got = session(frames=images)
        names = {IMAGE_EMBEDS} | ({DEEPSTACK} if family == "qwen3_vl" else set())
        assert set(got) == names
        for name in names:
            expected = np.concatenate([part[name] for part in parts])
            assert float(np.ptp(expected, axis=0).max()) > 1e-2
            # Fused operators are standard ones here, whose sums in float16 are in another order.
            scale = float(np.abs(expected).max())
            exact = precision == "fp32"
            np.testing.assert_allclose(got[name], expected, 0, 0 if exact else 4e-3 * scale)
        stamp = EngineStamp.read(folder / "tensorrt" / f"{graph}.engine")
        assert set(stamp.sources) == {f"{graph}.onnx", "vision.onnx_data"}


@pytest.mark.parametrize("family", TOWERS)
def test_shapes_of_towers(tmp_path: Path, family: str) -> None:
    write, graphs = TOWERS[family]
    folder = write(tmp_path)
    for graph in graphs:
        shapes = graph_shapes(folder / f"{graph}.onnx")
        assert shapes is not None and not shapes.by_provider
        size = images_of(folder, graph, 1).shape[1:]
        assert [profile["frames"] for profile in shapes.profiles] == [
            Bounds((batch, *size), (batch, *size), (batch, *size)) for batch in (1, 4, 16)
        ]
    for graph in ("model.onnx", "static.onnx", "embedding.onnx", "patches.onnx"):
        assert graph_shapes(folder / graph) is None


def test_a_clip_of_one_frame_is_refused(tmp_path: Path) -> None:
    folder = export_tensorrt(write_unchecked_qwen3_vl(tmp_path), tmp_path / "built")
    session = open_session(folder / "clips.onnx", device="tensorrt")
    with pytest.raises(GranAlignError, match=r"expected uint8 with rows of 2 x") as error:
        session(frames=images_of(folder, "clips", 2)[:, :1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output", [IMAGE_EMBEDS, DEEPSTACK])
def test_a_wrong_output_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """Each output of an engine is compared, that of the decoder's first layers as well."""
    plain = write_unchecked_qwen3_vl(tmp_path)
    run = fake_tensorrt.IExecutionContext._run

    def run_wrongly(self: Any, arrays: Any) -> Any:
        outputs = run(self, arrays)
        return outputs | {output: outputs[output] * np.float32(1.01)}

    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "_run", run_wrongly)
    with pytest.raises(GranAlignError, match=rf"batches of 1: 1 mismatches, such as {output}: max"):
        export_tensorrt(plain, tmp_path / "built")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["gemma3", "qwen3", "qwen3-window"])
def test_sentence_encoders_of_the_decoder_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    """Queries and captions behind their prompts, in batches that are padded and split."""
    (spec,) = ENGINE_GRAPHS[SENTENCE_ENCODER]
    few = replace(spec, batches=(1, 4))  # large batches of the stand-in take a minute
    monkeypatch.setitem(ENGINE_GRAPHS, SENTENCE_ENCODER, (few,))
    source = write_bare_decoder(tmp_path / "source", name)
    plain = export_sentence_encoder(source, tmp_path / "plain", precision=precision, check=False)
    folder = export_tensorrt(plain, tmp_path / "built")
    ours, expected = OnnxSentenceEncoder(folder, device="tensorrt"), OnnxSentenceEncoder(plain)
    assert ours._session.backend == "TensorRT engine"
    tolerance = 1e-5 if precision == "fp32" else 5e-3
    for got, reference in ((ours, expected), (ours.for_queries, expected.for_queries)):
        rows = reference.encode(TEXTS)
        assert (rows @ rows.T)[0, 1:].max() < 0.999
        np.testing.assert_allclose(got.encode(TEXTS), rows, 0, tolerance)
    stamp = EngineStamp.read(folder / "tensorrt" / "model.engine")
    assert set(stamp.sources) >= {"model.onnx"} and stamp.precision == precision
