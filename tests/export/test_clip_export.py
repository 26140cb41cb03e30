"""CLIP and SigLIP exports against transformers, and the sources that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bert import edit_json, pickled_weights, write_json
from helpers.tiny_clip import (
    CONFIGURATIONS,
    SIZES,
    random_frames,
    write_bare_source,
    write_tiny_clip,
)
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from granalign_fast.cli.app import app
from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export import frame_encoder as module
from granalign_fast.export.checks.frame_encoder import validation_frames
from granalign_fast.export.checks.transformers_calls import load_image_processor, pooled
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.graphs.tensor_file import EmbeddedTensors
from granalign_fast.export.specs import PRECISIONS, Precision, Tolerance
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.frame_encoder import FrameEncoder

TEXTS = ["a dog", "The dog runs.", "", "naïve café 🐕", "x " * 100, "the the the"]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return write_bare_source(tmp_path / "bare")


# Sources that are refused before torch is touched.


def llama(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "llama"})


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def config_is_a_list(folder: Path) -> None:
    write_json(folder / "config.json", [])


def lost_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def torn_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (llama, r"got a 'llama' model, expected one of \['clip', 'siglip'\]"),
        (no_config, "no config.json; expected a transformers folder of CLIP or SigLIP"),
        (no_processor, "no preprocessor_config.json"),
        (config_is_a_list, "expected a JSON object"),
        (pickled_weights, "pytorch_model.bin, which is pickled"),
        (lost_tokenizer, "no tokenizer.json; save the model again"),
        (torn_tokenizer, "not a tokenizer"),
    ],
)
def test_bad_sources(tmp_path: Path, bare: Path, spoil: Any, message: str) -> None:
    spoil(bare)
    with pytest.raises(GranAlignError, match=message) as error:
        export_clip(bare, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert entries(tmp_path) == ["bare"]


def test_a_comparison_needs_torch(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"comparing .* needs the extra \[export\]"):
        export_clip(bare, tmp_path / "out", check=True)
    assert entries(tmp_path) == ["bare"]


def test_unusable_arguments(tmp_path: Path, bare: Path) -> None:
    with pytest.raises(GranAlignError, match=r"'int4': expected one of \['fp16', 'fp32', 'int8'\]"):
        export_clip(bare, tmp_path / "out", precision="int4")
    (tmp_path / "out").mkdir()
    with pytest.raises(GranAlignError, match="already exists"):
        export_clip(bare, tmp_path / "out")
    with pytest.raises(GranAlignError, match="no such folder"):
        export_clip(tmp_path / "nothing", tmp_path / "new")
    assert entries(tmp_path / "out") == []


# Against transformers.


@pytest.fixture(scope="module", params=sorted(CONFIGURATIONS))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / request.param, request.param)


@pytest.fixture(scope="module")
def one_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "one", "clip-given-id")


def embed_with_transformers(
    source: Path, frames: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bytes, image embeddings and text embeddings by transformers' own functions."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(source).eval()
    processor = load_image_processor(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    padding = "max_length" if model.config.model_type == "siglip" else True
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt")
    if model.config.model_type == "siglip":
        tokens = {"input_ids": tokens["input_ids"]}  # trained without a mask
    pixels = processor(frames, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        image = pooled(model.get_image_features(pixels))
        text = pooled(model.get_text_features(**tokens))
    normalised = [(x / x.norm(dim=-1, keepdim=True)).numpy() for x in (image, text)]
    return bytes_by(processor, frames), *normalised


def bytes_by(processor: Any, frames: list[np.ndarray]) -> np.ndarray:
    """Return the bytes of frames that transformers resized and cropped, channels last."""
    only_resized = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    pixels = processor(frames, input_data_format="channels_last", **only_resized)["pixel_values"]
    assert pixels.dtype == np.uint8
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


@pytest.mark.needs_torch
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_embeddings_against_transformers(source: Path, tmp_path: Path, precision: str) -> None:
    steps: list[str] = []
    out = export_clip(source, tmp_path / "out", precision=precision, progress=steps.append)
    assert entries(out) == ["image.onnx", "manifest.json", "text.onnx", "tokenizer.json"]
    assert entries(tmp_path) == ["out"]
    assert steps == [
        "reading",
        "running the source",
        "writing the graphs",
        "checking the layers",
        "comparing with the source",
    ]

    frames = random_frames([(90, 160), (160, 90), (61, 47), (33, 101), (32, 32), (17, 200)], 1)
    resized, image, text = embed_with_transformers(source, frames)
    tolerance = PRECISIONS[precision].tolerance.max_abs_error
    assert tolerance == {"fp32": 1e-5, "fp16": 5e-3}[precision]
    encoder = FrameEncoder(out)
    np.testing.assert_allclose(encoder.encode_frames(frames), image, 0, tolerance)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), text, 0, tolerance)
    tower = open_session(out / "image.onnx")
    for batch in (1, 6):
        got = tower(frames=resized[:batch])["embeddings"]
        np.testing.assert_allclose(got, image[:batch], 0, tolerance)
        np.testing.assert_allclose(encoder.encode_texts(TEXTS[:batch]), text[:batch], 0, tolerance)
    # The comparison would be empty if the model gave the same for everything.
    assert (image @ image.T)[0, 1:].max() < 0.999 and (text @ text.T)[0, 1:].max() < 0.999
    assert encoder.dim == image.shape[1]
    assert encoder.manifest.validation["text_max_abs_error"] <= tolerance
    assert encoder.manifest.source == source.name


@pytest.mark.needs_torch
def test_bytes_are_the_processors(source: Path, tmp_path: Path) -> None:
    encoder = FrameEncoder(export_clip(source, tmp_path / "out"))
    processor = load_image_processor(source)
    for frame in [*random_frames(SIZES), *validation_frames()]:
        np.testing.assert_array_equal(encoder.preprocessing(frame), bytes_by(processor, [frame])[0])


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    "settings",
    [
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 1.1]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [50.0] * 3},
    ],
)
def test_other_levels(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The tower follows the processor's settings of rescaling and normalising."""
    pytest.importorskip("torch")
    source = write_tiny_clip(tmp_path / "source", "clip-given-id")
    edit_json(source / "preprocessor_config.json", **settings)
    frames = random_frames([(40, 50), (60, 31)], 3)
    _, image, _ = embed_with_transformers(source, frames)
    encoder = FrameEncoder(export_clip(source, tmp_path / "out"))
    np.testing.assert_allclose(encoder.encode_frames(frames), image, 0, 1e-5)


