"""Exports hold slices of tensors, never a model; what they write does not depend on the slices."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bert import write_tiny_bert
from helpers.tiny_clip import write_clip_source
from helpers.tiny_llm import CONFIGS, LLAMA, write_tiny_llm, write_unchecked
from helpers.tiny_vlm import write_tiny_vlm, write_unchecked_vlm
from safetensors.numpy import load_file, save_file

from granalign_fast import files
from granalign_fast.errors import GranAlignError
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.graphs import tensor_file
from granalign_fast.export.graphs.bert import build_bert
from granalign_fast.export.graphs.block_quantization import quantise_blocks, quantise_slices
from granalign_fast.export.graphs.tensor_file import EmbeddedTensors, GraphTensors, SpooledTensors
from granalign_fast.export.llm import export_llm
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources import checkpoint as checkpoints
from granalign_fast.export.sources.checkpoint import Checkpoint
from granalign_fast.export.sources.encoders.bert import Bert
from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.export.specs import Rounding

PRECISIONS = ("fp32", "fp16", "int4")


def same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name != "manifest.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*sorted(CONFIGS), "vlm"])
def test_slices_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    def write(folder: Path) -> Path:
        if name == "vlm":
            return write_unchecked_vlm(folder, precision=precision)
        return write_unchecked(folder, CONFIGS[name], precision=precision)

    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = write(tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SLICE_BYTES", 1000)  # a few rows
    same_files(whole, write(tmp_path / "cut"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_slices_change_no_byte_of_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    sentences = write_tiny_bert(tmp_path / "s"), export_sentence_encoder
    sources = [sentences]
    if precision != "int8":
        sources += [(write_clip_source(tmp_path / f, f), export_clip) for f in ("clip", "siglip")]
    for number, (source, export) in enumerate(sources):
        one = export(source, tmp_path / f"a{number}", precision=precision, check=False)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "SLICE_BYTES", 1000)
            other = export(source, tmp_path / f"b{number}", precision=precision, check=False)
        same_files(one, other)


def test_slices_of_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((7, 3, 5)).astype(np.float32)
    tensors = {
        "f32": values,
        "f16": values.astype(np.float16),
        "row": values[0, 0],
        "scalar": np.array(3, np.float32),
        "empty": np.empty((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    for size in (1, 130, 1 << 20):
        monkeypatch.setattr(checkpoints, "SLICE_BYTES", size)
        source = Checkpoint(tmp_path)
        for name, tensor in load_file(tmp_path / "model.safetensors").items():
            got = source.read(name)
            assert got.dtype == np.float32 and got.shape == tensor.shape
            np.testing.assert_array_equal(got, tensor)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_does_not_grow_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """NumPy's arrays, as Python's own allocator counts them; graphs alone grow with the layers."""
    monkeypatch.setattr(checkpoints, "SLICE_BYTES", 1 << 16)
    monkeypatch.setattr(files, "_CHUNK", 1 << 16)  # of what is hashed at once
    peaks = []
    for layers in (2, 16):
        config = LLAMA | {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 4000}
        folder = tmp_path / str(layers)
        folder.mkdir()
        write_tiny_llm(folder / "source", config | {"num_hidden_layers": layers})
        LlmSource.read(folder / "source")
        tracemalloc.start()
        write_unchecked(folder, precision=precision)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    largest = 4 * 4000 * 256
    assert peaks[0] < 3 * largest
    model = sum(v.nbytes for v in load_file(tmp_path / "16" / "source/model.safetensors").values())
    assert peaks[1] - peaks[0] < largest / 2 < model / 10


def test_the_quantised_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((37, 70)).astype(np.float32)
    for bits in (4, 8):
        parts = np.split(weight, [1, 20, 30])
        for one, other in zip(
            quantise_slices(parts, weight.shape, Rounding(bits, 32)),
            quantise_blocks(weight, Rounding(bits, 32)),
            strict=True,
        ):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("packed", [False, True])
def test_a_streamed_model_is_what_onnx_writes(tmp_path: Path, packed: bool) -> None:
    import onnx

    model = SentenceModel.read(write_tiny_bert(tmp_path / "source"))
    bert = Bert.load(model.weights, model.config)
    options: dict[str, Any] = {"pooling": "mean", "normalise": True, "packed": packed}
    onnx.save(build_bert(bert, precision="fp32", **options), tmp_path / "model.onnx")
    spooled, file = SpooledTensors(io.BytesIO()), io.BytesIO()
    spooled.save(build_bert(bert, precision="fp32", tensors=spooled, **options), file)
    assert file.getvalue() == (tmp_path / "model.onnx").read_bytes()


def test_an_embedded_tensor_is_what_protobuf_writes() -> None:
    from onnx import ModelProto, numpy_helper

    random = np.random.default_rng(0)
    arrays = {
        "scalar": np.array(3, np.int64),
        "bytes": np.array(7, np.uint8),
        "long": random.standard_normal((300, 70)).astype(np.float32),
        "half": random.standard_normal((3, 5)).astype(np.float16).T,
        "none": np.empty((0,), np.float32),
    }
    file, expected = io.BytesIO(), b""
    store, memory = EmbeddedTensors(file), GraphTensors()
    for name, array in arrays.items():
        store.add(name, array)
        memory.add(name, array)
        part = ModelProto()
        part.graph.initializer.add().CopyFrom(numpy_helper.from_array(array.copy("C"), name))
        expected += part.SerializeToString()
    assert file.getvalue() == expected
    parsed = ModelProto.FromString(expected).graph.initializer
    assert list(parsed) == list(memory.tensors.values())


def test_a_file_that_no_runtime_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_LARGEST", 10_000)
    for write, export in ((write_tiny_bert, export_sentence_encoder), (write_clip, export_clip)):
        with pytest.raises(GranAlignError, match=r"expected at most 2\.1 GB.*'fp16'"):
            export(write(tmp_path / export.__name__), tmp_path / "out", check=False)
    assert not (tmp_path / "out").exists()


def write_clip(folder: Path) -> Path:
    return write_clip_source(folder, "clip")


def test_only_small_tensors_are_in_a_graph(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    export_llm(write_tiny_llm(tmp_path / "a"), tmp_path / "llm" / "out", check=False)
    write_tiny_vlm(tmp_path / "b")
    for path in (tmp_path / "llm" / "out").glob("*.onnx"):
        assert path.stat().st_size < 100_000
