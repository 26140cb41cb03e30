"""Indexes that somebody else made: they choose no file, and spoil no cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_vlm import write_unchecked_vlm
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.index.records import FrameTable, VideoSource
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.search.key_frames import frame_set
from granalign_fast.types import FrameSet, frame_hash


def index_of(path: Path, source: VideoSource) -> VideoIndex:
    frames = FrameTable(np.array([0.0, 2.0]), ("a", "b"), source=source)
    rows = np.eye(2, dtype=np.float32)
    return VideoIndex(CaptionedVideo("v", ("a dog", "a cat")), rows, frames)


def test_frames_come_from_the_indexed_file_alone(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(5, 4))
    source = VideoSource(path, path.stat().st_size, sha256_of(path))
    assert len(frame_set(index_of(path, source)).load([0, 1])) == 2
    # Another file at its place: of another size, and of the same.
    other = render(tmp_path / "b.mp4", constant(5, 9))
    longer = bytearray(path.read_bytes())
    longer[-1] ^= 1
    same_size = tmp_path / "c.mp4"
    same_size.write_bytes(longer)
    for wrong in (other, same_size):
        index = index_of(wrong, replace(source, path=wrong))
        with pytest.raises(GranAlignError, match="another file than the one that was indexed"):
            frame_set(index).load([0])


def test_a_large_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("granalign_fast.files._LARGE", 10)
    monkeypatch.setattr("granalign_fast.files._SETTLED", 0)
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(100))
    source = VideoSource(path, 100, sha256_of(path))
    source.check()
    monkeypatch.setattr("granalign_fast.files.sha256_of", lambda path: "read again")
    source.check()
    path.write_bytes(bytes(99) + b"x")
    with pytest.raises(GranAlignError, match="another file"):
        source.check()


def test_a_prefix_is_kept_for_the_frame_that_was_seen(tmp_path: Path) -> None:
    captioner = VlmCaptioner(VisionLanguageModel(write_unchecked_vlm(tmp_path)))
    rng = np.random.default_rng(0)
    seen, named = (rng.integers(0, 256, (56, 56, 3), np.uint8) for _ in range(2))
    # The index names the hash of one frame, and its video has another.
    captioner.prefill(FrameSet((frame_hash(named),), lambda numbers: [seen for _ in numbers]))
    start = captioner.start_of((1, 0.0))
    kept = {
        name: captioner.cache.get(captioner._cache_key(frame_hash(frame), start))
        for name, frame in (("seen", seen), ("named", named))
    }
    assert kept["named"] is None and kept["seen"] is not None
