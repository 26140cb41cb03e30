"""Folders in the layouts of transformers 4.57 and 5: read alike, and without transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import rename_weights, save_as_version_5
from helpers.tiny_bert import edit_json, write_json
from helpers.tiny_llm import (
    CONFIGS,
    LLAMA,
    LLAMA3_ROPE,
    prompts_of,
    write_tiny_llm,
    write_unchecked,
)
from helpers.tiny_vlm import CONFIGS as VLM_CONFIGS
from helpers.tiny_vlm import IMAGE_SIZE, PREPROCESSOR, write_tiny_vlm, write_unchecked_vlm

from granalign_fast.errors import GranAlignError
from granalign_fast.export.families import read_vlm
from granalign_fast.export.sources.language_model import LlmSource, UnsupportedError
from granalign_fast.export.sources.layouts import (
    image_settings,
    uniform_config,
    uniform_files,
    uniform_folder,
)
from granalign_fast.models.language_model import CausalLM


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def graphs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.onnx*"))}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_language_model_in_both_layouts_is_one_export(tmp_path: Path, name: str) -> None:
    older, newer = tmp_path / "older", tmp_path / "newer"
    write_tiny_llm(older / "source", CONFIGS[name])
    shutil.copytree(older / "source", newer / "source")
    save_as_version_5(newer / "source")
    assert "rope_theta" not in read(newer / "source" / "config.json")
    outs = [write_unchecked(folder) for folder in (older, newer)]
    assert graphs(outs[0]) == graphs(outs[1])
    # Both layouts of settings leave the export in the older one, which both versions read.
    settings = read(outs[1] / "config.json")
    scaling = CONFIGS[name].get("rope_scaling")
    assert settings["rope_theta"] == CONFIGS[name]["rope_theta"]
    assert settings["rope_scaling"] == scaling and "rope_parameters" not in settings
    tokenizer = read(outs[1] / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "_from_model_config" not in read(outs[1] / "generation_config.json")
    messages = [{"role": "user", "content": "hello"}]
    assert CausalLM(outs[0]).chat(messages) == CausalLM(outs[1]).chat(messages)
    np.testing.assert_array_equal(*(CausalLM(out).logits(prompts_of(7, 3)) for out in outs))


def test_files_that_both_versions_read_are_copied_as_they_are(tmp_path: Path) -> None:
    source = write_tiny_llm(tmp_path / "source")
    out = write_unchecked(tmp_path)
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    with uniform_folder(source) as folder:
        assert folder == source


ROPE = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": LLAMA3_ROPE,
    "by its old name": {"type": "linear", "factor": 2.0},
}


@pytest.mark.parametrize("form", sorted(ROPE))
@pytest.mark.parametrize("nested", [False, True])
def test_every_form_of_rotary_positions(tmp_path: Path, form: str, nested: bool) -> None:
    """Flat, or once for each type of layer."""
    older = LLAMA | {"rope_theta": 5e5, "rope_scaling": ROPE[form] or None}
    newer = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    parameters: dict[str, Any] = {"rope_theta": 5e5, "rope_type": "default"} | ROPE[form]
    if "type" in parameters:
        del parameters["rope_type"]
    if nested:
        newer["layer_types"] = ["full_attention"] * 3
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_theta": 1e4}}
    newer["rope_parameters"] = parameters
    sources = [
        LlmSource.read(write_tiny_llm(tmp_path / str(i), config))
        for i, config in enumerate((older, newer))
    ]
    frequencies = [source.shape.frequencies for source in sources]
    np.testing.assert_array_equal(*frequencies)
    assert (
        frequencies[0][-1] != LlmSource.read(write_tiny_llm(tmp_path / "p")).shape.frequencies[-1]
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "rope_scaling of type 'yarn'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (
            {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [2.0]},
            "rope_scaling of type 'longrope'",
        ),
    ],
)
def test_forms_without_a_graph_of_ours(
    tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    source = write_tiny_llm(tmp_path / "source")
    edit_json(source / "config.json", rope_parameters=parameters)
    with pytest.raises(UnsupportedError, match=message):
        LlmSource.read(source)


def test_layers_with_different_rotary_positions(tmp_path: Path) -> None:
    both = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    kinds = ["full_attention", "sliding_attention"]
    config = {"model_type": "other", "layer_types": kinds, "rope_parameters": both}
    with pytest.raises(GranAlignError, match="differ from layer to layer"):
        uniform_config(config, tmp_path)
    # Gemma 3 has a setting for each of them in the older layout.
    gemma = uniform_config(config | {"model_type": "gemma3_text"}, tmp_path)
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"]) == (1e6, 1e4)


@pytest.mark.parametrize(
    ("kinds", "every"), [("fsfs", 2), ("fssfs", 3), ("fff", 1), ("fsss", 4), ("sfsf", None)]
)
def test_modernbert_in_both_layouts(tmp_path: Path, kinds: str, every: int | None) -> None:
    """The older layout names both bases, and counts the layers instead of listing them."""
    names = {"f": "full_attention", "s": "sliding_attention"}
    both = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e3}}
    config = {"model_type": "modernbert", "layer_types": [names[kind] for kind in kinds]}
    settings = uniform_config(config | {"rope_parameters": both}, tmp_path)
    assert (settings["global_rope_theta"], settings["local_rope_theta"]) == (1e6, 1e3)
    assert "rope_theta" not in settings and "rope_parameters" not in settings
    assert settings.get("global_attn_every_n_layers") == every


def test_older_settings_go_before_newer_ones_beside_them(tmp_path: Path) -> None:
    """As in transformers, whose `rope_scaling` replaces `rope_parameters`."""
    config = LLAMA | {"rope_scaling": LLAMA3_ROPE, "rope_parameters": {"rope_theta": 7.0}}
    assert uniform_config(config, tmp_path) == LLAMA | {"rope_scaling": LLAMA3_ROPE}
    settings = uniform_config(LLAMA | {"rope_parameters": {"rope_theta": 7.0}}, tmp_path)
    assert settings["rope_theta"] == 7.0


def test_a_base_among_the_scaling(tmp_path: Path) -> None:
    """Version 5 takes it from there, and version 4.57 from outside."""
    plain = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    scaling = {"rope_scaling": LLAMA3_ROPE | {"rope_theta": 5e5}}
    expected = LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE}
    assert uniform_config(plain | scaling, tmp_path) == expected
    assert uniform_config(expected | scaling, tmp_path) == expected
    with pytest.raises(GranAlignError, match=r"rope_theta 10000.0, and 500000.0 in rope_scaling"):
        uniform_config(LLAMA | scaling, tmp_path)


def test_longrope_as_version_4_wants_it(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    parameters = factors | {
        "rope_theta": 1e4,
        "rope_type": "longrope",
        "type": "longrope",
        "original_max_position_embeddings": 96,
        "partial_rotary_factor": 1.0,
    }
    config = uniform_config({"model_type": "phi3", "rope_parameters": parameters}, tmp_path)
    assert config["rope_scaling"] == factors | {"type": "longrope"}
    assert config["original_max_position_embeddings"] == 96


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("name", sorted(VLM_CONFIGS))
def test_a_vision_language_model_in_both_layouts_is_one_export(
    tmp_path: Path, name: str, joined: bool
) -> None:
    older, newer = tmp_path / "older", tmp_path / "newer"
    write_tiny_vlm(older / "source", VLM_CONFIGS[name])
    shutil.copytree(older / "source", newer / "source")
    save_as_version_5(newer / "source", joined_processor=joined)
    config = read(newer / "source" / "config.json")
    assert "tie_word_embeddings" not in config["text_config"]
    outs = [write_unchecked_vlm(folder) for folder in (older, newer)]
    assert graphs(outs[0]) == graphs(outs[1])
    settings = read(outs[1] / "preprocessor_config.json")
    assert settings["image_mean"] == PREPROCESSOR["image_mean"]


@pytest.mark.parametrize(
    "prefixes",
    [
        [("model.", "model.language_model."), ("visual.", "model.visual.")],
        [("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")],
    ],
)
@pytest.mark.parametrize("name", sorted(VLM_CONFIGS))
def test_names_of_weights_in_other_versions(
    tmp_path: Path, name: str, prefixes: list[tuple[str, str]]
) -> None:
    published = read_vlm(write_tiny_vlm(tmp_path / "a", VLM_CONFIGS[name]), IMAGE_SIZE)
    folder = rename_weights(write_tiny_vlm(tmp_path / "b", VLM_CONFIGS[name]), *prefixes)
    renamed = read_vlm(folder, IMAGE_SIZE)
    for weight in published.checkpoint._entries:
        np.testing.assert_array_equal(
            renamed.checkpoint.read(weight), published.checkpoint.read(weight)
        )


def test_settings_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    """Files need hold only what differs from the family's defaults."""
    source = write_tiny_vlm(tmp_path / "source")
    full = read_vlm(source, IMAGE_SIZE)
    config, images = read(source / "config.json"), read(source / "preprocessor_config.json")
    for key in ("patch_size", "spatial_merge_size", "temporal_patch_size", "window_size"):
        del config["vision_config"][key]
    for key in ("image_mean", "image_std", "patch_size", "merge_size", "temporal_patch_size"):
        del images[key]
    write_json(source / "config.json", config)
    write_json(source / "preprocessor_config.json", images)
    lean = read_vlm(source, IMAGE_SIZE)
    assert (lean.vision, lean.pixels) == (full.vision, full.pixels)

    shape = {"num_hidden_layers": 1, "max_position_embeddings": 32768, "num_key_value_heads": 32}
    shape |= {"num_attention_heads": 32, "head_dim": 128, "model_type": "qwen3"}
    llm = write_tiny_llm(tmp_path / "qwen3", LLAMA | shape)
    edit_json(llm / "config.json", architectures=["Qwen3ForCausalLM"])
    expected = LlmSource.read(llm).shape
    kept = read(llm / "config.json")
    for key in (
        "max_position_embeddings",
        "num_key_value_heads",
        "num_attention_heads",
        "head_dim",
    ):
        del kept[key]
    write_json(llm / "config.json", kept)
    got = LlmSource.read(llm).shape
    assert (got.head_dim, got.kv_heads, got.heads) == (128, 32, 32)
    assert (got.context, got.hidden) == (expected.context, expected.hidden)


