"""Folders of sentence encoders that are refused by name, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.sentence_folders import Edit, drop, edit, shard, together
from helpers.tiny_bert import write_json, write_tiny_bert
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sentence_encoder import export_sentence_encoder

SETTINGS, OWN = "tokenizer_config.json", "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"


def with_module(kind: str) -> Edit:
    def apply(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules.insert(2, {"idx": 2, "name": "2", "path": "2_More", "type": kind})
        write_json(folder / "modules.json", modules)

    return apply


def outside(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    write_json(folder / "modules.json", modules)


def two_models(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    both = {
        f"{kind}.{name}": value for kind in ("query", "text") for name, value in tensors.items()
    }
    save_file(both, folder / "model.safetensors")


PROMPTED = edit(PROMPTS, prompts={"query": "b "}, default_prompt_name="query")

REFUSED: list[tuple[Edit, str]] = [
    (with_module("sentence_transformers.models.Dense"), "'Dense'.*choose a model without further"),
    (
        with_module("sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm"),
        "'LayerNorm'",
    ),
    (with_module("custom_st.Mixer"), "'custom_st.Mixer', which is code of its own"),
    (with_module("sentence_transformers.models.Pooling"), "expected each once"),
    (outside, r"'../1_Pooling', expected one inside"),
    (edit("1_Pooling/config.json", pooling_mode="max"), r"\['max'\], expected one of"),
    (edit("1_Pooling/config.json", pooling_mode=["cls", "mean"]), r"\['cls', 'mean'\]"),
    (edit("1_Pooling/config.json", pooling_mode_cls_token=True), "pooling_mode_cls_token"),
    (
        together(PROMPTED, edit("1_Pooling/config.json", include_prompt=False)),
        "include_prompt false with the prompt 'b '",
    ),
    (edit(PROMPTS, default_prompt_name="x", prompts={"y": "z"}), "'x' of the prompts"),
    (edit(PROMPTS, truncate_dim=16), "truncate_dim 16.*set truncate_dim to null"),
    (edit(OWN, transformer_task="fill-mask"), "the task 'fill-mask'"),
    (
        edit(OWN, modality_config={"text": {"method_output_name": "pooler_output"}}),
        "pooler_output",
    ),
    (edit(OWN, processing_kwargs={"text": {"max_length": 3}}), "processing_kwargs"),
    (edit(SETTINGS, split_special_tokens=True), "split_special_tokens true"),
    (edit(SETTINGS, truncation_side="middle"), "truncation_side 'middle'"),
    (edit(SETTINGS, added_tokens_decoder={"x": 1}), "unusable added tokens"),
    (two_models, "query.embeddings.*weights of one model"),
    (together(shard, drop("b.safetensors")), "names 'b.safetensors', expected"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(tmp_path: Path, change: Edit, message: str) -> None:
    source = write_tiny_bert(tmp_path / "source")
    change(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_sentence_encoder(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
