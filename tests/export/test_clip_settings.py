"""Settings of CLIP and SigLIP as transformers reads the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_bert import edit_json, write_json
from helpers.tiny_clip import CONFIGURATIONS, write_clip_source, write_tiny_clip
from tokenizers import Tokenizer

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.transformers_calls import load_image_processor
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.graphs.clip_shapes import Transformer
from granalign_fast.export.sources import clip
from granalign_fast.export.sources.clip import ClipSource

STACK = {
    "hidden": "hidden_size",
    "wide": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
}
CONFIGS: list[dict[str, Any]] = [
    {"model_type": "clip"},
    {"model_type": "siglip"},
    {"model_type": "clip", "text_config": {}, "vision_config": {"patch_size": 14}},
    {"model_type": "siglip", "text_config": {"num_hidden_layers": 3}, "vision_config": None},
    {
        "model_type": "clip",
        "text_config": {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100},
        "text_config_dict": {"hidden_size": 128, "eos_token_id": 2},
        "vision_config": {"hidden_size": 96},
        "vision_config_dict": None,
        "projection_dim": 20,
    },
    {
        "model_type": "clip",
        "vision_config": {"image_size": 30},
        "vision_config_dict": {"image_size": 60, "hidden_act": "gelu"},
    },
]


@pytest.mark.needs_torch
@pytest.mark.parametrize("config", CONFIGS)
def test_towers_and_their_defaults(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    write_json(tmp_path / "config.json", config)
    expected = transformers.AutoConfig.from_pretrained(tmp_path)
    for name in ("text", "vision"):
        got = clip._tower(config, config["model_type"], name, tmp_path / "config.json")
        stack, theirs = Transformer.from_config(got), getattr(expected, f"{name}_config")
        for ours, key in STACK.items():
            assert getattr(stack, ours) == getattr(theirs, key), key
        keys = ("vocab_size", "max_position_embeddings", "eos_token_id")
        for key in keys if name == "text" else ("image_size", "patch_size", "num_channels"):
            assert got[key] == getattr(theirs, key), key


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("clip", {}),
    ("siglip", {}),
    ("clip", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}),
    ("clip", {"image_processor_type": "CLIPImageProcessorFast", "resample": 2}),
    ("clip", {"image_processor_type": "SiglipImageProcessor", "do_rescale": False}),
    ("siglip", {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.1, 0.2, 0.3]}),
    ("siglip", {"size": {"height": 224, "width": 224}, "do_normalize": False}),
    ("clip", {"size": {"height": 300, "width": 260}, "image_std": [1, 2, 0.5]}),
    ("clip", {"size": {"shortest_edge": 224}, "do_center_crop": None, "crop_size": None}),
]


@pytest.mark.needs_torch
@pytest.mark.parametrize(("family", "settings"), PROCESSORS)
def test_image_processors_and_their_defaults(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    write_json(tmp_path / "config.json", {"model_type": family})
    kind = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[family]
    named = any(key.endswith("_type") for key in settings)
    write_json(
        tmp_path / "preprocessor_config.json",
        settings if named else {"image_processor_type": kind} | settings,
    )
    theirs = load_image_processor(tmp_path)
    ours = clip._Processor.read(tmp_path, family)
    got, levels = ours.preprocessing(224), ours.levels()
    assert got.resample == theirs.resample
    size = dict(theirs.size)
    edges = size.get("shortest_edge"), size.get("height"), size.get("width")
    assert got.resize == tuple(edge for edge in edges if edge)
    assert got.crop == (224, 224)
    assert levels.rescale == (theirs.rescale_factor if theirs.do_rescale else 1.0)
    if theirs.do_normalize:
        assert (list(levels.mean), list(levels.std)) == (
            list(theirs.image_mean),
            list(theirs.image_std),
        )
    else:
        assert (levels.mean, levels.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.needs_torch
@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_padding_of_texts(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    source = write_tiny_clip(tmp_path / "source", name)
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    ours = Tokenizer.from_str(ClipSource.read(source).tokenizer_json)
    padded = CONFIGURATIONS[name]["family"] == "siglip"
    length = CONFIGURATIONS[name]["length"]
    for text in ("a", "the dog", "x " * 100, ""):
        expected = theirs(
            text,
            padding="max_length" if padded else False,
            truncation=True,
            max_length=length,
        )
        assert ours.encode(text).ids == expected["input_ids"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 20}, r"cut to \(20, 20\), expected pixels of 37 x 37"),
        ({"size": {"shortest_edge": 29}}, "resized to {'shortest_edge': 29}"),
        ({"size": {"longest_edge": 40}}, "resized to {'longest_edge': 40}"),
        ({"size": "large"}, "resized to {'shortest_edge': 'large'}"),
        ({"do_resize": False}, "expected pixels of 37 x 37"),
        ({"image_processor_type": "ViTImageProcessor"}, "the image processor ViTImageProcessor"),
        ({"image_mean": [1, 2]}, r"got image_mean \[1, 2\], expected three numbers"),
        ({"image_std": [1, 0, 1]}, "expected no 0 in it"),
        ({"rescale_factor": "1/255"}, "got rescale_factor '1/255', expected"),
        ({"resample": 9}, "got resample 9, expected a filter of Pillow"),
    ],
)
def test_processors_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    source = write_clip_source(tmp_path / "source", "clip")
    edit_json(source / "preprocessor_config.json", **settings)
    with pytest.raises(GranAlignError, match=message) as error:
        ClipSource.read(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": []}, "expected a JSON object"),
        ({"text_config": {"hidden_size": 65}}, "got 8 heads for the text tower's hidden_size 65"),
        ({"vision_config": {"image_size": "large"}}, "got image_size 'large'"),
        (
            {"vision_config": {"num_channels": 4, "image_size": 37}},
            "num_channels: got 4, expected 3",
        ),
        ({"vision_config": {"layer_norm_eps": 0}}, "got layer_norm_eps 0"),
        ({"text_config": {"eos_token_id": None}}, "got eos_token_id None, expected a token id"),
        ({"projection_dim": 0}, "got projection_dim 0"),
    ],
)
def test_towers_that_do_not_fit(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    source = write_clip_source(tmp_path / "source", "clip")
    edit_json(source / "config.json", **config)
    edit_json(source / "preprocessor_config.json", size=400, crop_size=37)
    with pytest.raises(GranAlignError, match=message) as error:
        ClipSource.read(source)
    assert "\n" not in str(error.value)


def test_a_padding_token_that_is_unknown(tmp_path: Path) -> None:
    source = write_clip_source(tmp_path / "source", "siglip")
    write_json(source / "tokenizer_config.json", {"pad_token": {"content": "<none>"}})
    with pytest.raises(GranAlignError, match="got the padding token '<none>'"):
        export_clip(source, tmp_path / "out", check=False)
