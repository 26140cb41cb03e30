"""The frame encoder without torch: preprocessing, batches, and refused inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.tiny_bert import edit_json, flip_byte, write_json
from helpers.tiny_clip import (
    DIM,
    MAX_TOKENS,
    PREPROCESSING,
    SIZES,
    random_frames,
    write_tiny_export,
)
from onnx import numpy_helper

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.models.frame_encoder import FrameEncoder, Preprocessing
from granalign_fast.models.manifest import CLIP_FORMAT_VERSION


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_export(tmp_path / "tiny")


# Preprocessing. The tests of exports compare it with transformers' processors.


@pytest.mark.parametrize(
    "size", [(10, 10), (11, 10), (10, 13), (7, 9), (101, 3), (1, 1), (640, 360)]
)
@pytest.mark.parametrize("resize", [(10,), (8,), (9, 12)])
def test_frames_of_one_colour(size: tuple[int, int], resize: tuple[int, ...]) -> None:
    """Frames of any size get the size of the crop, and keep their colour everywhere."""
    preprocess = replace(PREPROCESSING, resize=resize)
    cropped = preprocess(np.full((*size, 3), (0, 128, 255), np.uint8))
    assert cropped.shape == (8, 8, 3) and cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, np.broadcast_to((0, 128, 255), (8, 8, 3)))


def test_the_centre_is_cropped() -> None:
    """A frame that needs no resizing is only cropped. The odd pixel is cut off below and right."""
    (frame,) = random_frames([(10, 13)])
    np.testing.assert_array_equal(Preprocessing((10,), (7, 8), 3)(frame), frame[1:8, 2:10])


# The encoder, with an export that this test writes itself.


def test_shape_order_and_batches(tiny: Path) -> None:
    encoder = FrameEncoder(tiny, threads=2)
    assert encoder.dim == DIM and encoder.fingerprint == f"{'1' * 16}-fp32-v{CLIP_FORMAT_VERSION}"
    frames = random_frames(SIZES * 3)
    steps: list[int] = []
    rows = encoder.encode_frames(frames, progress=steps.append)
    assert rows.shape == (len(frames), DIM) and rows.dtype == np.float32
    assert sum(steps) == len(frames) and min(steps) > 0 and len(steps) > 1
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for frame, row in zip(frames, rows, strict=True):
        np.testing.assert_allclose(encoder.encode_frames(frame[None])[0], row, atol=1e-6)
    same_size = np.stack(random_frames([(12, 20)] * 7))
    np.testing.assert_array_equal(
        encoder.encode_frames(same_size), encoder.encode_frames(list(same_size))
    )


def test_frames_that_are_not_contiguous(tiny: Path) -> None:
    """Views, such as a flipped frame or BGR reversed to RGB, give the same embeddings as copies."""
    encoder = FrameEncoder(tiny)
    (frame,) = random_frames([(20, 30)])
    view = frame[::-1, ::2, ::-1]
    np.testing.assert_array_equal(
        encoder.encode_frames([view]), encoder.encode_frames([np.ascontiguousarray(view)])
    )


def test_texts(tiny: Path) -> None:
    encoder = FrameEncoder(tiny)
    texts = ["a b", "c", "a b", "b a", "z " * 50]
    rows = encoder.encode_texts(texts)
    assert rows.shape == (len(texts), DIM) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[0], rows[2])
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_allclose(encoder.encode_texts([text])[0], row, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode_texts(["z " * MAX_TOKENS])[0], rows[4])


def test_threads_share_an_encoder(tiny: Path) -> None:
    encoder = FrameEncoder(tiny)
    frames = random_frames(SIZES)
    expected = encoder.encode_frames(frames)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(encoder.encode_frames, [frames] * 8):
            np.testing.assert_array_equal(rows, expected)


GOOD = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "frames: got none, expected at least one"),
        (np.zeros((0, 4, 4, 3), np.uint8), "frames: got none"),
        (GOOD, r"got shape \(4, 4, 3\), expected \(frames, height, width, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"frames\[0\]: got uint8 \(3, 4, 4\), expected uint8"),
        ([GOOD, GOOD[..., 0]], r"frames\[1\]: got uint8 \(4, 4\)"),
        ([GOOD, np.zeros((4, 4, 4), np.uint8)], r"frames\[1\]: got uint8 \(4, 4, 4\)"),
        ([np.zeros((0, 4, 3), np.uint8)], r"frames\[0\]: got uint8 \(0, 4, 3\)"),
        (np.full((1, 4, 4, 3), np.nan), r"frames\[0\]: got float64 \(4, 4, 3\), expected uint8"),
        ([GOOD.astype(np.float32)], r"frames\[0\]: got float32"),
        ([GOOD, "frame.jpg"], r"frames\[1\]: got str, expected uint8"),
    ],
)
def test_bad_frames(tiny: Path, frames: Any, message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        FrameEncoder(tiny).encode_frames(frames)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts: got none, expected at least one"),
        ("a b", "got the string 'a b', expected a list"),
        (["a", 3], r"texts\[1\]: got int, expected str"),
        (["half \ud83d pair"], "not valid Unicode"),
    ],
)
def test_bad_texts(tiny: Path, texts: Any, message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        FrameEncoder(tiny).encode_texts(texts)


def test_an_embedding_that_is_not_finite(tiny: Path) -> None:
    """Weights that were damaged before they were hashed raise an error instead of a ranking."""
    path = tiny / "image.onnx"
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] = np.inf
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
    onnx.save(model, path)
    files = json.loads((tiny / "manifest.json").read_text())["files"]
    edit_json(tiny / "manifest.json", files=files | {path.name: sha256_of(path)})
    with pytest.raises(GranAlignError, match=r"embedding of frames\[0\] is not finite"):
        FrameEncoder(tiny).encode_frames([GOOD])


def test_unusable_settings(tiny: Path) -> None:
    with pytest.raises(GranAlignError, match="device 'gpu'"):
        FrameEncoder(tiny, device="gpu")
    with pytest.raises(GranAlignError, match="threads: got 0, expected at least 1"):
        FrameEncoder(tiny, threads=0)


def older_version(folder: Path) -> None:
    """Set the version whose image tower takes floats."""
    edit_json(folder / "manifest.json", format_version=1)


def another_kind(folder: Path) -> None:
    edit_json(folder / "manifest.json", kind="sentence-encoder")


def lost_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def lost_setting(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["preprocessing"]["crop"]
    write_json(folder / "manifest.json", manifest)


def truncated_image(folder: Path) -> None:
    data = (folder / "image.onnx").read_bytes()
    (folder / "image.onnx").write_bytes(data[: len(data) // 2])


def altered_text(folder: Path) -> None:
    flip_byte(folder / "text.onnx", -100)


def lost_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (older_version, "got format version 1, expected 2; export the model again"),
        (another_kind, "got kind 'sentence-encoder', expected 'clip'"),
        (lost_manifest, "no manifest.json; name a folder that `granalign export clip` wrote"),
        (lost_setting, "unusable preprocessing .*crop"),
        (truncated_image, "image.onnx: altered weights"),
        (altered_text, "text.onnx: altered weights"),
        (lost_tokenizer, "tokenizer.json: cannot be read"),
    ],
)
def test_bad_exports(tiny: Path, spoil: Any, message: str) -> None:
    spoil(tiny)
    with pytest.raises(GranAlignError, match=message) as error:
        FrameEncoder(tiny)
    assert "\n" not in str(error.value)


def test_nothing_imports_torch_or_transformers(tiny: Path) -> None:
    code = (
        "import sys, numpy as np; from granalign_fast.models.frame_encoder import FrameEncoder; "
        "assert not {'onnxruntime', 'tokenizers', 'PIL'} & set(sys.modules), 'heavy at import'; "
        f"clip = FrameEncoder({str(tiny)!r}); clip.encode_texts(['a b']); "
        "clip.encode_frames(np.zeros((1, 9, 9, 3), np.uint8)); "
        "print(sorted({'torch', 'onnx', 'huggingface_hub', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
