"""CLIP's and SigLIP's towers as engines, on a stand-in for TensorRT that runs on the CPU."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy, fake_tensorrt
from helpers.tiny_clip import (
    MAX_TOKENS,
    SIGLIP2_WIDTHS,
    WORDS,
    random_frames,
    write_random_clip,
    write_tiny_export,
)

from granalign_fast.export.tensorrt import export_tensorrt
from granalign_fast.files import sha256_of
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.frame_encoder import FrameEncoder


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_both_towers_of_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of several batches; each is uploaded as bytes, from pinned memory."""
    plain = write_tiny_export(tmp_path / "clip")
    folder = export_tensorrt(plain, tmp_path / "out")
    pinned: list[Any] = []
    uploaded: list[tuple[int, Any]] = []
    allocate, upload = fake_cupy.cuda.alloc_pinned_memory, fake_cupy.ndarray.set

    def alloc_pinned_memory(size: int) -> Any:
        pinned.append(np.frombuffer(memory := allocate(size), np.uint8))
        return memory

    def set_from(self: Any, array: np.ndarray, stream: Any = None) -> None:
        if array.ndim == 4:
            uploaded.append((len(array), array))
        upload(self, array, stream)

    monkeypatch.setattr(fake_cupy.cuda, "alloc_pinned_memory", alloc_pinned_memory)
    monkeypatch.setattr(fake_cupy.ndarray, "set", set_from)
    ours, expected = FrameEncoder(folder, device="tensorrt"), FrameEncoder(plain)
    frames, done = random_frames([(20 + i, 30) for i in range(150)]), []
    np.testing.assert_allclose(
        ours.encode_frames(frames, progress=done.append), expected.encode_frames(frames), atol=1e-5
    )
    assert done == [64, 64, 22] and sum(count for count, _ in uploaded) == 150
    for _, array in uploaded:
        assert array.dtype == np.uint8
        assert any(np.shares_memory(array, memory) for memory in pinned)
    texts = ["a", "b c", "d", "e f", "g h"]
    np.testing.assert_allclose(ours.encode_texts(texts), expected.encode_texts(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "size"), [("clip", "base"), *(("siglip", size) for size in SIGLIP2_WIDTHS)]
)
def test_fused_operators_reach_tensorrt_as_standard_ones(
    tmp_path: Path, family: str, size: str
) -> None:
    """Engines are built from an fp16 graph whose fused operators TensorRT cannot read."""
    folder = write_tiny_export(tmp_path / "fp16", precision="fp16", max_tokens=MAX_TOKENS)
    write_random_clip(tmp_path / "towers", family, precision="fp16", widths=SIGLIP2_WIDTHS[size])
    record = json.loads((folder / "manifest.json").read_text())
    for name in ("image.onnx", "text.onnx"):
        shutil.copy(tmp_path / "towers" / name, folder / name)
        record["files"][name] = sha256_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(record))
    built = export_tensorrt(folder, tmp_path / "out")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 37, 37, 3), np.uint8)
    ids = rng.integers(0, WORDS, (5, 5), np.int32)
    for name, arrays in (("image", {"frames": frames}), ("text", {"input_ids": ids})):
        session = open_session(built / f"{name}.onnx", device="tensorrt")
        assert session.backend == "TensorRT engine" and session.precision == "fp16"
        expected = open_session(folder / f"{name}.onnx")(**arrays)["embeddings"]
        np.testing.assert_allclose(session(**arrays)["embeddings"], expected, atol=1e-3)
