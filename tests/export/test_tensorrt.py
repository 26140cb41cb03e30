"""Shapes of TensorRT engines, graphs for its parser, and options of ONNX Runtime's provider."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import fake_cupy, fake_tensorrt
from helpers.tiny_bert import flip_byte, write_tiny_bert
from helpers.tiny_clip import write_random_clip, write_tiny_export
from helpers.tiny_decoder import write_bare_decoder
from helpers.tiny_llm import write_unchecked
from helpers.tiny_qwen3_vl import write_unchecked_qwen3_vl
from helpers.tiny_smolvlm import write_unchecked_smolvlm
from helpers.tiny_vlm import write_unchecked_vlm
from onnx import TensorProto, helper

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.tensorrt import cast_bytes, export_tensorrt
from granalign_fast.models.exported_graph import graph_shapes, open_session
from granalign_fast.models.graph_contract import ENGINE_GRAPHS
from granalign_fast.runtime.device import CUDA_SETTINGS
from granalign_fast.runtime.shapes import Bounds, runs

BATCHES = [(1,), (1, 4, 16), (1, 4, 16, 64, 256), (1, 2, 3), (1, 100), (16, 64, 256, 1024)]


@pytest.mark.parametrize("batches", BATCHES)
def test_runs_hold_every_row_and_waste_few(batches: tuple[int, ...]) -> None:
    assert runs(0, batches) == []
    for rows in itertools.chain(range(1, 300), (999, 1000, 4096)):
        batches_of_rows = runs(rows, batches)
        assert sum(used for used, _ in batches_of_rows) == rows
        for used, batch in batches_of_rows:
            assert batch in batches and 0 < used <= batch
            assert batch - used <= min(used, 128) or batch == batches[0]
        sizes = [batch for _, batch in batches_of_rows]
        assert sizes == sorted(sizes, reverse=True)
        # No more runs than the fewest that hold the rows, and one for each smaller size.
        if batches[1:] == tuple(4 * batch for batch in batches[:-1]):
            assert len(batches_of_rows) <= rows // batches[-1] + len(batches)


def test_data_of_engines() -> None:
    for graphs in ENGINE_GRAPHS.values():
        for graph in graphs:
            assert graph.batches[0] == 1 and list(graph.batches) == sorted(set(graph.batches))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sentences")
    return export_sentence_encoder(write_tiny_bert(root / "source"), root / "out")


def test_shapes_of_a_sentence_encoder(sentences: Path) -> None:
    shapes = graph_shapes(sentences / "model.onnx")
    assert shapes is not None and shapes.precision == "fp32" and shapes.by_provider
    assert [profile["input_ids"] for profile in shapes.profiles] == [
        Bounds((batch, 1), (batch, 16), (batch, 16)) for batch in (1, 4, 16, 64, 256)
    ]
    assert shapes.span == {"input_ids": Bounds((1, 1), (256, 16), (256, 16))}
    assert str(shapes.span["input_ids"]) == "1..256 x 1..16"


def test_shapes_of_clip(tmp_path: Path) -> None:
    folder = write_tiny_export(tmp_path / "clip", max_tokens=77, precision="fp16")
    image, text = (graph_shapes(folder / f"{name}.onnx") for name in ("image", "text"))
    assert image is not None and text is not None and text.precision == "fp16"
    assert text.profiles[-1]["input_ids"] == Bounds((64, 1), (64, 16), (64, 77))
    assert len({b.least[1:] for p in image.profiles for b in p.values()}) == 1
    assert text.by_provider and not image.by_provider
    # A tokenizer that pads gives texts of one length alone.
    record = json.loads((folder / "tokenizer.json").read_text())
    record["padding"] = {"strategy": {"Fixed": 77}, "pad_id": 0}
    (folder / "tokenizer.json").write_text(json.dumps(record))
    text = graph_shapes(folder / "text.onnx")
    assert text is not None and text.profiles[0]["input_ids"] == Bounds((1, 77), (1, 77), (1, 77))


def test_shapes_of_generating_models(tmp_path: Path) -> None:
    vlm = write_unchecked_vlm(tmp_path / "vlm")
    vision = graph_shapes(vlm / "vision.onnx")
    assert vision is not None and not vision.by_provider
    assert [bounds.least[0] for p in vision.profiles for bounds in p.values()] == [1, 4, 16]
    assert graph_shapes(vlm / "model.onnx") is None
    llm = write_unchecked(tmp_path / "llm")
    assert graph_shapes(llm / "model.onnx") is None
    with pytest.raises(GranAlignError, match="got kind 'llm', expected one of"):
        export_tensorrt(llm)


def test_optimum_names_axes_differently(sentences: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sentences, tmp_path / "copy")
    inputs = {
        name: helper.make_tensor_value_info(name, TensorProto.INT64, axes)
        for name, axes in {
            "input_ids": ["batch_size", "sequence_length"],
            "attention_mask": ["batch_size", "sequence_length"],
        }.items()
    }
    graph = helper.make_graph([], "g", list(inputs.values()), [])
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    shapes = graph_shapes(folder / "model.onnx")
    assert shapes is not None
    assert shapes.profiles[1] == dict.fromkeys(inputs, Bounds((4, 1), (4, 16), (4, 16)))
    graph.input[0].type.tensor_type.shape.dim[1].dim_param = "words"
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    with pytest.raises(GranAlignError, match=r"got the input input_ids \['batch_size', 'words'\]"):
        graph_shapes(folder / "model.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), r"no manifest\.json beside it"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\xff"), "not an ONNX model"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"kind": "sentence-encoder"}'),
            "no max_tokens",
        ),
    ],
)
def test_folders_without_shapes(sentences: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = shutil.copytree(sentences, tmp_path / "copy")
    change(folder)
    with pytest.raises(GranAlignError, match=message):
        graph_shapes(folder / "model.onnx")


def same_to_the_bit(before: Path | bytes, after: bytes, frames: Any) -> None:
    """Check that both models give equal results for the frames."""
    results = [
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(
            None, {"frames": frames}
        )[0]
        for model in (before, after)
    ]
    np.testing.assert_array_equal(*results)


def test_bytes_are_cast_first() -> None:
    """Only a cast reads bytes, and a graph without bytes stays as it is."""
    nodes = [
        helper.make_node("Transpose", ["frames"], ["turned"], perm=[1, 0]),
        helper.make_node("Cast", ["turned"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["frames"], ["again"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "again"], ["y"]),
    ]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 5])
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [frames], [y]), opset_imports=opset, ir_version=10
    )
    before = model.SerializeToString()
    cast_bytes(model)
    users = [node.op_type for node in model.graph.node if "frames" in node.input]
    assert users == ["Cast"]
    x = np.random.default_rng(0).integers(0, 256, (7, 5), np.uint8)
    same_to_the_bit(before, model.SerializeToString(), x)
    again = model.SerializeToString()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    cast_bytes(model)
    assert len(model.SerializeToString()) == len(again)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_levels_of_bytes_are_spelled_out(tmp_path: Path, precision: str) -> None:
    """An image tower dequantises its bytes; spelled out, the result is equal to the bit."""
    path = write_random_clip(tmp_path / "towers", "clip", precision=precision) / "image.onnx"
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node].count("DequantizeLinear") == 1
    cast_bytes(model)
    onnx.checker.check_model(model)
    assert "DequantizeLinear" not in {node.op_type for node in model.graph.node}
    assert TensorProto.UINT8 not in {tensor.data_type for tensor in model.graph.initializer}
    frames = np.random.default_rng(0).integers(0, 256, (4, 37, 37, 3), np.uint8)
    same_to_the_bit(path, model.SerializeToString(), frames)


CUDA_OPTIONS = {setting.option: setting.value for setting in CUDA_SETTINGS}


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Make ONNX Runtime look as if it had a GPU, run on the CPU, and record its calls."""
    real = onnxruntime.InferenceSession
    calls: list[Any] = []

    class OnCpu:
        def __init__(
            self, path: Path | bytes, options: Any, providers: Any, enable_fallback: int
        ) -> None:
            calls.append(providers)
            model = onnx.load_from_string(path) if isinstance(path, bytes) else onnx.load(path)
            if providers[0][0] == "TensorrtExecutionProvider":
                assert {node.domain for node in model.graph.node} == {""}, "not TensorRT's"
            self.session = real(path, options, providers=["CPUExecutionProvider"])
            self.rows: list[int] = []

        def get_providers(self) -> list[str]:
            return [name for name, _ in calls[-1]]

        def run(self, names: Any, arrays: Any) -> Any:
            calls.append({len(array) for array in arrays.values()})
            return self.session.run(names, arrays)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: every)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCpu)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return calls