@pytest.mark.needs_torch
def test_the_command_is_silent_but_for_its_answer(one_source: Path, tmp_path: Path) -> None:
    """No warning of torch or transformers reaches the terminal.

    An export that is slow, as on a busy machine, writes lines of progress.
    """
    out = tmp_path / "out"
    arguments = ["granalign", "export", "clip", str(one_source), str(out)]
    code = f"import sys; sys.argv = {arguments}; from granalign_fast.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    progress = f"exporting {one_source} in fp32, "
    assert [line for line in result.stderr.splitlines() if not line.startswith(progress)] == []
    assert result.stdout == f"written and checked against the source: {out}\n"
    assert FrameEncoder(out).manifest.precision == "fp32"


def test_the_command_refuses(bare: Path, tmp_path: Path) -> None:
    llama(bare)
    result = CliRunner().invoke(app, ["export", "clip", str(bare), str(tmp_path / "out")])
    assert isinstance(result.exception, GranAlignError)


@pytest.mark.needs_torch
def test_every_mismatch_is_reported_and_nothing_left(
    one_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Precision("fp16", Tolerance(1e-9, 1.0, 1.0))
    monkeypatch.setitem(module.PRECISIONS, "fp16", strict)
    both = r"image '640 x 360' has error .*image '60 x 500' .*text 'Run\.' .*text the mean cosine"
    with pytest.raises(GranAlignError, match=both) as error:
        export_clip(one_source, tmp_path / "out", precision="fp16")
    assert "\n" not in str(error.value)
    assert entries(tmp_path) == []


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("failure", "message"),
    [(OSError(28, "No space left on device"), "No space left"), (MemoryError(), "MemoryError")],
)
def test_a_full_disk_leaves_nothing(
    one_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    message: str,
) -> None:
    finish = EmbeddedTensors.finish

    def full_disk(tensors: EmbeddedTensors, model: Any) -> None:
        finish(tensors, model)
        raise failure

    monkeypatch.setattr(EmbeddedTensors, "finish", full_disk)
    with pytest.raises(GranAlignError, match=rf"image tower .*{message}.*free memory and disk"):
        export_clip(one_source, tmp_path / "out")
    assert entries(tmp_path) == []


def torn_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def nan_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def another_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "mish"
    write_json(folder / "config.json", config)


def another_processor(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", image_processor_type="ViTImageProcessor")


def another_size(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", crop_size={"height": 20, "width": 20})


def resized_below_the_crop(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", size={"shortest_edge": 29})


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torn_weights, "torn, or of another kind"),
        (missing_tensor, "lacks 1 tensors, such as text_projection.weight"),
        (nan_weights, "gives image embeddings with NaN"),
        (another_activation, r"got the activation 'mish', expected one of \['gelu'"),
        (another_processor, "got the image processor ViTImageProcessor"),
        (another_size, r"cut to \(20, 20\), expected pixels of 30 x 30"),
        (resized_below_the_crop, "resized to {'shortest_edge': 29}"),
    ],
)
def test_damaged_sources(tmp_path: Path, spoil: Any, message: str) -> None:
    pytest.importorskip("torch")
    source = write_tiny_clip(tmp_path / "source", "clip-given-id")
    spoil(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_clip(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert entries(tmp_path) == ["source"]
