"""Messages of every exporter about folders that hold no whole model with plain weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.sentence_folders import Edit, drop, edit, together
from helpers.tiny_bert import write_json, write_tiny_bert
from helpers.tiny_clip import write_bare_source
from helpers.tiny_llm import write_tiny_llm
from helpers.tiny_vlm import write_tiny_vlm
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.families import read_vlm
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sources.checkpoint import Checkpoint
from granalign_fast.export.sources.language_model import LlmSource
from granalign_fast.models.sources import INDEX, hash_weights, weights_files

Export = Callable[[Path, Path], Path]

# Language models are read alone: their exporters ask for torch first.
EXPORTERS: dict[str, tuple[Callable[[Path], Path], Export, str]] = {
    "sentence-encoder": (write_tiny_bert, export_sentence_encoder, "int8"),
    "clip": (write_bare_source, export_clip, "fp16"),
    "llm": (write_tiny_llm, lambda source, _: LlmSource.read(source).folder, "int4"),
    "vlm": (write_tiny_vlm, lambda source, _: read_vlm(source, (56, 84)).folder, "int4"),
}


def quantised(**settings: object) -> Edit:
    return edit("config.json", quantization_config=settings)


def other_weights(name: str) -> Edit:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        if path.is_file():
            path.rename(folder / name)
        else:  # shards
            (folder / INDEX).unlink()
            for part in folder.glob("*.safetensors"):
                part.rename(folder / name)

    return apply


CASES: list[tuple[Edit, str]] = [
    (quantised(quant_method="gptq", bits=4), r"quantised by GPTQ \(4 bits\), .*original model"),
    (quantised(quant_method="awq", bits=4), r"quantised by AWQ \(4 bits\)"),
    (
        quantised(quant_method="bitsandbytes", load_in_4bit=True),
        r"quantised by bitsandbytes \(4 bits\)",
    ),
    (quantised(load_in_8bit=True, load_in_4bit=False), r"bitsandbytes \(8 bits\)"),
    (quantised(quant_method="fp8", weight_block_size=[128, 128]), "quantised by FP8,"),
    (quantised(quant_method="compressed-tensors"), "quantised by compressed-tensors,"),
    (quantised(quant_method="mxfp4"), "quantised by mxfp4,"),
    (
        edit("config.json", text_config={"quantization_config": {"quant_method": "gptq"}}),
        "quantised by GPTQ,",
    ),
    (edit("config.json", quantization={"group_size": 64, "bits": 4}), r"method \(4 bits\)"),
    (edit("config.json", compression_config={"quant_method": "sparseml"}), "by sparseml"),
    (edit("quantize_config.json", bits=4, group_size=128), "quantised by GPTQ,"),
    (edit("hf_quant_config.json", quantization={}), "quantised by ModelOpt,"),
]


@pytest.mark.parametrize("kind", EXPORTERS)
@pytest.mark.parametrize(("change", "message"), CASES)
def test_quantised_models_are_named(tmp_path: Path, kind: str, change: Edit, message: str) -> None:
    write, export, small = EXPORTERS[kind]
    source = write(tmp_path / "source")
    change(source)
    refused(source, export, f"{message}.*--precision {small}")


OTHERS: list[tuple[Edit, str]] = [
    (edit("adapter_config.json", base_model_name_or_path="org/base"), "PEFT for org/base.*merge"),
    (
        together(
            drop("config.json", "model.safetensors"),
            edit("adapter_config.json", base_model_name_or_path="org/base"),
        ),
        "an adapter of PEFT for org/base, expected a whole model",
    ),
    (together(drop("config.json"), other_weights("a.gguf")), "got GGUF; name the folder"),
    (other_weights("a.gguf"), r"got GGUF \(a.gguf\), expected model.safetensors; name the folder"),
    (other_weights("pytorch_model.bin"), "pytorch_model.bin, which is pickled and never opened"),
    (other_weights("consolidated.00.pth"), "consolidated.00.pth, which is pickled"),
    (other_weights("adapter_model.safetensors"), "an adapter of PEFT .*merge_and_unload"),
    (other_weights("model-00001-of-00002.safetensors"), f"shards without their {INDEX}"),
    (other_weights("model.fp16.safetensors"), "safetensors of another name"),
    (other_weights("tf_model.h5"), "weights of another framework"),
]


@pytest.mark.parametrize("kind", EXPORTERS)
@pytest.mark.parametrize(("change", "message"), OTHERS)
def test_other_weights_are_named(tmp_path: Path, kind: str, change: Edit, message: str) -> None:
    write, export, _ = EXPORTERS[kind]
    source = write(tmp_path / "source")
    change(source)
    refused(source, export, message)


def refused(source: Path, export: Export, message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        export(source, source.with_name("out"))
    assert "\n" not in str(error.value)
    assert [path.name for path in source.parent.iterdir()] == ["source"]


def test_whole_weights_go_before_a_stale_index(tmp_path: Path) -> None:
    source = write_tiny_bert(tmp_path / "source")
    write_json(source / INDEX, {"weight_map": {"x": "gone.safetensors"}})
    assert weights_files(source) == [source / "model.safetensors"]
    name = "embeddings.word_embeddings.weight"
    expected = load_file(source / "model.safetensors")[name]
    np.testing.assert_array_equal(Checkpoint(source).read(name), expected)


def test_shards_are_hashed_together(tmp_path: Path) -> None:
    source = write_tiny_bert(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    whole = hash_weights(weights_files(source))
    (source / "model.safetensors").unlink()
    files = {}
    for i, name in enumerate(sorted(tensors)):
        files[name] = f"part{i % 3}.safetensors"
    for file in set(files.values()):
        part = {name: tensors[name] for name in files if files[name] == file}
        save_file(part, source / file)
    write_json(source / INDEX, {"weight_map": files})
    assert [path.name for path in weights_files(source)] == [
        f"part{i}.safetensors" for i in range(3)
    ]
    first = hash_weights(weights_files(source))
    assert first != whole
    part = load_file(source / "part1.safetensors")
    save_file({name: value + 1 for name, value in part.items()}, source / "part1.safetensors")
    assert hash_weights(weights_files(source)) != first


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_names(tmp_path: Path, index: object) -> None:
    source = write_tiny_bert(tmp_path / "source")
    (source / "model.safetensors").unlink()
    write_json(source / INDEX, index)
    with pytest.raises(GranAlignError, match="no weight_map"):
        weights_files(source)
