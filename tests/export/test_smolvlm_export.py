"""Exports of SmolVLM2 without torch: refused sources, the self-check, graphs, both layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.layouts import save_as_version_5
from helpers.tiny_bert import edit_json
from helpers.tiny_smolvlm import (
    CONFIGS,
    FAKE,
    GLOBAL,
    IMAGE,
    TEXT,
    VISION,
    shift_positions,
    side_of,
    tokens_of,
    transpose_tokens,
    write_tiny_smolvlm,
)
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.families import read_vlm
from granalign_fast.export.sources.families import smolvlm
from granalign_fast.export.specs import VLM_PRECISIONS
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models.image_layout import VisualRun
from granalign_fast.models.manifest import VlmManifest


def config(**values: Any) -> Callable[[Path], None]:
    return lambda source: edit_json(source / "config.json", **values)


def vision(**values: Any) -> Callable[[Path], None]:
    return config(vision_config=VISION | values)


def text(**values: Any) -> Callable[[Path], None]:
    return config(text_config=TEXT | values)


def pixels(**values: Any) -> Callable[[Path], None]:
    return lambda source: edit_json(source / "preprocessor_config.json", **values)


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change a tensor; None deletes it."""

    def spoil(source: Path) -> None:
        weights = load_file(source / "model.safetensors")
        array = change(weights.pop(name))
        save_file(weights | ({} if array is None else {name: array}), source / "model.safetensors")

    return spoil