def test_the_newer_settings_of_images_go_first(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", {"resample": 2})
    assert image_settings(tmp_path) == ({"resample": 2}, tmp_path / "preprocessor_config.json")
    nested = {"image_processor": {"resample": 3, "image_processor_type": "CLIPImageProcessorPil"}}
    write_json(tmp_path / "processor_config.json", nested)
    settings, path = image_settings(tmp_path)
    assert settings == {"resample": 3, "image_processor_type": "CLIPImageProcessor"}
    assert path.name == "processor_config.json"
    files = uniform_files(tmp_path)
    assert files == {"preprocessor_config.json": settings, "processor_config.json": {}}


def test_a_processor_without_images_names_both_files(tmp_path: Path) -> None:
    source = save_as_version_5(write_tiny_vlm(tmp_path / "source"))
    write_json(source / "processor_config.json", {"processor_class": "Qwen2_5_VLProcessor"})
    message = "no preprocessor_config.json; .* or processor_config.json"
    with pytest.raises(GranAlignError, match=message):
        read_vlm(source)
    # The remedy works: the file, taken from another copy.
    write_json(source / "preprocessor_config.json", PREPROCESSOR)
    assert read_vlm(source, IMAGE_SIZE).pixels.resample == 3


def test_special_tokens_of_version_5(tmp_path: Path) -> None:
    settings = {"extra_special_tokens": ["<a>", "<b>"], "tokenizer_class": "Qwen2Tokenizer"}
    write_json(tmp_path / "tokenizer_config.json", settings)
    with uniform_folder(tmp_path) as folder:
        uniform = read(folder / "tokenizer_config.json")
    assert uniform == {
        "additional_special_tokens": ["<a>", "<b>"],
        "tokenizer_class": "Qwen2Tokenizer",
    }


def test_another_rotation_of_the_vision_tower(tmp_path: Path) -> None:
    source = save_as_version_5(write_tiny_vlm(tmp_path / "source"))
    config = read(source / "config.json")
    config["vision_config"]["rope_parameters"]["rope_theta"] = 500.0
    write_json(source / "config.json", config)
    with pytest.raises(GranAlignError, match="in vision_config, expected rope_type 'axial'"):
        read_vlm(source)
