"""Model repositories for Triton: their files, their configurations, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.command import Granalign

from granalign_fast.errors import GranAlignError
from granalign_fast.export.cached import exported_minilm
from granalign_fast.export.triton import SearchPlace, export_triton
from granalign_fast.export.triton_config import Batching, Instances, ModelConfig, Tensor
from granalign_fast.files import sha256_of
from granalign_fast.miniatures import MODELS
from granalign_fast.models.manifest import (
    CLIP,
    SENTENCE_ENCODER,
    FrameEncoderManifest,
    exported_models,
)

PLACE = SearchPlace("/library", "/models", "tuned", captions_only=True)
DEVICES = [
    ("onnxruntime", "cpu"),
    ("onnxruntime", "cuda:1"),
    ("onnxruntime", "tensorrt"),
    ("python", "cpu"),
    ("python", "cuda"),
]


@pytest.fixture(scope="module")
def models(minilm: Path) -> dict[str, Path]:
    return exported_models(MODELS) | {SENTENCE_ENCODER: exported_minilm()}


def test_a_configuration_is_protobuf_text() -> None:
    config = ModelConfig(
        "m",
        "onnxruntime",
        64,
        inputs=(Tensor("ids", "TYPE_INT32", (-1,), optional=True),),
        outputs=(Tensor("rows", "TYPE_FP32", (2, 3)),),
        instances=Instances(2, (1,)),
        batching=Batching(preferred=(4, 16), waiting=8),
        parameters={"place": 'a "b" \\ \n\u00e9'},
    )
    text = " ".join(config.to_text().split())
    assert text == (
        'name: "m" backend: "onnxruntime" max_batch_size: 64 '
        'input { name: "ids" data_type: TYPE_INT32 dims: -1 optional: true } '
        'output { name: "rows" data_type: TYPE_FP32 dims: 2 dims: 3 } '
        "instance_group { count: 2 kind: KIND_GPU gpus: 1 } "
        "dynamic_batching { preferred_batch_size: 4 preferred_batch_size: 16 "
        "max_queue_delay_microseconds: 500 default_queue_policy { timeout_action: REJECT "
        "default_timeout_microseconds: 0 max_queue_size: 8 } } "
        'parameters { key: "place" value { string_value: "a \\042b\\042 \\134 '
        '\\012\\303\\251" } }'
    )


def test_a_text_that_is_no_unicode_is_refused() -> None:
    config = ModelConfig("m", "python", 1, (), (), parameters={"library": "/lib\udcff"})
    with pytest.raises(GranAlignError, match="not valid Unicode"):
        config.to_text()


def test_a_repository_has_encoders_and_a_search(models: dict[str, Path], tmp_path: Path) -> None:
    out = export_triton(models, tmp_path / "repository", search=PLACE)
    assert sorted(path.name for path in out.iterdir()) == [
        "granalign_image_encoder",
        "granalign_search",
        "granalign_sentence_encoder",
        "granalign_text_encoder",
    ]
    # The image encoder's folder is the exported folder: all its files are there, unchanged.
    manifest = FrameEncoderManifest.read(out / "granalign_image_encoder" / "1")
    assert manifest == FrameEncoderManifest.read(models[CLIP])
    text = out / "granalign_text_encoder" / "1"
    assert {path.name for path in text.iterdir()} == {"manifest.json", "text.onnx"}
    assert sha256_of(text / "text.onnx") == sha256_of(models[CLIP] / "text.onnx")
    config = (out / "granalign_image_encoder" / "config.pbtxt").read_text()
    assert "data_type: TYPE_UINT8" in config and 'default_model_filename: "image.onnx"' in config
    search = (out / "granalign_search" / "config.pbtxt").read_text()
    for name, value in (("library", "/library"), ("models", "/models"), ("preset", "tuned")):
        assert f'key: "{name}"\n  value {{\n    string_value: "{value}"' in search


@pytest.mark.parametrize(("backend", "device"), DEVICES)
def test_instances_run_where_they_are_to(
    models: dict[str, Path], tmp_path: Path, backend: str, device: str
) -> None:
    out = export_triton(
        models, tmp_path / "r", search=PLACE, backend=backend, device=device, instances=2
    )
    config = (out / "granalign_sentence_encoder" / "config.pbtxt").read_text()
    assert f'backend: "{backend}"' in config and "count: 2" in config
    assert ("KIND_CPU" in config) == (device == "cpu")
    assert ("gpus: 1" in config) == (device == "cuda:1")
    tensorrt = device == "tensorrt"
    assert ('"input_ids:1x1"' in config and '"input_ids:256x256"' in config) == tensorrt
    image = (out / "granalign_image_encoder" / "config.pbtxt").read_text()
    assert "tensorrt" not in image  # its provider would split the graph
    loaded = out / "granalign_sentence_encoder" / "1" / "model.py"
    assert loaded.is_file() == (backend == "python")


def test_a_python_model_names_a_class_that_exists(models: dict[str, Path], tmp_path: Path) -> None:
    out = export_triton(models, tmp_path / "r", search=PLACE, backend="python")
    for name in ("granalign_search", "granalign_text_encoder"):
        spec = importlib.util.spec_from_file_location(name, out / name / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert callable(module.TritonPythonModel().execute)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "pytorch"}, "expected one of"),
        ({"backend": "python", "device": "tensorrt"}, "expected cpu or cuda"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"instances": 0}, "at least 1"),
        ({"models": {}}, "expected a sentence encoder"),
    ],
)
def test_what_cannot_be_is_refused(
    models: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments = {"models": models, "out": tmp_path / "r", "search": PLACE} | changes
    with pytest.raises(GranAlignError, match=message):
        export_triton(**arguments)
    assert not (tmp_path / "r").exists()


def test_an_altered_model_leaves_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models[CLIP], tmp_path / "clip")
    graph = tmp_path / "clip" / "text.onnx"
    graph.write_bytes(graph.read_bytes() + b"x")
    with pytest.raises(GranAlignError, match="altered"):
        export_triton({CLIP: tmp_path / "clip"}, tmp_path / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_the_command_writes_a_repository(
    granalign: Granalign, minilm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    code, said, _ = granalign("export", "triton", "miniatures", out, "--library", "/library")
    assert (code, out.is_dir()) == (0, True) and str(out) in said
    config = (out / "granalign_search" / "config.pbtxt").read_text()
    assert 'string_value: "/library"' in config and 'string_value: "miniatures"' in config
    code, _, error = granalign("export", "triton", "miniatures", out)
    assert code == 2 and "already exists" in error
    code, _, _ = granalign("export", "triton", "miniatures", tmp_path / "encoders")
    assert code == 0 and not (tmp_path / "encoders" / "granalign_search").exists()


@pytest.mark.needs_triton
@pytest.mark.parametrize(("backend", "device"), DEVICES)
def test_configurations_follow_the_schema(
    models: dict[str, Path], tmp_path: Path, backend: str, device: str
) -> None:
    pytest.importorskip("tritonclient.grpc", reason="run make test-triton")
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig as Schema

    place = SearchPlace("/library/\u00e9 'x'", "/models")
    out = export_triton(models, tmp_path / "r", search=place, backend=backend, device=device)
    read = {}
    for path in out.glob("*/config.pbtxt"):
        config: Any = text_format.Parse(path.read_text(), Schema())
        assert config.name == path.parent.name and config.max_batch_size > 1
        assert config.HasField("dynamic_batching")
        read[config.name] = config
    search = read["granalign_search"]
    assert search.parameters["library"].string_value == place.library
    assert [tensor.optional for tensor in search.input] == [False, True]
    encoder = read["granalign_sentence_encoder"]
    (accelerators,) = [encoder.optimization.execution_accelerators.gpu_execution_accelerator]
    assert [each.name for each in accelerators] == ["tensorrt"] * (device == "tensorrt")
    (group,) = encoder.instance_group
    assert group.kind == (group.KIND_CPU if device == "cpu" else group.KIND_GPU)
