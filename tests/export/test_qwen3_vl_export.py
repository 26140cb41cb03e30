"""Exports of Qwen3-VL without torch: refused sources, sizes, and the self-check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_bert import edit_json
from helpers.tiny_qwen3_vl import CONFIGS, GQA_TIED, IMAGE_SIZE, write_tiny_qwen3_vl

from granalign_fast.errors import GranAlignError
from granalign_fast.export.families import FAMILIES, read_vlm
from granalign_fast.export.graphs.qwen3_tower import Qwen3Tower, interpolated
from granalign_fast.export.graphs.vlm_decoder import VlmDecoderGraph
from granalign_fast.export.llm import export_llm
from granalign_fast.export.specs import VLM_ARCHITECTURES
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models.manifest import VlmManifest


def vision(**values: Any) -> Callable[[Path], None]:
    return lambda source: edit_json(
        source / "config.json", vision_config=GQA_TIED["vision_config"] | values
    )


def text(**values: Any) -> Callable[[Path], None]:
    return lambda source: edit_json(
        source / "config.json", text_config=GQA_TIED["text_config"] | values
    )


def rope(**values: Any) -> Callable[[Path], None]:
    return text(rope_scaling=GQA_TIED["text_config"]["rope_scaling"] | values)


BAD_SOURCES = [
    (vision(hidden_act="gelu"), "hidden_act 'gelu' in vision_config"),
    (vision(num_heads=5), "5 heads of 32"),
    (vision(num_position_embeddings=50), "num_position_embeddings 50, expected a square"),
    (vision(num_position_embeddings=36), r"pos_embed.weight of shape \(49, 32\)"),
    (vision(deepstack_visual_indexes=[2, 0]), r"deepstack_visual_indexes \[2, 0\], expected asc"),
    (vision(deepstack_visual_indexes=[4]), "ascending numbers of the 4 layers"),
    (vision(deepstack_visual_indexes=3), "deepstack_visual_indexes 3"),
    (vision(deepstack_visual_indexes=[0, 1, 2]), "no tensor 'visual.deepstack_merger_list.2"),
    (vision(deepstack_visual_indexes=[0, 1, 2, 3]), "4 deepstack_visual_indexes for 4 layers"),
    (vision(out_hidden_size=32), "out_hidden_size 32"),
    (vision(patch_size=8), "patch_size 16, expected 8"),
    (text(rope_theta=None), "rope_theta None"),
    (text(head_dim=20), r"mrope_section \[4, 4, 4\] for heads of 20"),
    (text(layer_types=["sliding_attention"] * 4), "without sliding windows"),
    (rope(mrope_section=[2, 5, 5]), "that can be interleaved"),
    (rope(mrope_interleaved=False), "mrope_interleaved False, expected true"),
    (rope(mrope_section=[12]), "three numbers"),
    (lambda s: edit_json(s / "config.json", video_token_id=999), "video_token_id 999"),
    (lambda s: edit_json(s / "config.json", model_type="qwen2_5_vl"), "of type 'qwen2_5_vl'"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_SOURCES)
def test_bad_sources(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    source = write_tiny_qwen3_vl(tmp_path / "source")
    spoil(source)
    with pytest.raises(GranAlignError, match=message) as error:
        read_vlm(source, IMAGE_SIZE)
    assert "\n" not in str(error.value)


def test_rope_theta_has_no_default(tmp_path: Path) -> None:
    """The two versions of transformers have different ones."""
    source = write_tiny_qwen3_vl(tmp_path / "source")
    lean = {key: value for key, value in GQA_TIED["text_config"].items() if key != "rope_theta"}
    edit_json(source / "config.json", text_config=lean)
    with pytest.raises(GranAlignError, match="got no rope_theta"):
        read_vlm(source, IMAGE_SIZE)


def test_sizes_are_multiples_of_a_token(tmp_path: Path) -> None:
    source = write_tiny_qwen3_vl(tmp_path / "source")
    with pytest.raises(GranAlignError, match="multiples of 32 pixels, such as 384x640"):
        read_vlm(source, (336, 560))
    assert read_vlm(source).image_size == (384, 640)


def test_clips_that_do_not_fit_the_context_are_left_out(tmp_path: Path) -> None:
    source = write_tiny_qwen3_vl(tmp_path / "source")
    assert list(read_vlm(source, IMAGE_SIZE).layouts) == [1, 2, 4, 6]
    assert list(read_vlm(source, (384, 640)).layouts) == [1, 2, 4]  # 3 x 240 of 768 tokens


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_self_check_covers_features_and_clips(
    tmp_path: Path, name: str, precision: str
) -> None:
    source = write_tiny_qwen3_vl(tmp_path / "source", CONFIGS[name])
    out = export_vlm(
        source, tmp_path / "out", precision=precision, image_size=IMAGE_SIZE, check=False
    )
    measured = VlmManifest.read(out).self_check
    assert measured["layers"] == len(CONFIGS[name]["vision_config"]["deepstack_visual_indexes"]) + 1
    assert measured["image_relative_error"] > 0


def shifted_features(patch: pytest.MonkeyPatch) -> None:
    add = VlmDecoderGraph._with_features

    def late(self: Any, x: str, layer: int) -> str:
        return add(self, x, layer - 1) if 0 < layer < self.shape.layers - 1 else x

    patch.setattr(VlmDecoderGraph, "_with_features", late)


def plain_order(patch: pytest.MonkeyPatch) -> None:
    """Write graphs whose rotary pairs are not interleaved."""
    make = VlmDecoderGraph.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        make(self, *args, **more)
        self.axes = tuple(sorted(self.axes))

    patch.setattr(VlmDecoderGraph, "__init__", init)


def swapped_mergers(patch: pytest.MonkeyPatch) -> None:
    merge = Qwen3Tower._deepstack
    others = {"0": "1", "1": "0"}
    patch.setattr(
        Qwen3Tower,
        "_deepstack",
        lambda self, x, name: merge(self, x, name[:-1] + others[name[-1]]),
    )


def transposed_positions(patch: pytest.MonkeyPatch) -> None:
    def turned(table: Any, rows: int, columns: int) -> Any:
        side = round(len(table) ** 0.5)
        across = table.reshape(side, side, -1).swapaxes(0, 1).reshape(len(table), -1)
        return interpolated(across, rows, columns)

    patch.setattr("granalign_fast.export.graphs.qwen3_tower.interpolated", turned)


def exact_gelu(patch: pytest.MonkeyPatch) -> None:
    op = Qwen3Tower._op

    def without(self: Any, kind: str, *inputs: str, **attributes: Any) -> str:
        attributes.pop("approximate", None)
        return op(self, kind, *inputs, **attributes)

    patch.setattr(Qwen3Tower, "_op", without)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shifted_features, "whole: .*after a prefix: .*static: .*a static step: "),
        (plain_order, "whole: .*after a prefix: .*static: "),
        (swapped_mergers, "deepstack of vision.onnx: .*deepstack of clips.onnx: "),
        (transposed_positions, "vision.onnx: .*clips.onnx: "),
        (exact_gelu, "vision.onnx: .*patches.onnx: "),
    ],
)
def test_the_self_check_finds_wrong_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None], message: str
) -> None:
    source = write_tiny_qwen3_vl(tmp_path / "source")
    spoil(monkeypatch)
    with pytest.raises(GranAlignError, match=message) as error:
        export_vlm(source, tmp_path / "out", image_size=IMAGE_SIZE, check=False)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_every_family_has_an_entry() -> None:
    assert FAMILIES.keys() == VLM_ARCHITECTURES.keys()


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_vision_language_model_is_no_language_model(tmp_path: Path, precision: str) -> None:
    source = write_tiny_qwen3_vl(tmp_path / "source")
    with pytest.raises(GranAlignError, match=r"got a vision-language model .*export vlm"):
        export_llm(source, tmp_path / "out", precision=precision, check=False)
    assert not (tmp_path / "out").exists()
