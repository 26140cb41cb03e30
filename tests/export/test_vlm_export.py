"""Exports of vision-language models without torch: refused sources, graphs, NumPy's reference."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reference_vlm import reference_image, reference_vlm_logits
from helpers.tiny_bert import config, edit_json, pickled_weights, write_json
from helpers.tiny_llm import cut
from helpers.tiny_vlm import (
    CONFIGS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    PAD,
    SAVED,
    VISION,
    VISION_END,
    VISION_START,
    frames_of,
    write_tiny_vlm,
    write_unchecked_vlm,
)
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export.families import read_vlm
from granalign_fast.export.graphs.qwen2_5_tower import window_order
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.manifest import VlmManifest

Exported = Callable[..., Path]

GRIDS = {
    (224, 224): [16],  # whole windows
    (168, 280): [16, 8, 4],  # the right and the lower edge both cut to 8
    (84, 140): [12, 3],
    (112, 112): [16],
    (28, 56): [2],
}
"""Image sizes, with the tokens of one window for each size of window."""


def vision(**values: Any) -> Callable[[Path], None]:
    return config(vision_config=VISION | values)


def pixels(**values: Any) -> Callable[[Path], None]:
    return lambda source: edit_json(source / "preprocessor_config.json", **values)


def lost(name: str) -> Callable[[Path], None]:
    def spoil(source: Path) -> None:
        weights = load_file(source / "model.safetensors")
        del weights[name]
        save_file(weights, source / "model.safetensors")

    return spoil


BAD_SOURCES = [
    (config(architectures=["Qwen2VLForConditionalGeneration"]), "'Qwen2VLForConditional"),
    (config(model_type="qwen2_vl"), "of type 'qwen2_vl'"),
    (config(architectures=None), "architecture 'none'"),
    (config(text_config=[1]), "expected a JSON object"),
    (config(use_sliding_window=True), "use_sliding_window True"),
    (config(layer_types=["full_attention", "sliding_attention"]), "without sliding windows"),
    (config(hidden_act="gelu"), "hidden_act 'gelu'"),
    (config(rope_parameters="mrope"), "rope_parameters 'mrope', expected an object"),
    (config(rope_scaling=None), "rope_scaling None"),
    (config(rope_scaling={"type": "yarn", "mrope_section": [2, 3, 3]}), "'yarn'"),
    (config(rope_scaling={"type": "mrope", "mrope_section": [2, 6]}), "three numbers"),
    (config(rope_scaling={"type": "mrope", "mrope_section": [2, 3, 4]}), "half a head"),
    (config(head_dim=8, rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]}), "make up"),
    (config(image_token_id=320), "image_token_id 320"),
    (config(max_position_embeddings=40), "15 tokens, expected at most 8"),
    (config(vision_config=None), "vision_config None"),
    (vision(hidden_act="quick_gelu"), "hidden_act 'quick_gelu' in vision_config"),
    (vision(in_chans=1), "in_chans 1"),
    (vision(num_heads=5), "5 heads of 32"),
    (vision(window_size=20), "window_size 20"),
    (vision(depth=0), "depth 0"),
    (vision(fullatt_block_indexes=3), "fullatt_block_indexes 3"),
    (vision(out_hidden_size=32), "out_hidden_size 32"),
    (pixels(image_processor_type="CLIPImageProcessor"), "'CLIPImageProcessor'"),
    (pixels(patch_size=16), "patch_size 16"),
    (pixels(image_mean=[0.5]), r"image_mean \[0.5\]"),
    (pixels(image_mean=None), "image_mean None"),
    (pixels(image_std=[0.5, 0.5, 0]), "no 0 in it"),
    (pixels(rescale_factor="1/255"), "rescale_factor '1/255'"),
    (pixels(resample="bicubic"), "resample 'bicubic'"),
    (lambda source: (source / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    (lambda source: (source / "config.json").unlink(), "no config.json"),
    (lambda source: (source / "tokenizer.json").unlink(), "no tokenizer.json"),
    (lambda source: cut(source / "model.safetensors"), "torn"),
    (lost("visual.blocks.2.attn.qkv.bias"), "no tensor 'visual.blocks.2.attn.qkv.bias'"),
    (lost("model.layers.1.mlp.up_proj.weight"), "no tensor 'model.layers.1.mlp.up_proj.weight'"),
    (pickled_weights, "pickled and never opened"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_SOURCES)
def test_bad_sources(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    source = write_tiny_vlm(tmp_path / "source")
    spoil(source)
    with pytest.raises(GranAlignError, match=message) as error:
        write_unchecked_vlm(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(0, 28), (28, -28), (30, 28), (28,), (28.0, 28), (28, 28, 28)])
def test_bad_image_sizes(tmp_path: Path, size: Any) -> None:
    with pytest.raises(GranAlignError, match="positive multiples of 28 pixels"):
        read_vlm(write_tiny_vlm(tmp_path / "source"), size)


def test_an_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match=r"expected one of \['fp16', 'fp32', 'int4'\]"):
        export_vlm(tmp_path, tmp_path / "out", precision="int8")


def test_a_comparison_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"\[export\]"):
        export_vlm(write_tiny_vlm(tmp_path / "source"), tmp_path / "out", check=True)


@pytest.mark.parametrize("size", ["336", "x", "336x560x3", "-28x28"])
def test_the_command_wants_height_and_width(
    size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from granalign_fast.cli import main

    command = ["granalign", "export", "vlm", "source", "out", f"--image-size={size}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert f"--image-size: got {size!r}, expected HEIGHTxWIDTH such as 448x672" in said


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (8, 12), (6, 10), (3, 5), (1, 9), (5, 4)])
def test_windows_of_equal_size_are_adjacent(grid: tuple[int, int]) -> None:
    order, kinds = window_order(grid, 4)
    assert sorted(order) == list(range(grid[0] * grid[1])) and len(kinds) <= 4
    sizes = np.repeat([size for _, size in kinds], [count for count, _ in kinds])
    assert len({size for _, size in kinds}) == len(kinds)
    row, column = np.divmod(order, grid[1])
    windows = np.split(np.stack([row // 4, column // 4], axis=1), np.cumsum(sizes)[:-1])
    assert len({tuple(window[0]) for window in windows}) == len(windows)
    assert all((window == window[0]).all() for window in windows)


@pytest.mark.parametrize("size", list(GRIDS))
def test_windows_need_neither_mask_nor_padding(tmp_path: Path, size: tuple[int, int]) -> None:
    import onnx

    out = write_unchecked_vlm(tmp_path, image_size=size)
    for file in ("vision.onnx", "patches.onnx"):
        onnx.checker.check_model(out / file, full_check=True)
        graph = onnx.load(out / file, load_external_data=False).graph
        attentions = [node for node in graph.node if node.op_type == "Attention"]
        full = len(VISION["fullatt_block_indexes"])
        assert len(attentions) == full + (VISION["depth"] - full) * len(GRIDS[size])
        assert all(len(node.input) == 3 for node in attentions)
        assert not any(node.op_type in ("Pad", "Softmax") for node in graph.node)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_graphs_share_their_weights(tmp_path: Path, name: str) -> None:
    import onnx

    source, out = tmp_path / "source", write_unchecked_vlm(tmp_path, CONFIGS[name])
    stored: dict[str, set[tuple[Any, ...]]] = {"vision.onnx_data": set(), "model.onnx_data": set()}
    for file in ("vision.onnx", "patches.onnx", "embedding.onnx", "model.onnx", "static.onnx"):
        for tensor in onnx.load(out / file, load_external_data=False).graph.initializer:
            if tensor.external_data:
                entry = {part.key: part.value for part in tensor.external_data}
                stored[entry["location"]].add((tensor.name, int(entry["length"])))
    weights = load_file(source / "model.safetensors")
    small = sum(v.nbytes for v in weights.values() if v.nbytes < 1024)
    written = sum(length for tensors in stored.values() for _, length in tensors)
    # The file also holds the first weight summed over both frames, and cosine and sine of every
    # position. Constants are small.
    patch = weights["visual.patch_embed.proj.weight"].nbytes // 2
    manifest = VlmManifest.read(out)
    rotary = 2 * manifest.context * manifest.head_dim // 2 * 4
    expected = sum(v.nbytes for v in weights.values()) - small + patch + rotary
    assert 0 <= written - expected < 10000


def test_the_manifest_holds_what_readers_need(tmp_path: Path) -> None:
    record = json.loads((write_unchecked_vlm(tmp_path, SAVED) / "manifest.json").read_text())
    assert record["kind"] == "vlm" and record["eos_ids"] == [EOS, PAD]
    assert record["architecture"] == "Qwen2_5_VLForConditionalGeneration"
    assert (record["layers"], record["kv_heads"], record["head_dim"]) == (2, 6, 16)
    assert (record["image_size"], record["resample"], record["hidden"]) == ([84, 140], 3, 96)
    assert list(record["layouts"]) == ["1", "2", "4", "6"]
    assert record["layouts"]["1"]["pieces"] == [{"token": IMAGE, "grid": [1, 3, 5]}]
    assert set(record["files"]) == {
        "clips.onnx",
        "config.json",
        "embedding.onnx",
        "generation_config.json",
        "model.onnx",
        "model.onnx_data",
        "patches.onnx",
        "preprocessor_config.json",
        "static.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
        "vision.onnx",
        "vision.onnx_data",
    }


def test_the_hash_covers_what_shapes_an_answer(tmp_path: Path) -> None:
    source = write_tiny_vlm(tmp_path / "source")
    hashes = [read_vlm(source, size).sha256 for size in (IMAGE_SIZE, IMAGE_SIZE, (28, 28))]
    assert hashes[0] == hashes[1]
    pixels(image_mean=[0.5, 0.5, 0.5])(source)
    hashes.append(read_vlm(source, IMAGE_SIZE).sha256)
    write_json(source / "chat_template.json", {"chat_template": "{{ messages }}"})
    hashes.append(read_vlm(source, IMAGE_SIZE).sha256)
    assert len(set(hashes)) == 4
    assert "chat_template.json" in VlmManifest.read(write_unchecked_vlm(tmp_path)).files


def renamed(source: Path, prefixes: dict[str, str]) -> None:
    """Save the tensors under other names."""
    weights = load_file(source / "model.safetensors")
    for old, new in prefixes.items():
        names = [name for name in weights if name.startswith(old)]
        weights |= {new + name.removeprefix(old): weights.pop(name) for name in names}
    save_file(weights, source / "model.safetensors")


def test_newer_names_of_tensors(tmp_path: Path) -> None:
    for name in ("old", "new"):
        write_tiny_vlm(tmp_path / name / "source", SAVED)
    prefixes = {"model.": "model.language_model.", "visual.": "model.visual."}
    renamed(tmp_path / "new" / "source", prefixes)
    old, new = (write_unchecked_vlm(tmp_path / name) for name in ("old", "new"))
    for file in ("model.onnx_data", "vision.onnx_data", "model.onnx", "vision.onnx"):
        assert (old / file).read_bytes() == (new / file).read_bytes()


@pytest.mark.parametrize("size", list(GRIDS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_frames_and_logits_are_those_of_numpy(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    source, out = tmp_path / "source", write_unchecked_vlm(tmp_path, CONFIGS[name], image_size=size)
    frames = frames_of(3, size)
    embeds = open_session(out / "vision.onnx")(frames=frames)["image_embeds"]
    expected = np.stack([reference_image(source, frame) for frame in frames])
    assert np.abs(expected[0] - expected[1]).max() > 0.5, "frames must differ to mean anything"
    np.testing.assert_allclose(embeds, expected, atol=1e-4, rtol=0)

    manifest = VlmManifest.read(out)
    ids = [7, 8, VISION_START, *[IMAGE] * manifest.image_tokens, VISION_END, 9, 10, 11]
    row = open_session(out / "embedding.onnx")(input_ids=np.array([ids]))["inputs_embeds"]
    row[0, np.array(ids) == IMAGE] = embeds[0]
    prompt = manifest.layout().expand([7, 8, VISION_START, IMAGE, VISION_END, 9, 10, 11])
    assert prompt.ids == ids
    positions = prompt.positions[:, None]
    expected = reference_vlm_logits(source, ids, frames[:1])
    count = len(ids)
    growing = np.empty((1, manifest.kv_heads, 0, manifest.head_dim), np.float32)
    static = np.zeros((1, count + 3, manifest.kv_heads * manifest.head_dim), np.float32)
    for graph, cache, inputs in (
        (
            "model.onnx",
            growing,
            {"inputs_embeds": row, "attention_mask": np.ones((1, count), np.int64)},
        ),
        (
            "static.onnx",
            static,
            {
                "input_ids": np.array([ids]),
                "image_embeds": embeds[:1],
                "image_at": np.array([3]),
                "write_indices": np.array([0]),
                "cached_tokens": np.array([count]),
                "last": np.eye(count, dtype=np.float32)[None, -1:],
            },
        ),
    ):
        session = open_session(out / graph)
        past = {name: cache for name in session.inputs if name.startswith("past")}
        got = session(position_ids=positions, **inputs, **past)["logits"]
        assert got.shape == (1, 1, manifest.vocabulary)
        np.testing.assert_allclose(got[0, 0], expected, atol=1e-4, rtol=0)
