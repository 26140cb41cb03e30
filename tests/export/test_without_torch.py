"""Exports where neither torch nor transformers is installed, up to a search with the results."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reference_clip import embed_images, embed_texts
from helpers.reference_llm import reference_logits
from helpers.reference_vlm import reference_image
from helpers.tiny_bert import edit_json, write_tiny_bert
from helpers.tiny_clip import LEVELS, random_clip, random_frames, write_clip_source
from helpers.tiny_llm import CONFIGS, LLAMA, prompts_of, write_tiny_llm
from helpers.tiny_vlm import IMAGE_SIZE, PUBLISHED, frames_of, write_tiny_vlm
from helpers.videos import constant, render
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from granalign_fast import cli
from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export.checks import encoder as encoder_check
from granalign_fast.export.checks.transformers import NOT_COMPARED
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.graphs.decoder import DecoderGraph
from granalign_fast.export.llm import export_llm
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import read_manifest
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "transformers", "optimum"):
        monkeypatch.setitem(sys.modules, module, None)


def write_vlm(folder: Path) -> Path:
    """Write a tiny vision-language model that can answer yes and no, for recognition."""
    write_tiny_vlm(folder, PUBLISHED)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


SOURCES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "sentence-encoder": (write_tiny_bert, ["fp32", "fp16", "int8"]),
    "clip": (lambda folder: write_clip_source(folder, "clip"), ["fp32", "fp16"]),
    "siglip": (lambda folder: write_clip_source(folder, "siglip"), ["fp32", "fp16"]),
    "vlm": (write_vlm, ["fp32", "fp16", "int4"]),
    **{
        name: (lambda folder, name=name: write_tiny_llm(folder, CONFIGS[name]), ["fp32", "int4"])
        for name in sorted(CONFIGS)
    },
}
EXPORTS: dict[str, Callable[..., Path]] = {
    "sentence-encoder": export_sentence_encoder,
    "clip": export_clip,
    "siglip": export_clip,
    "vlm": export_vlm,
}


@pytest.mark.parametrize(
    ("name", "precision"), [(name, p) for name, (_, ps) in SOURCES.items() for p in ps]
)
def test_every_written_family(tmp_path: Path, name: str, precision: str) -> None:
    source, steps = SOURCES[name][0](tmp_path / "source"), list[str]()
    parts: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"image_size": IMAGE_SIZE} if name == "vlm" else {}
    EXPORTS.get(name, export_llm)(
        source,
        tmp_path / "out",
        precision=precision,
        progress=steps.append,
        written=lambda *part: parts.append(part),
        **options,
    )
    manifest = read_manifest(tmp_path / "out")
    assert manifest.comparison == NOT_COMPARED
    assert manifest.validation == manifest.self_check and len(manifest.self_check) > 1
    assert all(np.isfinite(list(manifest.self_check.values())))
    assert "comparing with the source" not in steps and any("checking" in step for step in steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert {"manifest.json", *manifest.files} == {p.name for p in (tmp_path / "out").iterdir()}
    # Progress goes through all layers and ends with all bytes.
    done = [so_far for _, so_far, _ in parts]
    assert done == sorted(done) and done[-1] == parts[-1][2] > 0
    assert {"layer 1 of 2", "layer 2 of 2"} <= {
        part.replace("image ", "").replace("text ", "").replace("of 3", "of 2")
        for part, _, _ in parts
    }


def test_what_is_written_is_the_source_model(tmp_path: Path) -> None:
    """The runtime against references that share no code with the export or its checks."""
    llm = export_llm(write_tiny_llm(tmp_path / "a", LLAMA), tmp_path / "llm")
    (prompt,) = prompts_of(9)
    expected = reference_logits(tmp_path / "a", prompt)
    np.testing.assert_allclose(CausalLM(llm).logits([prompt])[0], expected, atol=1e-4, rtol=0)
    vlm = export_vlm(write_tiny_vlm(tmp_path / "b"), tmp_path / "vlm", image_size=IMAGE_SIZE)
    frame = frames_of(1)
    got = open_session(vlm / "vision.onnx")(frames=frame)["image_embeds"][0]
    np.testing.assert_allclose(got, reference_image(tmp_path / "b", frame[0]), atol=1e-4, rtol=0)
    for family in ("clip", "siglip"):
        image, text, weights = random_clip(family)
        out = export_clip(write_clip_source(tmp_path / family, family), tmp_path / f"{family}-out")
        encoder = FrameEncoder(out)
        frames = random_frames([(40, 50), (60, 37), (37, 37)])
        bytes_ = np.stack([encoder.preprocessing(frame) for frame in frames])
        pixels = (bytes_ / 255 - np.array(LEVELS.mean)) / np.array(LEVELS.std)
        expected = embed_images(image, weights, family, pixels.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(encoder.encode_frames(frames), expected, atol=1e-5, rtol=0)
        ids = Tokenizer.from_file(str(out / "tokenizer.json")).encode("a b c").ids
        expected = embed_texts(text, weights, family, np.array([ids]))
        np.testing.assert_allclose(encoder.encode_texts(["a b c"]), expected, atol=1e-5, rtol=0)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["granalign", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


@pytest.mark.parametrize("frames", ["clip", "siglip"])
def test_exports_an_index_and_a_search(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    frames: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models, sources = tmp_path / "models", tmp_path / "sources"
    longer = LLAMA | {"max_position_embeddings": 4096}
    write_tiny_bert(sources / "sentences")
    write_clip_source(sources / "frames", frames)
    write_tiny_llm(sources / "llm", longer)
    write_vlm(sources / "vlm")
    for kind, source, more in (
        ("sentence-encoder", "sentences", []),
        ("clip", "frames", []),
        ("llm", "llm", ["--precision", "int4"]),
        ("vlm", "vlm", ["--image-size", "84x140"]),
    ):
        run(monkeypatch, "export", kind, sources / source, models / kind, *more)
        told = capsys.readouterr()
        assert told.out == f"written and checked against NumPy: {models / kind}\n"
        (line,) = [line for line in told.err.splitlines() if "not compared" in line]
        assert "[export]" in line and "--check" in line
    video = render(tmp_path / "street.mp4", constant(25, 9), gop=25, bframes=0)
    run(monkeypatch, "index", video, "--out", tmp_path / "index", "--models", models)
    capsys.readouterr()
    run(
        *(monkeypatch, "search", tmp_path / "index", "a dog runs", "--models", models),
        *("--format", "json"),
    )
    found = json.loads(capsys.readouterr().out)
    assert found and "moments" in json.dumps(found)


def test_a_comparison_that_is_asked_for(tmp_path: Path) -> None:
    for name, export in {**EXPORTS, "llm": export_llm}.items():
        source = SOURCES.get(name, SOURCES["llama-gqa-untied"])[0](tmp_path / name)
        with pytest.raises(MissingExtraError, match=r"comparing .* needs the extra \[export\]"):
            export(source, tmp_path / "out", check=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("operator", ["TensorScatter", "Attention"])
def test_a_wrong_static_graph_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str, precision: str
) -> None:
    add, dropped = DecoderGraph._add, {"TensorScatter": "write_indices"}.get(operator)

    def without_last(
        self: Any, kind: str, inputs: list[str], outputs: list[str], **more: Any
    ) -> None:
        if kind == operator and inputs[-1] == (dropped or "cached_tokens"):
            inputs = inputs[:-1]
        add(self, kind, inputs, outputs, **more)

    monkeypatch.setattr(DecoderGraph, "_add", without_last)
    source = write_tiny_llm(tmp_path / "source")
    with pytest.raises(GranAlignError, match=r"\): static: |a static step: "):
        export_llm(source, tmp_path / "out", precision=precision)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["sentence-encoder", "clip", "siglip"])
def test_a_large_encoder_is_checked_in_its_first_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write, precisions = SOURCES[name]
    source = write(tmp_path / "source")
    whole = EXPORTS[name](source, tmp_path / "whole")
    monkeypatch.setattr(encoder_check, "_SMALL", 1000)
    monkeypatch.setattr(encoder_check, "_FIRST", 1)
    for precision in precisions:
        out = EXPORTS[name](source, tmp_path / precision, precision=precision)
        assert read_manifest(out).self_check["layers"] == 1
    for path in whole.iterdir():
        if path.name != "manifest.json":
            assert (tmp_path / "fp32" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["clip", "llama-gqa-untied", "vlm"])
def test_weights_that_float16_cannot_hold(tmp_path: Path, name: str) -> None:
    source = SOURCES[name][0](tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    last = [key for key in weights if key.endswith(("down_proj.weight", "fc2.weight"))][-1]
    weights[last][1, 2] = 1e6
    save_file(weights, source / "model.safetensors")
    options: dict[str, Any] = {"image_size": IMAGE_SIZE} if name == "vlm" else {}
    with pytest.raises(GranAlignError, match=r"got values of up to 1e\+06, expected at most 65504"):
        EXPORTS.get(name, export_llm)(source, tmp_path / "out", precision="fp16", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["clip", "llama-gqa-untied", "vlm"])
def test_weights_that_are_no_numbers(tmp_path: Path, name: str) -> None:
    """The last layer is not among those that the self-check runs; its weights are checked too."""
    source = SOURCES[name][0](tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    last = [key for key in weights if key.endswith(("down_proj.weight", "fc2.weight"))][-1]
    weights[last][1, 2] = np.nan
    save_file(weights, source / "model.safetensors")
    options: dict[str, Any] = {"image_size": IMAGE_SIZE} if name == "vlm" else {}
    with pytest.raises(GranAlignError, match=rf"tensor {last} holds NaN"):
        EXPORTS.get(name, export_llm)(source, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_bias_that_transformers_would_ignore(tmp_path: Path) -> None:
    source = write_tiny_llm(tmp_path / "source")
    edit_json(source / "config.json", attention_bias=True)
    with pytest.raises(GranAlignError, match=r"no tensor 'model.layers.0.self_attn.q_proj.bias'"):
        export_llm(source, tmp_path / "out")
    edit_json(source / "config.json", attention_bias=False)
    weights = load_file(source / "model.safetensors")
    rows = len(weights["model.layers.2.self_attn.q_proj.weight"])
    weights["model.layers.2.self_attn.q_proj.bias"] = np.ones(rows, np.float32)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(GranAlignError, match=r"got the tensor model.layers.2.self_attn.q_proj.b"):
        export_llm(source, tmp_path / "out")


def test_the_first_use_of_a_sentence_encoder(tmp_path: Path) -> None:
    from granalign_fast.pipeline import SentenceEncoder

    source = write_tiny_bert(tmp_path / "source")
    encoder = SentenceEncoder(source, cache_dir=tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert read_manifest(folder).comparison == NOT_COMPARED
    got = OnnxSentenceEncoder(folder).encode(["a b"])
    np.testing.assert_array_equal(encoder.encode(["a b"]), got)
    shutil.rmtree(folder)