def test_the_provider_knows_all_shapes(
    sentences: Path, tmp_path: Path, providers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(sentences / "model.onnx", device="tensorrt")
    assert session.backend == "TensorrtExecutionProvider" and session.precision is None
    (name, options), cuda = providers[0]
    assert (name, cuda) == ("TensorrtExecutionProvider", ("CUDAExecutionProvider", CUDA_OPTIONS))
    shapes = {key: options[f"trt_profile_{key}_shapes"] for key in ("min", "opt", "max")}
    assert shapes == {"min": "input_ids:1x1", "opt": "input_ids:256x16", "max": "input_ids:256x16"}
    assert options["trt_fp16_enable"] == "False"
    cache = tmp_path / "cache" / "granalign-fast" / "tensorrt"
    machine = f"onnxruntime-{onnxruntime.__version__}-tensorrt-10.16.1.11-sm9.0-nvidia-h200"
    assert options["trt_timing_cache_path"] == str(cache / machine)
    assert Path(options["trt_engine_cache_path"]).parent == cache / machine
    assert Path(options["trt_engine_cache_path"]).is_dir()
    x = np.random.default_rng(0).integers(0, 20, (600, 5), np.int32)
    got = session(input_ids=x)["embeddings"]
    assert providers[1:] == [{256}, {256}, {88}]
    np.testing.assert_allclose(
        got, open_session(sentences / "model.onnx")(input_ids=x)["embeddings"], atol=1e-6
    )
    assert session(input_ids=x[:0])["embeddings"].shape == (0, 32)
    for wrong in (x[:, :0], np.zeros((2, 17), np.int32)):
        with pytest.raises(GranAlignError, match=r"expected \d+ rows within 1\.\.256 x 1\.\.16"):
            session(input_ids=wrong)


def test_the_provider_does_not_run_the_newest_version(
    sentences: Path, providers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its remedy is an engine: see `test_the_newest_version_builds_and_runs_engines`."""
    monkeypatch.setattr(fake_tensorrt, "__version__", fake_tensorrt.NEWEST)
    message = r"got TensorRT 11\.4.* expected 10\.16 .* provider is built for; build an engine"
    with pytest.raises(GranAlignError, match=message):
        open_session(sentences / "model.onnx", device="tensorrt")
    assert not providers


def test_other_weights_have_other_engines(
    sentences: Path, tmp_path: Path, providers: list[Any]
) -> None:
    """The provider names engines by their graph alone, so folders must tell weights apart."""
    folder = shutil.copytree(sentences, tmp_path / "copy")
    for graph in (sentences / "model.onnx", folder / "model.onnx"):
        open_session(graph, device="tensorrt")
    flip_byte(folder / "model.onnx", -2000)
    open_session(folder / "model.onnx", device="tensorrt")
    paths = [call[0][1]["trt_engine_cache_path"] for call in providers]
    assert paths[0] == paths[1] != paths[2]


def test_an_fp16_graph_may_compute_in_fp16(tmp_path: Path, providers: list[Any]) -> None:
    folder = write_tiny_export(tmp_path / "clip", precision="fp16")
    open_session(folder / "text.onnx", device="tensorrt")
    assert providers[0][0][1]["trt_fp16_enable"] == "True"


def test_fused_operators_reach_the_provider_as_standard_ones(
    tmp_path: Path, providers: list[Any]
) -> None:
    folder = write_random_clip(tmp_path / "clip", "clip", precision="fp16")
    record = {"kind": "clip", "precision": "fp16", "max_tokens": 12}
    (folder / "manifest.json").write_text(json.dumps(record))
    (folder / "tokenizer.json").write_text("{}")
    ids = np.ones((3, 5), np.int32)
    expected = open_session(folder / "text.onnx")(input_ids=ids)["embeddings"]
    session = open_session(folder / "text.onnx", device="tensorrt")
    assert session.backend == "TensorrtExecutionProvider"
    np.testing.assert_allclose(session(input_ids=ids)["embeddings"], expected, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_provider_gets_decoders_of_sentences(
    tmp_path: Path, providers: list[Any], name: str, precision: str
) -> None:
    """Sentence encoders of the decoder type have standard operators alone, in every precision."""
    source = write_bare_decoder(tmp_path / "source", name)
    out = export_sentence_encoder(source, tmp_path / "out", precision=precision, check=False)
    session = open_session(out / "model.onnx", device="tensorrt")
    assert session.backend == "TensorrtExecutionProvider"
    (_, options), _ = providers[-1]
    ids = session.inputs[0]
    longest = json.loads((out / "manifest.json").read_text())["max_tokens"]
    assert options["trt_profile_max_shapes"] == f"{ids}:256x{longest}"
    assert options["trt_fp16_enable"] == str(precision == "fp16")
    x = np.ones((3, 5), np.int32)
    expected = open_session(out / "model.onnx")(**{ids: x})["embeddings"]
    np.testing.assert_allclose(session(**{ids: x})["embeddings"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "write", [write_unchecked_vlm, write_unchecked_qwen3_vl, write_unchecked_smolvlm]
)
def test_what_is_not_tensorrts_runs_by_cuda(
    tmp_path: Path, providers: list[Any], write: Callable[[Path], Path]
) -> None:
    vlm = write(tmp_path / "vlm")
    clips = [path.name for path in vlm.glob("clips.onnx")]
    for name in ("vision.onnx", *clips, "embedding.onnx", "model.onnx"):
        session = open_session(vlm / name, device="tensorrt")
        assert session.backend == "CUDAExecutionProvider"
        assert providers[-1] == [("CUDAExecutionProvider", CUDA_OPTIONS)]


def test_the_second_gpu(
    sentences: Path, providers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"name": b"NVIDIA L4", "major": 8, "minor": 9}
    monkeypatch.setattr(fake_cupy.cuda.runtime, "gpus", [*fake_cupy.cuda.runtime.gpus, other])
    open_session(sentences / "model.onnx", device="tensorrt:1")
    (_, options), (_, cuda) = providers[0]
    assert options["device_id"] == cuda["device_id"] == "1"
    assert "sm8.9-nvidia-l4" in options["trt_engine_cache_path"]


@pytest.mark.needs_tensorrt
def test_on_a_gpu(sentences: Path, tmp_path: Path) -> None:
    """Build and run with the real libraries; this has not run yet, for lack of a GPU with them."""
    if importlib.util.find_spec("tensorrt") is None or importlib.util.find_spec("cupy") is None:
        pytest.skip(
            "test_on_a_gpu: needs TensorRT and a GPU: pip install 'granalign-fast[tensorrt]'"
        )
    folder = export_tensorrt(sentences, tmp_path / "out", cache_dir=tmp_path / "cache")
    engine, plain = (
        open_session(folder / "model.onnx", device="tensorrt"),
        open_session(folder / "model.onnx"),
    )
    for rows in (1, 3, 70, 300):
        x = np.random.default_rng(rows).integers(0, 20, (rows, 9), np.int32)
        for _ in range(3):
            got = engine(input_ids=x)["embeddings"]
            np.testing.assert_allclose(got, plain(input_ids=x)["embeddings"], atol=1e-5)