POSITIONS = "model.vision_model.embeddings.position_embedding.weight"
BAD_SOURCES: list[tuple[Callable[[Path], None], str]] = [
    (config(architectures=["Idefics3ForConditionalGeneration"]), "'Idefics3ForConditional"),
    (config(text_config=None), "text_config None, expected a JSON object"),
    (config(vision_config=[]), r"vision_config \[\], expected a JSON object"),
    (config(scale_factor=3), "8 patches in a row and scale_factor 3"),
    (config(scale_factor=0), "scale_factor 0"),
    (config(image_token_id=320), "image_token_id 320"),
    (config(image_token_id=300), "image_token_id 300, which the tokenizer does not write"),
    (text(model_type="qwen2"), "model_type 'qwen2' in text_config, expected 'llama'"),
    (text(hidden_act="gelu"), "hidden_act 'gelu'"),
    (text(rope_scaling={"rope_type": "yarn"}), "'yarn'"),
    (vision(hidden_act="relu"), "activation 'relu'"),
    (vision(num_channels=1), "num_channels: got 1"),
    (vision(num_attention_heads=5), "5 heads of 24"),
    (vision(patch_size=64), "0 patches in a row"),
    (vision(layer_norm_eps="small"), "layer_norm_eps 'small'"),
    (vision(num_hidden_layers=None), "num_hidden_layers None"),
    (vision(intermediate_size=41), "fc1.weight of shape"),
    (pixels(image_processor_type="CLIPImageProcessor"), "'CLIPImageProcessor'"),
    (pixels(max_image_size={"longest_edge": 64}), "max_image_size .*64.*, expected 32 pixels"),
    (pixels(max_image_size="large"), "max_image_size 'large'"),
    (pixels(image_mean=[0.5]), r"image_mean \[0.5\]"),
    (pixels(resample=9), "resample 9"),
    (
        lambda source: edit_json(source / "processor_config.json", image_seq_len=64),
        "image_seq_len 64, expected 4",
    ),
    (lambda source: (source / "processor_config.json").unlink(), "image_seq_len 169, expected 4"),
    (lambda source: (source / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    (
        changed(POSITIONS, lambda array: array[:-1]),
        r"position_embedding.weight of shape \(63, 24\)",
    ),
    (changed(POSITIONS, lambda array: None), "no tensor 'visual.embeddings.position_embedding"),
    (
        changed("model.connector.modality_projection.proj.weight", lambda a: a[:, :-1].copy()),
        r"modality_projection.weight of shape \(60, 383\)",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_SOURCES)
def test_bad_sources(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    source = write_tiny_smolvlm(tmp_path / "source")
    spoil(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_vlm(source, tmp_path / "out", check=False)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("size", [(32, 65), (160, 32), (32, 160), (16, 16), (0, 32), (32,)])
def test_sizes_that_no_tiles_make(tmp_path: Path, size: Any) -> None:
    source = write_tiny_smolvlm(tmp_path / "source")
    with pytest.raises(GranAlignError, match=r"expected 32x32, .* up to 128x128.*; leave the size"):
        read_vlm(source, size)


def test_frames_have_the_size_of_the_tower_or_of_tiles(tmp_path: Path) -> None:
    """Another size of single frames is another model: its answers and prefixes have other names."""
    source = write_tiny_smolvlm(tmp_path / "source")
    plain, same, tiled = (read_vlm(source, size) for size in (None, (32, 32), (64, 96)))
    assert plain.image_size == same.image_size == tiled.image_size == (32, 32)
    assert plain.layouts == same.layouts and plain.sha256 == same.sha256 != tiled.sha256
    assert tiled.layouts[1].tiles == (2, 3) and tiled.layouts[1].images == 7
    assert {count: layout.tiles for count, layout in tiled.layouts.items()} == {
        1: (2, 3),
        2: None,
        4: None,
        6: None,
    }
    assert tiled.layouts[2] == plain.layouts[2]


def test_the_self_check_of_tiles(tmp_path: Path) -> None:
    source = write_tiny_smolvlm(tmp_path / "source")
    out = export_vlm(source, tmp_path / "out", image_size=(64, 96), check=False)
    manifest = VlmManifest.read(out)
    assert 0 < manifest.self_check["max_abs_error"] <= VLM_PRECISIONS["fp32"].logits.max_error
    assert manifest.image_size == [32, 32] and manifest.layout().tiles == (2, 3)


@pytest.mark.parametrize("precision", sorted(VLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_self_check_passes(tmp_path: Path, name: str, precision: str) -> None:
    source = write_tiny_smolvlm(tmp_path / "source", CONFIGS[name])
    out = export_vlm(source, tmp_path / "out", precision=precision, check=False)
    manifest, tolerance = VlmManifest.read(out), VLM_PRECISIONS[precision]
    assert manifest.comparison == "not compared with transformers"
    assert 0 < manifest.self_check["image_max_abs_error"] <= tolerance.image.max_error
    assert 0 < manifest.self_check["max_abs_error"] <= tolerance.logits.max_error
    assert manifest.image_size == [side_of(CONFIGS[name])] * 2
    # The prompt of one frame, and of several.
    edge = round(tokens_of(CONFIGS[name]) ** 0.5)
    for frames in (1, 2, 4, 6):
        layout = manifest.layout(frames)
        assert layout.placeholder == (IMAGE,) and layout.axes == 1
        assert layout.content == ("image" if frames == 1 else "images")
        assert layout.pieces == ((FAKE, GLOBAL), VisualRun(IMAGE, (1, edge, edge)), (FAKE,))
        assert layout.visual_tokens == frames * edge**2


@pytest.mark.parametrize("precision", sorted(VLM_PRECISIONS))
@pytest.mark.parametrize("spoil", [transpose_tokens, shift_positions])
def test_the_self_check_finds_a_wrong_tower(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    precision: str,
) -> None:
    source = write_tiny_smolvlm(tmp_path / "source", CONFIGS["tied-gqa-2"])
    spoil(monkeypatch)
    with pytest.raises(GranAlignError, match=r"vision.onnx.*patches.onnx"):
        export_vlm(source, tmp_path / "out", precision=precision, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["untied-gqa-4", "tied-gqa-2"])
def test_both_layouts_are_one_export(tmp_path: Path, name: str) -> None:
    older = write_tiny_smolvlm(tmp_path / "older", CONFIGS[name])
    shutil.copytree(older, tmp_path / "newer")
    save_as_version_5(tmp_path / "newer")
    outs = [
        export_vlm(tmp_path / layout, tmp_path / f"out-{layout}", check=False)
        for layout in ("older", "newer")
    ]
    for file in ("vision.onnx_data", "model.onnx_data", "model.onnx", "vision.onnx"):
        first, second = ((out / file).read_bytes() for out in outs)
        assert first == second, file
    first, second = (VlmManifest.read(out).layouts for out in outs)
    assert first == second


def test_named_tokens_around_an_image(tmp_path: Path) -> None:
    """The tokenizer's settings name the tokens; without names they are the usual ones."""
    source = write_tiny_smolvlm(tmp_path / "source")
    path = source / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"extra_special_tokens": []}))
    assert read_vlm(source).layouts[1].pieces[0] == (FAKE, GLOBAL)
    other = {"global_image_token": "<row_1_col_1>"}
    path.write_text(json.dumps(settings | {"extra_special_tokens": other}))
    assert read_vlm(source).layouts[1].pieces[0] == (FAKE, GLOBAL + 1)


def test_clips_that_leave_no_room_for_text_are_left_out(tmp_path: Path) -> None:
    source = write_tiny_smolvlm(tmp_path / "source")
    config(text_config=TEXT | {"max_position_embeddings": 64})(source)
    assert list(read_vlm(source).layouts) == [1, 2, 4]  # 6 frames take 42 tokens of 64


def test_the_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from granalign_fast.export.sources.layouts import DEFAULTS

    tower = transformers.SmolVLMConfig().vision_config.to_dict()
    assert {key: tower[key] for key in DEFAULTS["smolvlm_vision"]} == DEFAULTS["smolvlm_vision"]
    assert smolvlm._TILE_EDGE == 364
